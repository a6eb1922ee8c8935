"""How images of the pool are varied before teacher and student are shown them: more of the space at no synthesis.

The teacher answers whatever it is shown, so any image is a lawful question (the student learns a function, not labels).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

#: Largest turn [rad], relative zoom, shear and move (of half the image) of ``affine``.
TURN, ZOOM, SHEAR, MOVE = 0.3, 0.25, 0.25, 0.1


def mixed(images: Tensor, kinds: Sequence[str], draws: torch.Generator) -> Tensor:
    """Return images (B, C, H, W) in [0, 1], varied in the given ways, one after the other.

    - ``affine``: each turned, zoomed, sheared and moved a little, its border repeated;
    - ``mixup``: half of them blended with another one, by a uniform share (Zhang et al., ICLR 2018);
    - ``cutmix``: half of them with a rectangle of another one (Yun et al., ICCV 2019).
    """
    for kind in kinds:
        images = _KINDS[kind](images, draws)
    return images


def _affine(images: Tensor, draws: torch.Generator) -> Tensor:
    turn, across, down, shear, left, up = (2 * torch.rand(6, len(images), generator=draws) - 1).unbind()
    turn, shear = TURN * turn, SHEAR * shear
    across, down = 1 + ZOOM * across, 1 + ZOOM * down
    first = torch.stack([across * turn.cos(), shear - across * turn.sin(), MOVE * left], 1)
    second = torch.stack([down * turn.sin(), down * turn.cos(), MOVE * up], 1)
    matrices = torch.stack([first, second], 1).to(images.device)
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _mixup(images: Tensor, draws: torch.Generator) -> Tensor:
    share = torch.rand(len(images), 1, 1, 1, generator=draws)
    share = torch.where(_half(len(images), draws).view(-1, 1, 1, 1), share, torch.ones(()))
    return torch.lerp(_others(images, draws), images, share.to(images.device))


def _cutmix(images: Tensor, draws: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    sides = torch.rand(count, generator=draws).sqrt()
    rows = _span(height, sides, draws)[:, None, :, None]
    columns = _span(width, sides, draws)[:, None, None, :]
    inside = rows & columns & _half(count, draws).view(-1, 1, 1, 1)
    return torch.where(inside.to(images.device), _others(images, draws), images)


def _span(size: int, sides: Tensor, draws: torch.Generator) -> Tensor:
    """Return which of `size` positions are in a stretch of `sides` (shares) around random centres, (B, size)."""
    centres = torch.rand(len(sides), 1, generator=draws) * size
    return (torch.arange(size) + 0.5 - centres).abs() < sides[:, None] * size / 2


def _half(count: int, draws: torch.Generator) -> Tensor:
    return torch.rand(count, generator=draws) < 0.5


def _others(images: Tensor, draws: torch.Generator) -> Tensor:
    return images[torch.randperm(len(images), generator=draws).to(images.device)]


_KINDS = {"affine": _affine, "mixup": _mixup, "cutmix": _cutmix}
