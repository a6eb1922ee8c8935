"""``dfq``: one generator, trained on against the student, that makes many images of each state."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from stars_deploy.config import Section
from stars_deploy.student import Student
from stars_deploy.synthesis.backbone import Backbone, SynthesizedBatch
from stars_deploy.synthesis.generator import seeded_generator
from stars_deploy.synthesis.pool import ImagePool
from stars_deploy.synthesis.scoring import Scorer, Wanted
from stars_deploy.teacher import Teacher


class DfqOptions(Section):
    """Options of :class:`DfqBackbone`.

    ``generator_steps`` steps a round (``warmup_steps`` before the first), after which the generator makes ``fresh``
    batches of images, which cost a forward pass each.
    """

    generator_steps: Annotated[int, Field(ge=1)] = 5
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    fresh: Annotated[int, Field(ge=1)] = 4
    latent: Annotated[int, Field(ge=1)] = 64
    width: Annotated[int, Field(ge=1)] = 16
    generator_rate: Annotated[float, Field(gt=0)] = 3e-3


class DfqBackbone(Backbone):
    """After DFQ (Choi et al., CVPR Workshops 2020): BN matching, confident and balanced answers, adversarial.

    The generator is told no class: what it is to be is what the teacher answers, and ``balance`` keeps the answers
    apart.
    Differences, ours: views during synthesis, the image pool, a diversity term.
    """

    name = "dfq"
    Options = DfqOptions
    base_weights = MappingProxyType({"bn": 1.0, "onehot": 1.0, "adversarial": 1.0, "balance": 1.0, "diversity": 1.0})

    rounds: Tensor

    def __init__(self, teacher: Teacher, scorer: Scorer, options: DfqOptions, **settings: Any) -> None:
        super().__init__(teacher, scorer, options, **settings)
        self.options = options
        self.generator = seeded_generator(
            teacher.input.shape, 0, options.latent, options.width, self.draws, self.device
        )
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=options.generator_rate, betas=(0.5, 0.999))
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))

    def synthesize(self, student: Student, pool: ImagePool, progress: float) -> SynthesizedBatch:
        """Train the generator for a round, and return several batches of its images."""
        terms: dict[str, float] = {}
        warm = 0 if int(self.rounds) else self.options.warmup_steps
        self.generator.train()
        for _ in range(warm + self.options.generator_steps):
            images = self._generate()
            loss, terms = self.score(images, self._answers(images), student, progress)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
        self.rounds += 1
        with torch.no_grad():
            images = torch.cat([self._generate() for _ in range(self.options.fresh)])
            return SynthesizedBatch(images=images, wanted=self._answers(images), terms=terms)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the generator's."""
        return {"generator": self.optimizer}

    def _generate(self) -> Tensor:
        latent = self.normal(self.batch, self.options.latent)
        images: Tensor = self.generator(latent, torch.zeros(0))
        return images

    def _answers(self, images: Tensor) -> Wanted:
        """Return what the teacher takes each image for: the class that it shall be sure of."""
        with torch.no_grad():
            return self.pure(self.teacher.logits(images).argmax(1))
