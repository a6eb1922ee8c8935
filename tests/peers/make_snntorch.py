"""Write the snnTorch files of tests/data/nir: ``python make_snntorch.py FOLDER`` (requirements-snntorch.txt)."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import nir
import snntorch
import torch
from recording import fill, images_for, record, save
from snntorch.export_nir import export_to_nir
from torch import nn

TIMESTEPS = 12


def write(
    folder: Path, name: str, layers: dict[str, nn.Module], shape: tuple[int, ...], seed: int, gain: float
) -> None:
    """Export one network and record its own spikes on seeded images."""
    net = nn.Sequential(OrderedDict(layers))
    fill(net, seed, gain)
    images = images_for(shape, seed)
    neurons = [key for key, layer in layers.items() if isinstance(layer, snntorch.SpikingNeuron)]
    values = record(net, lambda: net(images), neurons, TIMESTEPS)
    for key in neurons:
        layers[key].reset_mem()
    # Without ignore_dims the batch of the sample becomes part of the Input node's shape.
    nir.write(folder / f"snntorch_{name}.nir", export_to_nir(net, images[:1], ignore_dims=[0]), compression=None)
    save(folder / f"snntorch_{name}.npz", images, values)


def hard(beta: float, *shape: int, threshold: float = 1.0) -> dict[str, object]:
    """Options of a neuron that does what the exported file says: reset to zero in the same timestep.

    Parameters are arrays of the population's shape: with scalars the export fails (nir 1.0.8 checks the shapes).
    """
    arrays = {"beta": torch.full(shape, beta), "threshold": torch.full(shape, threshold)}
    return {**arrays, "reset_mechanism": "zero", "reset_delay": False, "init_hidden": True}


def main(folder: Path) -> None:
    """Write every network into `folder`."""
    conv = {
        "conv1": nn.Conv2d(1, 3, 3, stride=2, padding=1),
        "lif1": snntorch.Leaky(**hard(0.75, 3, 4, 4)),
        "pool": nn.AvgPool2d(2),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(12, 5),
        "lif2": snntorch.Leaky(**hard(0.9, 5, threshold=0.75)),
    }
    write(folder, "conv", conv, (1, 8, 8), 11, 1.2)
    synaptic = {
        "fc1": nn.Linear(10, 16, bias=False),
        "syn1": snntorch.Synaptic(alpha=torch.full((16,), 0.6), **hard(0.8, 16)),
        "fc2": nn.Linear(16, 5, bias=False),
        "syn2": snntorch.Synaptic(alpha=torch.full((5,), 0.4), **hard(0.7, 5)),
    }
    write(folder, "synaptic", synaptic, (10,), 12, 0.7)
    rleaky = {
        "fc1": nn.Linear(10, 12),
        "rec": snntorch.RLeaky(linear_features=12, **hard(0.8, 12)),
        "fc2": nn.Linear(12, 4),
        "lif2": snntorch.Leaky(**hard(0.9, 4)),
    }
    write(folder, "rleaky", rleaky, (10,), 13, 0.9)
    # RSynaptic of snnTorch 1.0.0 runs with its late reset only (reset_delay=False ends in a TypeError).
    late = {**hard(0.8, 12), "reset_delay": True}
    rsynaptic = {
        "fc1": nn.Linear(10, 12),
        "rec": snntorch.RSynaptic(alpha=torch.full((12,), 0.5), linear_features=12, **late),
        "fc2": nn.Linear(12, 4),
        "lif2": snntorch.Leaky(**hard(0.9, 4)),
    }
    write(folder, "rsynaptic", rsynaptic, (10,), 14, 0.7)
    one_to_one = {
        "fc1": nn.Linear(10, 12),
        "rec": snntorch.RLeaky(all_to_all=False, V=torch.linspace(-0.6, 0.6, 12), **hard(0.8, 12)),
        "fc2": nn.Linear(12, 4),
        "lif2": snntorch.Leaky(**hard(0.9, 4)),
    }
    write(folder, "rleaky_diagonal", one_to_one, (10,), 15, 0.9)
    # snnTorch's own defaults: threshold subtracted, one timestep late. The file cannot say so.
    defaults = {
        "fc1": nn.Linear(10, 16),
        "lif1": snntorch.Leaky(beta=torch.full((16,), 0.8), threshold=torch.ones(16), init_hidden=True),
        "fc2": nn.Linear(16, 5),
        "lif2": snntorch.Leaky(beta=torch.full((5,), 0.9), threshold=torch.ones(5), init_hidden=True),
    }
    write(folder, "defaults", defaults, (10,), 16, 0.9)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
