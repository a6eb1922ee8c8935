"""``deepinversion``: no generator, the pixels themselves are optimised."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

import torch
from pydantic import Field

from stars_deploy.config import Section
from stars_deploy.student import Student
from stars_deploy.synthesis.backbone import Backbone, SynthesizedBatch
from stars_deploy.synthesis.pool import ImagePool
from stars_deploy.synthesis.scoring import Scorer
from stars_deploy.teacher import Teacher


class DeepInversionOptions(Section):
    """Options of :class:`DeepInversionBackbone`: ``iterations`` steps of Adam at ``pixel_rate`` make a batch."""

    iterations: Annotated[int, Field(ge=1)] = 500
    pixel_rate: Annotated[float, Field(gt=0)] = 0.1


class DeepInversionBackbone(Backbone):
    """After DeepInversion and its adaptive form (Yin et al., CVPR 2020).

    The pixels are the sigmoid of what is optimised, so that images stay in [0, 1] without clipping (ours); Adam with
    betas .5 and .9 and a cosine decay, as published. Published weights of bn and the adversarial term are 10 and up to
    10, with bn not relative.
    """

    name = "deepinversion"
    Options = DeepInversionOptions
    base_weights = MappingProxyType({"bn": 10.0, "onehot": 1.0, "adversarial": 1.0, "tv": 1.0})

    def __init__(self, teacher: Teacher, scorer: Scorer, options: DeepInversionOptions, **settings: Any) -> None:
        super().__init__(teacher, scorer, options, **settings)
        self.options = options

    def synthesize(self, student: Student, pool: ImagePool, progress: float) -> SynthesizedBatch:
        """Optimise a batch of pixels from noise."""
        wanted = self.balanced(self.batch)
        pixels = self.normal(self.batch, *self.teacher.input.shape).requires_grad_(True)
        optimizer = torch.optim.Adam([pixels], lr=self.options.pixel_rate, betas=(0.5, 0.9))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.options.iterations)
        terms: dict[str, float] = {}
        for _ in range(self.options.iterations):
            loss, terms = self.score(torch.sigmoid(pixels), wanted, student, progress)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        return SynthesizedBatch(images=torch.sigmoid(pixels.detach()), wanted=wanted, terms=terms)
