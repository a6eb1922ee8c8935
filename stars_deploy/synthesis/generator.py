"""A small convolutional image generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Generator(nn.Module):
    """From a latent and a class to an image in [0, 1]: linear, two up-sampling convolutions, sigmoid.

    The structure of the DFKD generators (DAFL, FastDFKD), narrower: the published 64-wide one costs more than a
    small teacher; and without their zero padding and nearest neighbours, whose traces were in every image. With
    `classes` 0 it is told no class.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, latent: int, width: int) -> None:
        super().__init__()
        channels, height, width_pixels = shape
        self.shape = shape
        self.classes = classes
        self.start = (2 * width, -(-height // 4), -(-width_pixels // 4))
        self.expand = nn.Linear(latent + classes, self.start[0] * self.start[1] * self.start[2])
        self.first = nn.Sequential(nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2))
        self.middle = nn.Sequential(_conv(2 * width, 2 * width), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2))
        self.last = nn.Sequential(
            _conv(2 * width, width),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            _conv(width, channels),
            nn.BatchNorm2d(channels),
        )

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] for latents (B, L) and classes (B,)."""
        if self.classes:
            latent = torch.cat([latent, functional.one_hot(labels, self.classes).to(latent.dtype)], 1)
        values = self.expand(latent).unflatten(1, self.start)
        values = self.middle(_doubled(self.first(values)))
        values = self.last(_doubled(values))
        _, height, width = self.shape
        # The sigmoid is stretched so that batch-normalised values reach black and white.
        return torch.sigmoid(2 * values[:, :, :height, :width])


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    # Zeros at the border become lines along the border of every image, which the teacher then answers to.
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate")


def _doubled(values: Tensor) -> Tensor:
    # Nearest neighbours leave a chequered pattern that no real image has.
    doubled: Tensor = functional.interpolate(values, scale_factor=2.0, mode="bilinear", align_corners=False)
    return doubled


def seeded_generator(
    shape: tuple[int, ...], classes: int, latent: int, width: int, draws: torch.Generator, device: torch.device
) -> Generator:
    """Return a generator whose initial weights come from `draws`."""
    seed = int(torch.randint(2**31, (), generator=draws))
    with torch.random.fork_rng(devices=[]):  # initial weights can only be drawn from the global generator
        torch.manual_seed(seed)
        return Generator(shape, classes, latent, width).to(device)
