"""SpikingJelly 2.0 in multi-step mode on the CPU, with the student's weights; runs in SpikingJelly's own environment.

Its neurons run in plain torch here: its compiled kernels are for CUDA. Generous to the peer: batch norms are folded
into the convolutions, the images are normalised before, and the first convolution, whose image is constant, runs once.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron
from timing import measure_runs
from torch import Tensor, nn

from peers.ann_weights import AnnWeights, load_ann, load_images


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time the network on normalised images."""
    torch.set_num_threads(request["threads"])
    ann = load_ann(request["folder"])
    images = torch.from_numpy(ann.normalized(load_images(request)))
    network = MultiStepNetwork(ann, request["timesteps"]).eval()
    with torch.inference_mode():
        figures = measure_runs(lambda: network(images), len(images), request["seconds"])
        spikes: list[float] = []
        hooks = [
            module.register_forward_hook(lambda _module, _inputs, output: spikes.append(float(output.sum())))
            for module in network.modules()
            if isinstance(module, neuron.LIFNode)
        ]
        logits = network(images)
        for hook in hooks:
            hook.remove()
    version = f"spikingjelly {importlib.metadata.version('spikingjelly')}, torch {torch.__version__}"
    return {**figures, "version": version, "logits": logits[:8].tolist(), "spikes": spikes}


class MultiStepNetwork(nn.Module):
    """A convolution, then multi-step neurons and convolutions in turn, then a linear layer averaged over time."""

    def __init__(self, ann: AnnWeights, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps
        (weight, bias, stride), *others = ann.convolutions
        self.first = _loaded(nn.Conv2d(weight.shape[1], weight.shape[0], 3, stride, 1), weight, bias)
        self.rest = nn.Sequential(_neurons(ann.decay))
        for weight, bias, stride in others:
            conv = layer.Conv2d(weight.shape[1], weight.shape[0], 3, stride, 1)
            self.rest.append(_loaded(conv, weight, bias))
            self.rest.append(_neurons(ann.decay))
        self.rest.append(layer.Flatten())
        weight, bias = ann.dense
        self.rest.append(_loaded(layer.Linear(*weight.shape[::-1]), weight, bias))
        functional.set_step_mode(self.rest, "m")

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean logits, (B, K), of normalised images, from rest."""
        functional.reset_net(self.rest)
        current = self.first(images)
        logits: Tensor = self.rest(current.expand(self.timesteps, *current.shape))
        return logits.mean(0)


def _neurons(decay: float) -> nn.Module:
    # v = v - v / tau + x, the student's own step without a gain to divide by
    lif: nn.Module = neuron.LIFNode(tau=1 / (1 - decay), decay_input=False, v_threshold=1.0, v_reset=0.0)
    return lif


def _loaded(module: nn.Module, weight: Any, bias: Any) -> nn.Module:
    module.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    return module
