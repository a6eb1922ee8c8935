"""``noise``: no synthesis at all; the reference that any other has to beat."""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch.nn import functional

from stars_deploy.student import Student
from stars_deploy.synthesis.backbone import Backbone, SynthesizedBatch
from stars_deploy.synthesis.pool import ImagePool

#: Sizes of the noise's grains [pixels], one drawn a batch: white noise alone looks alike to any convolution.
GRAINS = (1, 2, 4, 7)


class NoiseBackbone(Backbone):
    """Uniform noise, interpolated from grids of several finenesses; the objectives are not looked at."""

    name = "noise"
    base_weights = MappingProxyType({"bn": 1.0})
    minimizes = False

    def synthesize(self, student: Student, pool: ImagePool, progress: float) -> SynthesizedBatch:
        """Draw a batch of noise; its labels are the teacher's answers."""
        channels, height, width = self.teacher.input.shape
        grain = GRAINS[int(torch.randint(len(GRAINS), (), generator=self.draws))]
        coarse = torch.rand(self.batch, channels, -(-height // grain), -(-width // grain), generator=self.draws)
        images = functional.interpolate(coarse.to(self.device), (height, width), mode="bilinear").clamp(0, 1)
        return SynthesizedBatch(images=images, wanted=self.pure(self.teacher.predict(images)), terms={})
