"""What snnTorch 1.0.0 cannot do with NIR, one line each: ``python limits_snntorch.py`` (requirements-snntorch.txt)."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import nir
import snntorch
import torch
from snntorch.export_nir import export_to_nir
from snntorch.import_nir import import_from_nir
from torch import nn

DATA = Path(__file__).resolve().parents[1] / "data" / "nir"
FIVE = {"beta": torch.full((5,), 0.9), "threshold": torch.ones(5), "init_hidden": True}


def export_scalar_parameters() -> object:
    """The example of its documentation."""
    net = nn.Sequential(nn.Linear(10, 5), snntorch.Leaky(beta=0.9, init_hidden=True))
    return export_to_nir(net, torch.rand(1, 10), ignore_dims=[0])


def export_with_the_batch_axis() -> object:
    """``ignore_dims`` defaults to none."""
    return export_to_nir(nn.Sequential(nn.Linear(10, 5), snntorch.Leaky(**FIVE)), torch.rand(1, 10))


def run_rsynaptic_without_reset_delay() -> object:
    """What its own import makes of a recurrent CubaLIF."""
    return snntorch.RSynaptic(alpha=0.5, linear_features=5, reset_delay=False, **FIVE)(torch.rand(1, 5))


def import_its_own_recurrent_file() -> object:
    """A file that it wrote itself."""
    return tuple(import_from_nir(nir.read(DATA / "snntorch_rleaky.nir"))(torch.rand(10))[0].shape)


def import_its_own_average_pooling() -> object:
    """Written with a kernel of one number, wanted with two."""
    return import_from_nir(nir.read(DATA / "snntorch_conv.nir"))


def flattened() -> nn.Module:
    """Return a network with a Flatten, exported and imported."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), snntorch.Leaky(**FIVE))
    return import_from_nir(export_to_nir(net, torch.rand(1, 3, 2, 2), ignore_dims=[0]))


def run_a_batch() -> object:
    """NIR's Flatten from axis 0 becomes torch's from axis 0."""
    return tuple(flattened()(torch.rand(3, 3, 2, 2))[0].shape)


def run_a_sample_without_batch_axis() -> object:
    """The way that works."""
    return tuple(flattened()(torch.rand(3, 2, 2))[0].shape)


def import_an_if_of_r_1() -> object:
    """A neuron without a leak becomes one with a leak."""
    graph = nir.read(DATA / "norse_iaf.nir")
    return f"beta {float(import_from_nir(graph).get_submodule('1').beta):.1f}"


LIMITS: tuple[Callable[[], object], ...] = (
    export_scalar_parameters,
    export_with_the_batch_axis,
    run_rsynaptic_without_reset_delay,
    import_its_own_recurrent_file,
    import_its_own_average_pooling,
    run_a_batch,
    run_a_sample_without_batch_axis,
    import_an_if_of_r_1,
)


def answer(limit: Callable[[], object]) -> str:
    """Return what comes of it, or the first line of what snnTorch says."""
    try:
        with redirect_stdout(io.StringIO()):  # it prints as it imports
            return str(limit())
    except Exception as error:  # whatever it raises is its answer
        return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    for limit in LIMITS:
        print(f"{limit.__name__}: {answer(limit)}")
