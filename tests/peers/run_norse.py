"""Run a NIR file in norse: ``python run_norse.py FILE.nir INPUT.npz OUT.npz`` (see running.py)."""

from __future__ import annotations

import nir
import norse.torch
import running
import torch


def load(file: str, dt: float) -> torch.nn.Module:
    """Import the file; nir infers wrong shapes for kernels that are not square or have groups."""
    return norse.torch.from_nir(nir.read(file, type_check=False), dt=dt)


def step(net: torch.nn.Module, given: torch.Tensor, state: object) -> tuple[torch.Tensor, object]:
    """Advance by one timestep."""
    return net(given, state)


if __name__ == "__main__":
    running.main(load, step, batched=False)
