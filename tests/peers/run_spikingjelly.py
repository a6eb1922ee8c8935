"""Run a NIR file in SpikingJelly: ``python run_spikingjelly.py FILE.nir INPUT.npz OUT.npz`` (see running.py)."""

from __future__ import annotations

import nir
import running
import torch
from spikingjelly.activation_based.nir_exchange import import_from_nir


def load(file: str, dt: float) -> torch.nn.Module:
    """Import the file; nir infers wrong shapes for kernels that are not square or have groups."""
    return import_from_nir(nir.read(file, type_check=False), dt=dt)


def step(net: torch.nn.Module, given: torch.Tensor, state: object) -> tuple[torch.Tensor, object]:
    """Advance by one timestep."""
    return net(given, state)


if __name__ == "__main__":
    running.main(load, step, batched=True)
