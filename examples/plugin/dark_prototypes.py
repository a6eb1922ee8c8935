"""An objective and a backbone of your own; pyproject.toml beside it offers them to stars-deploy."""

import torch

from stars_deploy.config import Section
from stars_deploy.synthesis.backbone import Backbone, SynthesizedBatch
from stars_deploy.synthesis.objective import Objective


class Level(Section):
    """Options of the objective, checked when a configuration is read."""

    level: float = 0.3


class Dark(Objective):
    """Images shall not be brighter on average than a level."""

    name, Options = "dark", Level

    def __init__(self, teacher, options):
        super().__init__(teacher, options)
        self.level = options.level

    def forward(self, seen):  # noqa: D102
        return torch.relu(seen.images.mean((1, 2, 3)) - self.level).mean()


class Prototypes(Backbone):
    """A few steps from noise toward whatever the objectives want, one gradient for each pixel."""

    name, base_weights = "prototypes", {"bn": 1.0, "onehot": 1.0}

    def synthesize(self, student, pool, progress):  # noqa: D102
        wanted, pixels = self.balanced(self.batch), self.normal(self.batch, *self.teacher.input.shape)
        for _ in range(10):
            loss, terms = self.score(torch.sigmoid(pixels.requires_grad_(True)), wanted, student, progress)
            pixels = (pixels - 0.3 * torch.autograd.grad(loss, pixels)[0].sign()).detach()
        return SynthesizedBatch(images=torch.sigmoid(pixels), wanted=wanted, terms=terms)
