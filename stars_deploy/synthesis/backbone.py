"""What a backbone is: a way to make images that satisfy the objectives, whatever those are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from stars_deploy.config import Section
from stars_deploy.student import Student
from stars_deploy.synthesis.objective import NoOptions
from stars_deploy.synthesis.pool import ImagePool
from stars_deploy.synthesis.scoring import Scorer, Wanted
from stars_deploy.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class SynthesizedBatch:
    """Images (B, C, H, W) in [0, 1], what they were made for, and the last value of each objective."""

    images: Tensor
    wanted: Wanted
    terms: dict[str, float]


class Backbone(nn.Module):
    """Makes batches of images.

    Parameters
    ----------
    teacher : Teacher
    scorer : Scorer
        What is to be minimised; :attr:`draws` goes to it for its views.
    options : Section
        Of the type :attr:`Options`.
    batch : int
        Images a round.
    ambiguous : float
        Share of the images that are made for two classes.
    draws : torch.Generator
        Where all randomness comes from (on the CPU, so that every device draws alike).

    Attributes
    ----------
    name : str
    Options : type
        Of its own options.
    base_weights : mapping
        The objectives that it is published with, and their weights; a method adds to them.
    minimizes : bool
        Whether it looks at the objectives at all.

    Its state, as far as it lasts from batch to batch, is in parameters, buffers and :meth:`optimizers`, and so goes
    into checkpoints.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Section]] = NoOptions
    base_weights: ClassVar[Mapping[str, float]]
    minimizes: ClassVar[bool] = True

    def __init__(
        self,
        teacher: Teacher,
        scorer: Scorer,
        options: Section,
        *,
        batch: int,
        ambiguous: float,
        draws: torch.Generator,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.scorer = scorer
        self.batch = batch
        self.ambiguous = ambiguous
        self.draws = draws

    def synthesize(self, student: Student, pool: ImagePool, progress: float) -> SynthesizedBatch:
        """Make the images of a round.

        Parameters
        ----------
        student : Student
            Only looked at: frozen, in eval mode.
        pool : ImagePool
            What was made before; the caller adds the new images.
        progress : float
            Share of the distillation that is done.
        """
        raise NotImplementedError

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimisers that last from round to round, for checkpoints; by default none."""
        return {}

    def balanced(self, count: int) -> Wanted:
        """Return what `count` images shall be: every class as often as the others (give or take one), in random order.

        The ambiguous among them shall be a second class as well, any of the others, with a probability of up to a half.
        """
        classes = self.teacher.classes
        labels = torch.randperm(count, generator=self.draws) % classes
        others = (labels + torch.randint(1, classes, (count,), generator=self.draws)) % classes
        shares = torch.rand(count, generator=self.draws) / 2
        shares = torch.where(torch.rand(count, generator=self.draws) < self.ambiguous, shares, torch.zeros(()))
        pure, second = (functional.one_hot(each, classes).float() for each in (labels, others))
        targets = torch.lerp(pure, second, shares[:, None])
        return Wanted(labels=labels.to(self.device), targets=targets.to(self.device))

    def pure(self, labels: Tensor) -> Wanted:
        """Return that images shall be of the classes `labels`, (B,), and of no other."""
        return Wanted(labels=labels, targets=functional.one_hot(labels, self.teacher.classes).float())

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal values of that shape."""
        return torch.randn(*shape, generator=self.draws).to(self.device)

    def score(
        self, images: Tensor, wanted: Wanted, student: Student, progress: float
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted objective of a batch, and its terms (see :class:`Scorer`)."""
        total, terms = self.scorer(images, wanted, student, progress, self.draws)
        return total, terms

    @property
    def device(self) -> torch.device:
        """Where images are made."""
        return self.teacher.device
