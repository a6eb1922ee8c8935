"""Randomly moved views of images, for teachers, students and synthesis alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def randomly_shifted(images: Tensor, shift: int, flip: bool, draws: torch.Generator | None = None) -> Tensor:
    """Return views of images, each moved by up to `shift` pixels and, with `flip`, mirrored or not.

    Pixels at the border are repeated into what a move uncovers.

    Parameters
    ----------
    images : Tensor, (B, C, H, W)
    shift : int
        Largest move along each axis [pixels].
    flip : bool
    draws : torch.Generator, optional
        Where the randomness comes from; torch's global generator by default. On the CPU, wherever the images are, so
        that every device sees the same views.

    Returns
    -------
    Tensor, (B, C, H, W)
    """
    batch, _, height, width = images.shape
    if flip:
        mirrored = (torch.rand(batch, generator=draws) < 0.5).view(-1, 1, 1, 1).to(images.device)
        images = torch.where(mirrored, images.flip(3), images)
    if shift == 0:
        return images
    padded = functional.pad(images, (shift,) * 4, mode="replicate")
    rows = torch.randint(0, 2 * shift + 1, (batch, 1), generator=draws) + torch.arange(height)
    columns = torch.randint(0, 2 * shift + 1, (batch, 1), generator=draws) + torch.arange(width)
    samples = torch.arange(batch).view(-1, 1, 1)
    moved = padded.permute(0, 2, 3, 1)[
        samples.to(images.device), rows[:, :, None].to(images.device), columns[:, None, :].to(images.device)
    ]
    return moved.permute(0, 3, 1, 2)
