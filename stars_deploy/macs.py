"""How many multiply-accumulates a teacher spends on one image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stars_deploy.teacher import Teacher


def count_macs(teacher: Teacher) -> int:
    """Return the multiply-accumulates of one inference: convolutions and linear layers, padding included.

    The usual count of an ANN: every kernel position of every output, also where it meets padding; batch norms,
    biases and activations are left out.
    """
    total = 0

    def count(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        if isinstance(weight, Tensor):
            total += output[0].numel() * weight[0].numel()

    layers = [layer for layer in teacher.module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            teacher.logits(torch.zeros(1, *teacher.input.shape))
    finally:
        for hook in hooks:
            hook.remove()
    return total
