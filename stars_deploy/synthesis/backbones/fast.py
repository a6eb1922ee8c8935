"""``fast``: a shared generator, adapted for a few steps to each batch, then moved toward the result."""

from __future__ import annotations

import copy
from types import MappingProxyType
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from stars_deploy.config import Section
from stars_deploy.student import Student
from stars_deploy.synthesis.backbone import Backbone, SynthesizedBatch
from stars_deploy.synthesis.generator import seeded_generator
from stars_deploy.synthesis.pool import ImagePool
from stars_deploy.synthesis.scoring import Scorer
from stars_deploy.teacher import Teacher


class FastOptions(Section):
    """Options of :class:`FastBackbone`.

    ``inner_steps`` optimisation steps make a batch, ``warmup_steps`` the first one. ``latent`` and ``width`` are the
    generator's size. ``meta_rate`` is how far a round moves the shared generator toward the adapted one (Reptile).
    """

    inner_steps: Annotated[int, Field(ge=1)] = 5
    warmup_steps: Annotated[int, Field(ge=1)] = 100
    latent: Annotated[int, Field(ge=1)] = 64
    width: Annotated[int, Field(ge=1)] = 16
    generator_rate: Annotated[float, Field(gt=0)] = 3e-3
    latent_rate: Annotated[float, Field(gt=0)] = 1e-2
    meta_rate: Annotated[float, Field(gt=0, le=1)] = 0.9


class FastBackbone(Backbone):
    """After FastDFKD (Fang et al., AAAI 2022), whose meta-learned initialisation is a Reptile step.

    Differences, all ours: conditional generator, views during synthesis, a diversity term, adversarial term on part of
    the batch. Published weights of bn, onehot and adversarial are 10, 0.5 and 1 to 1.33, with bn not relative.
    """

    name = "fast"
    Options = FastOptions
    base_weights = MappingProxyType({"bn": 5.0, "onehot": 1.0, "adversarial": 0.5, "diversity": 2.0})

    rounds: Tensor

    def __init__(self, teacher: Teacher, scorer: Scorer, options: FastOptions, **settings: Any) -> None:
        super().__init__(teacher, scorer, options, **settings)
        self.options = options
        self.generator = seeded_generator(
            teacher.input.shape, teacher.classes, options.latent, options.width, self.draws, self.device
        )
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))

    def synthesize(self, student: Student, pool: ImagePool, progress: float) -> SynthesizedBatch:
        """Adapt generator and latents to a fresh batch and return its images."""
        wanted = self.balanced(self.batch)
        latent = self.normal(self.batch, self.options.latent).requires_grad_(True)
        adapted = copy.deepcopy(self.generator).train()
        optimizer = torch.optim.Adam(
            [
                {"params": adapted.parameters(), "lr": self.options.generator_rate},
                {"params": [latent], "lr": self.options.latent_rate},
            ],
            betas=(0.5, 0.999),
        )
        terms: dict[str, float] = {}
        for _ in range(self.options.inner_steps if int(self.rounds) else self.options.warmup_steps):
            loss, terms = self.score(adapted(latent, wanted.labels), wanted, student, progress)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        self._move_toward(adapted)
        self.rounds += 1
        with torch.no_grad():
            images = adapted(latent, wanted.labels)
        return SynthesizedBatch(images=images, wanted=wanted, terms=terms)

    def _move_toward(self, adapted: nn.Module) -> None:
        with torch.no_grad():
            new = adapted.state_dict()
            for name, value in self.generator.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(new[name], self.options.meta_rate)
