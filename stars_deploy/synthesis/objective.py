"""What an objective of synthesis is: the base class, and what it gets to see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from stars_deploy.config import Section
from stars_deploy.student import StudentOutput
from stars_deploy.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What teacher and student make of a batch of synthetic images, in one step of synthesis.

    Parameters
    ----------
    images : Tensor, (B, C, H, W)
        In [0, 1], as synthesised.
    views : Tensor, (B, C, H, W)
        As the networks were shown them: moved, perhaps mirrored.
    labels : Tensor of int, (B,)
        The classes they were made for.
    targets : Tensor, (B, K)
        The probabilities that the teacher shall give: of the class, or of two between which the image shall be.
    logits : Tensor, (B, K)
        The teacher's.
    inputs : list of Tensor, (B, C_l, ...)
        What entered the teacher's batch normalisations, in order of execution.
    features : Tensor, (B, C_L, ...)
        What the last of them put out, rectified.
    part : slice
        The samples that the student saw.
    student : StudentOutput, optional
        Of those samples; None if no objective in force asks for it.
    """

    images: Tensor
    views: Tensor
    labels: Tensor
    targets: Tensor
    logits: Tensor
    inputs: list[Tensor]
    features: Tensor
    part: slice
    student: StudentOutput | None = None

    def answers(self) -> StudentOutput:
        """Return the student's output.

        Raises
        ------
        ValueError
            If the student was not run: the objective does not say that it needs it.
        """
        if self.student is None:
            raise ValueError("an objective looks at the student without `needs_student = True`")
        return self.student


class NoOptions(Section):
    """Of an objective or a backbone without options."""


class Objective(nn.Module):
    """One thing that synthetic images must satisfy: a scalar to be minimised.

    Attributes
    ----------
    name : str
        In configurations, histories and reports.
    needs_student, needs_potentials : bool
        Whether it looks at the student's answers, and at the membrane potentials in them.
    Options : type
        Of its own options, a :class:`stars_deploy.config.Section`.

    What it remembers from batch to batch are buffers, and so go into checkpoints.
    """

    name: ClassVar[str]
    needs_student: ClassVar[bool] = False
    needs_potentials: ClassVar[bool] = False
    Options: ClassVar[type[Section]] = NoOptions

    def __init__(self, teacher: Teacher, options: Section) -> None:
        super().__init__()

    def forward(self, seen: Observation) -> Tensor:
        """Return the objective of a batch, a scalar."""
        raise NotImplementedError

    def batch_done(self) -> None:
        """Take note that a batch is finished; by default nothing."""


def pooled(features: Tensor) -> Tensor:
    """Average (B, C, ...) over everything but samples and channels, (B, C)."""
    return features.flatten(2).mean(2) if features.ndim > 2 else features
