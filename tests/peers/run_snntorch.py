"""Run a NIR file in snnTorch: ``python run_snntorch.py FILE.nir INPUT.npz OUT.npz`` (see running.py)."""

from __future__ import annotations

import nir
import running
import torch
from snntorch.import_nir import import_from_nir

#: snnTorch knows no other timestep [s].
DT = 1e-4


def load(file: str, dt: float) -> torch.nn.Module:
    """Import the file; nir infers wrong shapes for kernels that are not square or have groups."""
    if dt != DT:
        raise ValueError(f"dt {dt} s: snnTorch 1.0.0 reads every file as if it had dt {DT} s")
    return import_from_nir(nir.read(file, type_check=False))


def step(net: torch.nn.Module, given: torch.Tensor, state: object) -> tuple[torch.Tensor, object]:
    """Advance by one timestep; the neurons keep their state themselves (``init_hidden``)."""
    return net(given, state)


if __name__ == "__main__":
    running.main(load, step, batched=False)
