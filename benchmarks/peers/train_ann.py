"""The training step of the ANN of the same topology: ReLU for neurons, one pass for all timesteps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peers.train_task import load_task, time_training


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time it."""
    torch.set_num_threads(request["threads"])
    task = load_task(request)
    layers: list[nn.Module] = []
    for conv, norm in task.convolutions:
        layers += [conv, norm, nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten(), task.dense)
    return time_training(task, network, network, request, f"torch {torch.__version__}")
