"""What every system trains in the benchmark of the student's step: one network, one batch, one loss.

Imports torch and numpy only: SpikingJelly's environment has no stars-deploy.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import measure_runs
from torch import Tensor, nn
from torch.nn import functional

TEMPERATURE = 4.0
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Task:
    """A network's layers with their initial weights, images (B, C, H, W), normalised, and a teacher's logits (B, K)."""

    convolutions: list[tuple[nn.Conv2d, nn.BatchNorm2d]]
    dense: nn.Linear
    images: Tensor
    teacher: Tensor
    timesteps: int
    decay: float


def load_task(request: dict[str, Any]) -> Task:
    """Return the task that the peer ``train_network`` wrote."""
    folder = Path(request["folder"])
    about = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    with np.load(folder / "train.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    convolutions = []
    for index, stride in enumerate(about["strides"]):
        state = {name.split(".")[1]: arrays[name] for name in arrays if name.startswith(f"norm{index}.")}
        weight = arrays[f"conv{index}.weight"]
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, stride, 1, bias=False)
        conv.weight = nn.Parameter(weight)
        norm = nn.BatchNorm2d(len(weight))
        norm.load_state_dict(state, strict=False)
        convolutions.append((conv, norm))
    dense = nn.Linear(*arrays["dense.weight"].shape[::-1])
    dense.load_state_dict({"weight": arrays["dense.weight"], "bias": arrays["dense.bias"]})
    return Task(convolutions, dense, arrays["images"], arrays["teacher"], request["timesteps"], about["decay"])


def time_training(
    task: Task, model: nn.Module, forward: Callable[[Tensor], Tensor], request: dict[str, Any], version: str
) -> dict[str, Any]:
    """Return what a network says before training, and the time of a training step.

    A step is the forward pass on the batch, the divergence from the teacher's logits at a temperature, the backward
    pass and a step of Adam; batch norms are in train mode.
    """
    model.eval()
    with torch.no_grad():
        logits = forward(task.images)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    wanted = (task.teacher / TEMPERATURE).log_softmax(1)

    def step() -> None:
        found = (forward(task.images) / TEMPERATURE).log_softmax(1)
        loss = TEMPERATURE**2 * functional.kl_div(found, wanted, log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    figures = measure_runs(step, len(task.images), request["seconds"], warm_up=3)
    return {**figures, "version": version, "logits": logits.tolist()}
