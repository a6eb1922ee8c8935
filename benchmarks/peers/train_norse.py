"""The training step with norse as its users step it: every timestep through all layers, norse's own cells.

Generous to the peer: the first convolution and its batch norm, whose image is constant, run once.
"""

from __future__ import annotations

from typing import Any

import norse
import torch
from norse.torch import LIFBoxCell, LIFBoxParameters
from torch import Tensor, nn

from peers.train_task import Task, load_task, time_training
from stars_deploy.spiking import DT, THRESHOLD


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time it."""
    torch.set_num_threads(request["threads"])
    task = load_task(request)
    network = SteppedNetwork(task)
    return time_training(task, network, network, request, f"norse {norse.__version__}, torch {torch.__version__}")


class SteppedNetwork(nn.Module):
    """Convolution, batch norm and norse ``LIFBoxCell`` in turn, at each timestep; a linear layer averaged over time."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.timesteps = task.timesteps
        self.gain = 1 - task.decay
        self.stages = nn.ModuleList(nn.Sequential(conv, norm) for conv, norm in task.convolutions)
        self.dense = task.dense
        parameters = LIFBoxParameters(
            tau_mem_inv=torch.as_tensor(self.gain / DT), v_th=torch.as_tensor(THRESHOLD), method="triangle",
            alpha=torch.as_tensor(1.0),
        )  # fmt: skip
        self.cells = [LIFBoxCell(parameters, dt=DT) for _ in self.stages]

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean logits, (B, K)."""
        states: list[Any] = [None] * len(self.cells)
        first = self.stages[0](images) / self.gain
        logits = []
        for _ in range(self.timesteps):
            value = first
            for index, (stage, cell) in enumerate(zip(self.stages, self.cells, strict=True)):
                current = value if index == 0 else stage(value) / self.gain
                value, states[index] = cell(current, states[index])
            logits.append(self.dense(value.flatten(1)))
        return torch.stack(logits).mean(0)
