"""``diversity``: the images of one class shall differ, in pixels and in what the teacher sees in them."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from stars_deploy.config import Section
from stars_deploy.synthesis.objective import Objective, Observation
from stars_deploy.teacher import Teacher


class DiversityOptions(Section):
    """Least root mean square distance of two images of a class, and largest cosine of their features.

    ``pixels`` is in standard deviations of the batch's pixels. Both defaults are from a pilot of ours.
    """

    pixels: Annotated[float, Field(gt=0)] = 0.7
    cosine: Annotated[float, Field(ge=-1, lt=1)] = 0.93


class Diversity(Objective):
    """Diversity (ours): ``mean max(1 - d / pixels, 0) + max(cos - cosine, 0) / (1 - cosine)`` over pairs of one class.

    ``d`` is the root mean square pixel distance over the batch's pixel deviation; ``cos`` the cosine of the teacher's
    last features. Against the collapse to one prototype a class.
    """

    name = "diversity"
    Options = DiversityOptions

    def __init__(self, teacher: Teacher, options: DiversityOptions) -> None:
        super().__init__(teacher, options)
        self.options = options

    def forward(self, seen: Observation) -> Tensor:
        """Return the mean over pairs of images of one class; 0 where there is no pair."""
        return spread_within_classes(seen.images, seen.features, seen.labels, self.options.pixels, self.options.cosine)


def spread_within_classes(images: Tensor, features: Tensor, labels: Tensor, pixels: float, cosine: float) -> Tensor:
    """Return the objective for images and features (B, ...) of classes (B,); see :class:`Diversity`."""
    pairs = (labels[:, None] == labels[None, :]).fill_diagonal_(False)
    values = images.flatten(1)
    deviation = values.std().detach().clamp_min(1e-3)
    squares = values.square().sum(1)
    # All distances by one matrix product: gathering the pairs takes several times the teacher's own pass.
    apart = (squares[:, None] + squares[None, :] - 2 * values @ values.T).clamp_min(0) / values.shape[1]
    distance = (apart + 1e-8).sqrt() / deviation
    rows = functional.normalize(features.flatten(1), dim=1)
    near = functional.relu(1 - distance / pixels)
    alike = functional.relu(rows @ rows.T - cosine) / (1 - cosine)
    return ((near + alike) * pairs).sum() / torch.clamp_min(pairs.sum(), 1)
