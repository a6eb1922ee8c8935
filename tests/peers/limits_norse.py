"""What norse 1.1.0 cannot do with NIR, one line each: ``python limits_norse.py`` (requirements-norse.txt)."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import nir
import norse.torch
import numpy as np
import torch
from norse.torch.functional.lif_box import LIFBoxParameters
from norse.torch.module.lif_box import LIFBoxCell
from norse.torch.utils.export_nir import to_nir
from torch import nn

DATA = Path(__file__).resolve().parents[1] / "data" / "nir"


def box(*shape: int) -> LIFBoxCell:
    """Return a population with a time constant of 4 ms, one value for each neuron."""
    arrays = {"v_leak": torch.zeros(shape), "v_th": torch.ones(shape), "v_reset": torch.zeros(shape)}
    return LIFBoxCell(LIFBoxParameters(tau_mem_inv=torch.full(shape, 250.0), **arrays))


def written(net: nn.Module, sample: torch.Tensor, **options: float) -> nir.NIRGraph:
    """Export, write and read back."""
    data = io.BytesIO()
    nir.write(data, to_nir(net, sample, **options))
    return nir.read(data)


def export_scalar_parameters() -> object:
    """norse's defaults are scalars."""
    return written(norse.torch.SequentialState(nn.Linear(10, 5), LIFBoxCell()), torch.rand(10))


def export_with_the_batch_axis() -> object:
    """The batch of the sample becomes part of the input's shape."""
    return written(norse.torch.SequentialState(nn.Linear(10, 5), box(5)), torch.rand(1, 10))


def export_a_convolution_without_bias() -> object:
    """As before a batch normalisation."""
    net = norse.torch.SequentialState(nn.Conv2d(1, 2, 3, bias=False), box(2, 6, 6))
    return written(net, torch.rand(1, 8, 8))


def export_a_convolution() -> object:
    """With a bias, but without ``infer_types()`` between export and writing."""
    return written(norse.torch.SequentialState(nn.Conv2d(1, 2, 3), box(2, 6, 6)), torch.rand(1, 8, 8))


def export_a_flatten() -> object:
    """Nor pooling, nor batch normalisation."""
    net = norse.torch.SequentialState(box(2, 3), nn.Flatten(0), nn.Linear(6, 5))
    return to_nir(net, torch.rand(2, 3)).nodes["1"]


def export_a_time_constant_of_4_ms() -> object:
    """Times are multiplied by its dt of 1e-3 s."""
    graph = written(norse.torch.SequentialState(nn.Linear(10, 5), box(5)), torch.rand(10))
    return f"{graph.nodes['1'].tau[0]:.1e} s"


def import_its_own_time_constant() -> object:
    """What comes back of 4 ms; norse keeps inverses."""
    graph = written(norse.torch.SequentialState(nn.Linear(10, 5), box(5)), torch.rand(10))
    return f"{1 / float(norse.torch.from_nir(graph).get_submodule('1').p.tau_mem_inv[0]):.1e} s"


def import_a_linear() -> object:
    """3 outputs of 2 inputs."""
    nodes = (nir.Input(np.array([2])), nir.Linear(weight=np.ones((3, 2), np.float32)), nir.Output(np.array([3])))
    graph = nir.NIRGraph.from_list(*nodes)
    name = next(key for key, node in graph.nodes.items() if isinstance(node, nir.Linear))
    layer = norse.torch.from_nir(graph).get_submodule(name)
    return f"in {layer.in_features}, out {layer.out_features}, weight {tuple(layer.weight.shape)}"


def run_a_batch() -> object:
    """NIR's Flatten from axis 0 becomes torch's from axis 0."""
    return tuple(norse.torch.from_nir(nir.read(DATA / "sinabs_conv.nir"))(torch.rand(3, 1, 8, 8))[0].shape)


LIMITS: tuple[Callable[[], object], ...] = (
    export_scalar_parameters,
    export_with_the_batch_axis,
    export_a_convolution_without_bias,
    export_a_convolution,
    export_a_flatten,
    export_a_time_constant_of_4_ms,
    import_its_own_time_constant,
    import_a_linear,
    run_a_batch,
)


def answer(limit: Callable[[], object]) -> str:
    """Return what comes of it, or the first line of what norse says."""
    try:
        return str(limit())
    except Exception as error:  # whatever it raises is its answer
        return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    for limit in LIMITS:
        print(f"{limit.__name__}: {answer(limit)}")
