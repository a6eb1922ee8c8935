"""The float student stepped the usual way: every timestep through all layers, with norse's own cells.

Generous to the peer: batch norms are folded into the convolutions, the images are normalised before, and the first
convolution, whose image is constant, runs once rather than at each timestep.
"""

from __future__ import annotations

from typing import Any

import norse
import torch
from norse.torch import LIFBoxCell, LIFBoxParameters
from timing import measure_runs
from torch import Tensor
from torch.nn import functional

from peers.ann_weights import AnnWeights, load_ann, load_images
from stars_deploy.spiking import DT, THRESHOLD


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time the stepped network on normalised images."""
    torch.set_num_threads(request["threads"])
    ann = load_ann(request["folder"])
    images = torch.from_numpy(ann.normalized(load_images(request)))
    network = SteppedNetwork(ann, request["timesteps"])
    with torch.inference_mode():
        figures = measure_runs(lambda: network.run(images), len(images), request["seconds"])
        logits, spikes = network.run(images, count=True)
    version = f"norse {norse.__version__}, torch {torch.__version__}"
    return {**figures, "version": version, "logits": logits[:8].tolist(), "spikes": spikes}


class SteppedNetwork:
    """Convolutions and norse ``LIFBoxCell`` in turn, then a linear layer averaged over time."""

    def __init__(self, ann: AnnWeights, timesteps: int) -> None:
        self.timesteps = timesteps
        self.gain = 1 - ann.decay
        # The gain that norse applies to its input is taken out of the weights, once.
        self.convolutions = [
            (torch.from_numpy(weight) / self.gain, torch.from_numpy(bias) / self.gain, stride)
            for weight, bias, stride in ann.convolutions
        ]
        self.dense = torch.from_numpy(ann.dense[0]), torch.from_numpy(ann.dense[1])
        parameters = LIFBoxParameters(
            tau_mem_inv=torch.as_tensor(self.gain / DT), v_th=torch.as_tensor(THRESHOLD), method="triangle"
        )
        self.cells = [LIFBoxCell(parameters, dt=DT) for _ in self.convolutions]

    def run(self, images: Tensor, count: bool = False) -> tuple[Tensor, list[float]]:
        """Return the mean logits, (B, K), and each layer's number of spikes where `count` asks for it."""
        states: list[Any] = [None] * len(self.cells)
        counts = [0.0] * len(self.cells)
        first = self._convolve(0, images)
        total: Tensor | None = None
        for _ in range(self.timesteps):
            value = first
            for index, cell in enumerate(self.cells):
                current = value if index == 0 else self._convolve(index, value)
                value, states[index] = cell(current, states[index])
                if count:
                    counts[index] += float(value.sum())
            logits = functional.linear(value.flatten(1), *self.dense)
            total = logits if total is None else total + logits
        if total is None:
            raise ValueError("a network needs at least one timestep")
        return total / self.timesteps, counts

    def _convolve(self, index: int, value: Tensor) -> Tensor:
        weight, bias, stride = self.convolutions[index]
        return functional.conv2d(value, weight, bias, stride, padding=1)
