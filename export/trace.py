"""From a trained student to its ``SpikingGraph``, layer by layer."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from stars_deploy.errors import GraphError
from stars_deploy.graph import LIF, BatchNorm, Conv2d, Input, Integrator, Linear, Node, Normalize, SpikingGraph
from stars_deploy.student import DT, THRESHOLD, SpikingLayer, Student


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
        With normalisation and batch norms as nodes of their own (see :mod:`stars_deploy.export.passes`).

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
    for layer in student.layers:
        if isinstance(layer, nn.Flatten):  # Linear flattens its input
            continue
        kind = _kind(layer)
        counts[kind] = counts.get(kind, 0) + 1
        nodes.append(_node(layer, f"{kind}{counts[kind]}"))
    nodes.append(Integrator(name="readout", r=1 / DT))
    edges = tuple((one.name, other.name) for one, other in zip(nodes, nodes[1:]))
    return SpikingGraph(nodes=tuple(nodes), edges=edges, dt=DT, timesteps=student.timesteps, labels=labels)


def _kind(layer: nn.Module) -> str:
    kinds = {
        nn.Conv2d: "conv",
        nn.Linear: "dense",
        nn.BatchNorm2d: "norm",
        nn.BatchNorm1d: "norm",
        SpikingLayer: "lif",
    }
    if type(layer) not in kinds:
        raise GraphError("student", type(layer).__name__, "Conv2d, Linear, BatchNorm, Flatten, SpikingLayer")
    return kinds[type(layer)]


def _node(layer: nn.Module, name: str) -> Node:
    if isinstance(layer, SpikingLayer):
        return LIF(name=name, tau_mem=DT / layer.gain, r=1 / layer.gain, v_threshold=THRESHOLD)
    if isinstance(layer, nn.Conv2d):
        return Conv2d(
            name=name,
            weight=_values(layer.weight),
            bias=_values(layer.bias, layer.out_channels),
            stride=_pair(layer.stride),
            padding=_pair(layer.padding),
            dilation=_pair(layer.dilation),
            groups=layer.groups,
        )
    if isinstance(layer, nn.Linear):
        return Linear(name=name, weight=_values(layer.weight), bias=_values(layer.bias, layer.out_features))
    gamma = np.ones(layer.num_features) if layer.weight is None else _values(layer.weight)
    return BatchNorm(
        name=name,
        gamma=gamma,
        beta=_values(layer.bias, layer.num_features),
        mean=_values(layer.running_mean),
        var=_values(layer.running_var),
        eps=layer.eps,
    )


def _pair(values: object) -> tuple[int, int]:
    first, second = tuple(values)  # type: ignore[arg-type,call-overload,var-annotated]
    return int(first), int(second)


def _values(tensor: Tensor | None, zeros: int = 0) -> np.ndarray:
    return np.zeros(zeros) if tensor is None else tensor.detach().double().numpy()
