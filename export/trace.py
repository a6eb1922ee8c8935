"""From a trained student to its ``SpikingGraph``, layer by layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from stars_deploy.errors import GraphError
from stars_deploy.graph import (
    LIF,
    BatchNorm,
    Conv2d,
    FloatArray,
    Input,
    Integrator,
    Linear,
    Node,
    Normalize,
    SpikingGraph,
)
from stars_deploy.spiking import DT, THRESHOLD, SpikingLayer, Student


def trace_student(student: Student, labels: tuple[str, ...] = ()) -> SpikingGraph:
    """Write down what a student in eval mode computes.

    The readout becomes an :class:`~stars_deploy.graph.Integrator`: its potential after T timesteps is T times the
    student's mean logits.

    Parameters
    ----------
    student : Student
    labels : tuple of str

    Returns
    -------
    SpikingGraph
        With normalisation and batch norms as nodes of their own (see :mod:`stars_deploy.lowering.passes`).

    Raises
    ------
    GraphError
        If the student has a layer that the graph has no word for.
    """
    form = student.form
    nodes: list[Node] = [
        Input(name="input", shape=form.shape),
        Normalize(name="normalize", mean=np.array(form.mean), std=np.array(form.std)),
    ]
    counts: dict[str, int] = {}
    for position, layer in enumerate(student.layers):
        if isinstance(layer, nn.Flatten):  # Linear flattens its input
            continue
        if type(layer) not in _WORDS:
            raise GraphError(
                f"student.layers.{position}",
                type(layer).__name__,
                ", ".join(["Flatten", *(kind.__name__ for kind in _WORDS)]),
            )
        kind, describe = _WORDS[type(layer)]
        counts[kind] = counts.get(kind, 0) + 1
        nodes.append(describe(layer, f"{kind}{counts[kind]}"))
    nodes.append(Integrator(name="readout", r=1 / DT))
    edges = tuple((one.name, other.name) for one, other in itertools.pairwise(nodes))
    return SpikingGraph(nodes=tuple(nodes), edges=edges, dt=DT, timesteps=student.timesteps, labels=labels)


def _population(layer: SpikingLayer, name: str) -> Node:
    return LIF(name=name, tau_mem=DT / layer.gain, r=1 / layer.gain, v_threshold=THRESHOLD)


def _convolution(layer: nn.Conv2d, name: str) -> Node:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise GraphError(name, f"padding {layer.padding!r}, {layer.padding_mode}", "zero padding, given as numbers")
    return Conv2d(
        name=name,
        weight=_values(layer.weight),
        bias=_values(layer.bias, layer.out_channels),
        stride=_pair(layer.stride),
        padding=_pair(layer.padding),
        dilation=_pair(layer.dilation),
        groups=layer.groups,
    )


def _dense(layer: nn.Linear, name: str) -> Node:
    return Linear(name=name, weight=_values(layer.weight), bias=_values(layer.bias, layer.out_features))


def _batch_norm(layer: Any, name: str) -> Node:
    if layer.running_mean is None or layer.running_var is None:
        raise GraphError(name, "a batch norm without running statistics", "track_running_stats=True")
    return BatchNorm(
        name=name,
        gamma=np.ones(layer.num_features) if layer.weight is None else _values(layer.weight),
        beta=_values(layer.bias, layer.num_features),
        mean=_values(layer.running_mean),
        var=_values(layer.running_var),
        eps=layer.eps,
    )


_WORDS: dict[type[nn.Module], tuple[str, Callable[[Any, str], Node]]] = {
    nn.Conv2d: ("conv", _convolution),
    nn.Linear: ("dense", _dense),
    nn.BatchNorm2d: ("norm", _batch_norm),
    nn.BatchNorm1d: ("norm", _batch_norm),
    SpikingLayer: ("lif", _population),
}


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    return int(sizes[0]), int(sizes[1])


def _values(tensor: Tensor | None, zeros: int = 0) -> FloatArray:
    return np.zeros(zeros) if tensor is None else tensor.detach().double().numpy()
