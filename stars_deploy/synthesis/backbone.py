"""What a backbone is: a way to make images that satisfy the objectives, whatever those are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from stars_deploy.config import Section
from stars_deploy.student import Student
from stars_deploy.synthesis.objective import NoOptions
from stars_deploy.synthesis.pool import ImagePool
from stars_deploy.synthesis.scoring import Scorer
from stars_deploy.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class SynthesizedBatch:
    """Images (B, C, H, W) in [0, 1], the classes they were made for, and the last value of each objective."""

    images: Tensor
    labels: Tensor
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
    draws : torch.Generator
        Where all randomness comes from (on the CPU, so that every device draws alike).

    Attributes
    ----------
    name : str
    Options : type
        Of its own options.
    base_weights : mapping
        The objectives that it is published with, and their weights; a method adds to them.

    Its state, as far as it lasts from batch to batch, is in parameters, buffers and :meth:`optimizers`, and so goes
    into checkpoints.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Section]] = NoOptions
    base_weights: ClassVar[Mapping[str, float]]

    def __init__(
        self, teacher: Teacher, scorer: Scorer, options: Section, *, batch: int, draws: torch.Generator
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.scorer = scorer
        self.batch = batch
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

    def balanced_labels(self, count: int) -> Tensor:
        """Return `count` classes in random order, each as often as the others (give or take one)."""
        labels = torch.randperm(count, generator=self.draws) % self.teacher.classes
        return labels.to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal values of that shape."""
        return torch.randn(*shape, generator=self.draws).to(self.device)

    def score(
        self, images: Tensor, labels: Tensor, student: Student, progress: float
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted objective of a batch, and its terms (see :class:`Scorer`)."""
        total, terms = self.scorer(images, labels, student, progress, self.draws)
        return total, terms

    @property
    def device(self) -> torch.device:
        """Where images are made."""
        return self.teacher.device
