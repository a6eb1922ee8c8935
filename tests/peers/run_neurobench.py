"""Measure a network with NeuroBench 2.3: ``python run_neurobench.py NETWORK.npz OUT.npz OUT.json``.

NETWORK holds ``images`` (B, T, *shape), float; ``batch``, samples run at a time; ``layers``, a JSON list with, for each
layer, ``beta`` (what a timestep leaves of a membrane potential), ``threshold``, ``reset`` (``zero`` or ``subtract``)
and, for a convolution, ``stride``, ``padding``, ``dilation`` (y, x) and ``groups``; and for the layer of index k
``weight:k``, (out, in/groups, kh, kw) or (out, in), and ``bias:k`` (out,).

OUT.npz gets ``spikes:k`` (T, B, *shape), bool, of every layer; OUT.json NeuroBench's metrics and versions.

What NeuroBench does that is easily missed (read in its source):

- Its hooks are on ``Linear`` and ``Conv`` modules (synaptic operations) and on ``SpikingNeuron`` modules (sparsity):
  the image is no activation, and a readout is one only if it is a spiking module.
- Whether the operations of a layer are ACs or MACs is decided anew for each batch and timestep: ACs where its input
  holds nothing but -1, 0 and 1, as an image that is all zero does.
- ``Dense`` counts every synapse once for each timestep, whatever its input was; padding has no synapses.
- Counts are sums in float32, exact below 2**24 for a layer, batch and timestep.
- A metric that fails becomes 0.0, with a line on stdout: here that is an error.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import snntorch
import torch
from neurobench.benchmarks import Benchmark
from neurobench.metrics.static import ConnectionSparsity
from neurobench.metrics.workload import ActivationSparsity, MembraneUpdates, SynapticOperations
from neurobench.models import SNNTorchModel
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

Arrays = dict[str, np.ndarray]


def main(arguments: Sequence[str]) -> None:
    """Read, run and write."""
    network, spikes, metrics = (Path(argument) for argument in arguments)
    torch.set_num_threads(1)
    with np.load(network) as file:
        given = dict(file)
    net, populations = build(json.loads(str(given["layers"])), given)
    results, record = measure(net, populations, given["images"].astype(np.float32), int(given["batch"]))
    versions = {name: importlib.metadata.version(name) for name in ("neurobench", "snntorch", "torch")}
    np.savez_compressed(spikes, **record)
    metrics.write_text(json.dumps({"metrics": results, "versions": versions}, indent=1), encoding="utf-8")


def build(layers: list[dict[str, Any]], given: Arrays) -> tuple[nn.Sequential, list[nn.Module]]:
    """Return the network, and its populations in order."""
    modules: list[nn.Module] = []
    populations: list[nn.Module] = []
    flat = False
    for index, layer in enumerate(layers):
        weight, bias = (torch.from_numpy(given[f"{kind}:{index}"].astype(np.float32)) for kind in ("weight", "bias"))
        if weight.ndim == 2 and not flat:
            modules.append(nn.Flatten())
            flat = True
        modules.append(connect(weight, bias, layer))
        populations.append(
            snntorch.Leaky(
                beta=layer["beta"],
                threshold=layer["threshold"],
                reset_mechanism=layer["reset"],
                init_hidden=True,
                output=index == len(layers) - 1,  # SNNTorchModel wants spikes and potentials from the last
            )
        )
        modules.append(populations[-1])
    return nn.Sequential(*modules), populations


def connect(weight: torch.Tensor, bias: torch.Tensor, layer: dict[str, Any]) -> nn.Module:
    """Return a convolution or a dense layer with these weights."""
    made: nn.Module
    if weight.ndim == 2:
        made = nn.Linear(weight.shape[1], weight.shape[0])
    else:
        options = {name: tuple(layer[name]) for name in ("stride", "padding", "dilation")}
        groups = layer["groups"]
        made = nn.Conv2d(weight.shape[1] * groups, len(weight), tuple(weight.shape[2:]), groups=groups, **options)
    with torch.no_grad():
        made.weight.copy_(weight)
        made.bias.copy_(bias)
    return made


def measure(
    net: nn.Sequential, populations: list[nn.Module], images: np.ndarray, batch: int
) -> tuple[dict[str, Any], Arrays]:
    """Return NeuroBench's metrics, and the spikes of every population."""
    steps = images.shape[1]
    seen: list[list[np.ndarray]] = [[] for _ in populations]
    for population, kept in zip(populations, seen, strict=True):
        population.register_forward_hook(keep(kept))
    data = TensorDataset(torch.from_numpy(images), torch.zeros(len(images)))
    metrics = [[ConnectionSparsity], [SynapticOperations, ActivationSparsity, MembraneUpdates]]
    benchmark = Benchmark(SNNTorchModel(net), DataLoader(data, batch_size=batch), [], [], metrics)
    said = io.StringIO()
    with torch.no_grad(), contextlib.redirect_stdout(said):
        results = benchmark.run(quiet=False)
    if "Error" in said.getvalue():
        raise RuntimeError(said.getvalue())
    # A batch runs all its timesteps, then the next one does.
    record = {f"spikes:{index}": over_batches(kept, steps) for index, kept in enumerate(seen)}
    operations = results.pop("SynapticOperations")
    return {**operations, **results}, record


def over_batches(kept: list[np.ndarray], steps: int) -> np.ndarray:
    """Return (T, B, *shape) from one array for each timestep of each batch."""
    runs = [np.stack(kept[start : start + steps]) for start in range(0, len(kept), steps)]
    return np.concatenate(runs, axis=1) != 0


def keep(kept: list[np.ndarray]) -> Callable[..., None]:
    """Return a hook that keeps what a population emits."""

    def hook(_: nn.Module, __: object, output: Any) -> None:
        spikes = output[0] if isinstance(output, tuple) else output
        kept.append(spikes.detach().numpy().copy())

    return hook


if __name__ == "__main__":
    main(sys.argv[1:])
