"""The pool of synthetic images that the student is trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from stars_deploy.errors import ConfigError


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
        self.images[slots] = (images.detach() * 255).round().to(torch.uint8).cpu()
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

    def newest(self, count: int) -> Tensor:
        """Return the `count` newest images, or all there are, oldest first, uint8."""
        count = min(count, len(self))
        slots = (self.added - count + torch.arange(count)) % len(self.images)
        return self.images[slots]
