"""Write SpikingJelly's files of tests/data/nir: ``python make_spikingjelly.py DIR`` (requirements-spikingjelly.txt)."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import nir
import torch
from recording import fill, images_for, record, save
from spikingjelly.activation_based import base, functional, layer, neuron
from spikingjelly.activation_based.nir_exchange import export_to_nir
from torch import nn

TIMESTEPS = 12


def write(
    folder: Path, name: str, layers: dict[str, nn.Module], shape: tuple[int, ...], seed: int, gain: float
) -> None:
    """Export one network and record its own spikes on seeded images."""
    net = nn.Sequential(OrderedDict(layers))
    fill(net, seed, gain)
    images = images_for(shape, seed)
    neurons = [key for key, module in layers.items() if isinstance(module, base.MemoryModule)]
    values = record(net, lambda: net(images), neurons, TIMESTEPS)
    functional.reset_net(net)
    nir.write(folder / f"spikingjelly_{name}.nir", export_to_nir(net, images[:1]), compression=None)
    save(folder / f"spikingjelly_{name}.npz", images, values)


def main(folder: Path) -> None:
    """Write every network into `folder`."""
    conv = {
        "conv1": layer.Conv2d(1, 3, 3, stride=2, padding=1, bias=False),
        "lif1": neuron.LIFNode(tau=2.0),
        "pool": layer.AvgPool2d(2),
        "flatten": layer.Flatten(),
        "fc": layer.Linear(12, 5),
        "if2": neuron.IFNode(v_threshold=0.75),
    }
    write(folder, "conv", conv, (1, 8, 8), 21, 2.5)
    cuba = {
        "fc1": layer.Linear(10, 16, bias=False),
        "cuba1": neuron.CUBALIFNode(c_decay=0.6, v_decay=0.8),
        "fc2": layer.Linear(16, 5, bias=False),
        "cuba2": neuron.CUBALIFNode(c_decay=0.4, v_decay=0.7, v_reset=0.0),
    }
    write(folder, "cuba", cuba, (10,), 22, 0.7)
    conv1d = {
        "conv1": layer.Conv1d(2, 3, 3, stride=2, padding=1),
        "lif1": neuron.LIFNode(tau=3.0, decay_input=False),
        "flatten": layer.Flatten(),
        "fc": layer.Linear(15, 4),
        "if2": neuron.IFNode(),
    }
    write(folder, "conv1d", conv1d, (2, 10), 23, 0.9)
    # A reset and leak away from zero: potentials start at v_reset.
    offset = {
        "fc1": layer.Linear(10, 16),
        "lif1": neuron.LIFNode(tau=4.0, v_reset=-0.25),
        "fc2": layer.Linear(16, 5),
        "if2": neuron.IFNode(v_reset=-0.25),
    }
    write(folder, "reset", offset, (10,), 24, 4.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
