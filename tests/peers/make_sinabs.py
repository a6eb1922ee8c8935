"""Write the sinabs files of tests/data/nir: ``python make_sinabs.py FOLDER`` (requirements-sinabs.txt).

The same script runs with sinabs 2.0.3 and 3.1.3 (requirements-sinabs3.txt): both write the same numbers.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import sys
from collections import OrderedDict
from pathlib import Path

import nir
import sinabs.layers as sl
import torch
from recording import fill, images_for, record, save
from sinabs.activation import MembraneReset, SingleSpike
from sinabs.nir import to_nir
from torch import nn

TIMESTEPS = 12
#: What the exported file says: one spike a timestep at most, reset to zero.
HARD = {"spike_fn": SingleSpike, "reset_fn": MembraneReset(), "batch_size": 3}


def write(
    folder: Path, name: str, layers: dict[str, nn.Module], shape: tuple[int, ...], seed: int, gain: float
) -> None:
    """Export one network and record its own spikes on seeded images; the time axis is folded into the batch."""
    net = nn.Sequential(OrderedDict(layers))
    fill(net, seed, gain)
    images = images_for(shape, seed)
    neurons = [key for key, module in layers.items() if isinstance(module, sl.StatefulLayer)]
    values = record(net, lambda: net(images), neurons, TIMESTEPS)
    graph = to_nir(net, images)
    graph.infer_types()  # else nir.write fails: sinabs leaves input_shape and input_type None
    options = {"compression": None} if "compression" in inspect.signature(nir.write).parameters else {}
    nir.write(folder / f"{prefix()}_{name}.nir", graph, **options)
    save(folder / f"{prefix()}_{name}.npz", images, values)


def prefix() -> str:
    """Return "sinabs" for version 2 and "sinabs3" for version 3."""
    return "sinabs" if importlib.metadata.version("sinabs").startswith("2.") else "sinabs3"


def main(folder: Path) -> None:
    """Write every network into `folder`."""
    conv = {
        "conv1": nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False),
        "iaf1": sl.IAFSqueeze(**HARD),
        "pool": sl.SumPool2d(2),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(12, 5),
        "iaf2": sl.IAFSqueeze(**HARD, spike_threshold=torch.tensor(0.75)),
    }
    write(folder, "conv", conv, (1, 8, 8), 31, 0.7)
    lif = {
        "fc1": nn.Linear(10, 16),
        "lif1": sl.LIFSqueeze(tau_mem=torch.full((16,), 4.0), **HARD, spike_threshold=torch.ones(16)),
        "fc2": nn.Linear(16, 5, bias=False),
        "lif2": sl.LIFSqueeze(tau_mem=torch.full((5,), 8.0), **HARD, spike_threshold=torch.full((5,), 0.5)),
    }
    write(folder, "lif", lif, (10,), 32, 4.0)
    # sinabs' own defaults: several spikes a timestep, the threshold subtracted for each. The file cannot say so.
    defaults = {
        "fc1": nn.Linear(10, 16),
        "iaf1": sl.IAFSqueeze(batch_size=3),
        "fc2": nn.Linear(16, 5),
        "iaf2": sl.IAFSqueeze(batch_size=3),
    }
    write(folder, "defaults", defaults, (10,), 33, 1.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
