"""The training step with SpikingJelly 2.0 in multi-step mode on the CPU; runs in SpikingJelly's own environment.

Generous to the peer: the first convolution and its batch norm, whose image is constant, run once.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from peers.train_task import Task, load_task, time_training


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time it."""
    torch.set_num_threads(request["threads"])
    task = load_task(request)
    network = MultiStepNetwork(task)
    version = f"spikingjelly {importlib.metadata.version('spikingjelly')}, torch {torch.__version__}"
    return time_training(task, network, network, request, version)


class MultiStepNetwork(nn.Module):
    """SpikingJelly's layers in step mode "m": time is folded into the batch but in the neurons."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.timesteps = task.timesteps
        (conv, norm), *others = task.convolutions
        self.first = nn.Sequential(conv, norm)
        self.rest = nn.Sequential(_neurons(task.decay))
        for conv, norm in others:
            folded = layer.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride, 1, bias=False)
            folded.load_state_dict(conv.state_dict())
            normalised = layer.BatchNorm2d(norm.num_features)
            normalised.load_state_dict(norm.state_dict())
            self.rest.extend([folded, normalised, _neurons(task.decay)])
        dense = layer.Linear(task.dense.in_features, task.dense.out_features)
        dense.load_state_dict(task.dense.state_dict())
        self.rest.extend([layer.Flatten(), dense])
        functional.set_step_mode(self.rest, "m")

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean logits, (B, K)."""
        functional.reset_net(self.rest)
        current = self.first(images)
        logits: Tensor = self.rest(current.expand(self.timesteps, *current.shape))
        return logits.mean(0)


def _neurons(decay: float) -> nn.Module:
    # v = v - v / tau + x, the student's own step without a gain to divide by
    lif: nn.Module = neuron.LIFNode(tau=1 / (1 - decay), decay_input=False, v_threshold=1.0, v_reset=0.0)
    return lif
