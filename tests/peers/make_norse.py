"""Write the norse files of tests/data/nir: ``python make_norse.py FOLDER`` (requirements-norse.txt).

``to_nir`` of norse 1.1.0 works only with parameters that are arrays, convolutions with a bias, no Flatten or pooling,
and a sample without a batch axis; each of these is kept here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nir
import norse.torch
import torch
from norse.torch.functional.iaf import IAFParameters
from norse.torch.functional.lif_box import LIFBoxParameters
from norse.torch.module.iaf import IAFCell
from norse.torch.module.lif_box import LIFBoxCell
from norse.torch.module.snn import SNNCell
from norse.torch.utils.export_nir import to_nir
from recording import fill, images_for, record, save
from torch import nn

TIMESTEPS = 12
#: norse's own default [s]; its to_nir multiplies every time constant by it. 1.0 leaves them alone.
DT = 1e-3


def write(
    folder: Path, name: str, layers: list[nn.Module], shape: tuple[int, ...], seed: int, gain: float, dt: float = 1.0
) -> None:
    """Export one network and record its own spikes on seeded images."""
    net = norse.torch.SequentialState(*layers)
    fill(net, seed, gain)
    images = images_for(shape, seed)
    neurons = [str(index) for index, module in enumerate(layers) if isinstance(module, SNNCell)]
    state: list[object] = [None]

    def step() -> torch.Tensor:
        output, state[0] = net(images, state[0])
        return output

    values = record(net, step, neurons, TIMESTEPS)
    graph = to_nir(net, images[0], dt=dt)
    graph.infer_types()  # else nir.write fails on a Conv2d, whose input_shape norse leaves None
    nir.write(folder / f"norse_{name}.nir", graph, compression=None)
    save(folder / f"norse_{name}.npz", images, values)


def lif_box(tau: float, threshold: float, *shape: int) -> LIFBoxCell:
    """Return a population with a membrane time constant of `tau` [s]."""
    arrays = {"tau_mem_inv": torch.full(shape, 1 / tau), "v_th": torch.full(shape, threshold)}
    return LIFBoxCell(LIFBoxParameters(v_leak=torch.zeros(shape), v_reset=torch.zeros(shape), **arrays), dt=DT)


def iaf(threshold: float, *shape: int) -> IAFCell:
    """Return a population without a leak."""
    return IAFCell(IAFParameters(v_th=torch.full(shape, threshold), v_reset=torch.zeros(shape)), dt=DT)


def lif(tau_syn: float, tau_mem: float, *shape: int) -> norse.torch.LIFCell:
    """Return a population with a synaptic current [s]."""
    inverses = {"tau_syn_inv": torch.full(shape, 1 / tau_syn), "tau_mem_inv": torch.full(shape, 1 / tau_mem)}
    zeros = {"v_leak": torch.zeros(shape), "v_reset": torch.zeros(shape)}
    return norse.torch.LIFCell(norse.torch.LIFParameters(v_th=torch.ones(shape), **zeros, **inverses), dt=DT)


def main(folder: Path) -> None:
    """Write every network into `folder`."""
    dense = [nn.Linear(10, 16), lif_box(4e-3, 1.0, 16), nn.Linear(16, 5, bias=False), lif_box(8e-3, 0.25, 5)]
    write(folder, "lif", dense, (10,), 41, 4.0)
    write(folder, "lif_default_dt", dense, (10,), 41, 4.0, dt=DT)  # what to_nir(net, sample) writes
    conv = [
        nn.Conv2d(1, 3, 3, stride=2, padding=1),
        lif_box(2e-3, 0.5, 3, 4, 4),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        lif_box(4e-3, 0.25, 4, 2, 2),
    ]
    write(folder, "conv", conv, (1, 8, 8), 42, 2.0)
    write(folder, "iaf", [nn.Linear(10, 16), iaf(1.0, 16), nn.Linear(16, 5), iaf(0.75, 5)], (10,), 43, 0.7)
    write(
        folder, "cuba", [nn.Linear(10, 16), lif(2e-3, 4e-3, 16), nn.Linear(16, 5), lif(2e-3, 4e-3, 5)], (10,), 44, 1.5
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
