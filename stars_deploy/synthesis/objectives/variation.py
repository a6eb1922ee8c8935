"""``tv``: images without noise from pixel to pixel."""

from __future__ import annotations

from torch import Tensor

from stars_deploy.synthesis.objective import Objective, Observation


class TotalVariation(Objective):
    """Total variation: ``mean (x_{h+1,w} - x_{h,w})^2 + mean (x_{h,w+1} - x_{h,w})^2``.

    As the image prior of DeepInversion (Yin et al., CVPR 2020), by its mean instead of its norm, so that it does not
    depend on batch or size.
    """

    name = "tv"

    def forward(self, seen: Observation) -> Tensor:
        """Return the mean squared difference of neighbouring pixels."""
        images = seen.images
        down = (images[:, :, 1:] - images[:, :, :-1]).square().sum()
        across = (images[:, :, :, 1:] - images[:, :, :, :-1]).square().sum()
        return (down + across) / images.numel()
