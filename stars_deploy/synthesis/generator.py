"""A small convolutional image generator, and the pool of the images it made."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from stars_deploy.errors import ConfigError


class Generator(nn.Module):
    """From a latent and a class to an image in [0, 1]: linear, two up-sampling convolutions, sigmoid.

    The structure of the DFKD generators (DAFL, FastDFKD), narrower: the published 64-wide one costs more than a
    small teacher.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, latent: int, width: int) -> None:
        super().__init__()
        channels, height, width_pixels = shape
        self.shape = shape
        self.classes = classes
        self.start = (2 * width, -(-height // 4), -(-width_pixels // 4))
        self.expand = nn.Linear(latent + classes, self.start[0] * self.start[1] * self.start[2])
        self.first = nn.Sequential(nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2))
        self.middle = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)
        )
        self.last = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] for latents (B, L) and classes (B,)."""
        condition = functional.one_hot(labels, self.classes).to(latent.dtype)
        values = self.expand(torch.cat([latent, condition], 1)).unflatten(1, self.start)
        values = self.middle(functional.interpolate(self.first(values), scale_factor=2.0))
        values = self.last(functional.interpolate(values, scale_factor=2.0))
        _, height, width = self.shape
        # The sigmoid is stretched so that batch-normalised values reach black and white.
        return torch.sigmoid(2 * values[:, :, :height, :width])


class ImagePool:
    """The newest images, first in first out, as uint8: its memory is bounded by ``capacity``."""

    def __init__(self, shape: tuple[int, ...], capacity: int) -> None:
        self.images = torch.zeros((capacity, *shape), dtype=torch.uint8)
        self.added = 0

    def __len__(self) -> int:
        """Return how many images there are."""
        return min(self.added, len(self.images))

    def add(self, images: Tensor) -> None:
        """Store images (B, C, H, W) in [0, 1], rounded to 8 bits, in place of the oldest."""
        # More than fit: writing one slot twice has no defined order in torch.
        images = images[-len(self.images) :]
        slots = (self.added + torch.arange(len(images))) % len(self.images)
        self.images[slots] = (images.detach() * 255).round().to(torch.uint8)
        self.added += len(images)

    def restore(self, images: Tensor, added: int) -> None:
        """Take up `images`, what was stored when `added` images had been added.

        Raises
        ------
        ConfigError
            If they are not what such a pool holds.
        """
        wanted = (min(added, len(self.images)), *self.images.shape[1:])
        if images.dtype != torch.uint8 or tuple(images.shape) != wanted:
            raise ConfigError("image pool", f"{images.dtype} {tuple(images.shape)}", f"uint8 {wanted}")
        self.images[: len(images)] = images
        self.added = added

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return `count` images in [0, 1], drawn with replacement.

        Raises
        ------
        ConfigError
            If the pool is empty.
        """
        if not len(self):
            raise ConfigError("image pool", "empty", "at least one synthesised batch")
        return self.images[torch.randint(len(self), (count,), generator=generator)].float() / 255
