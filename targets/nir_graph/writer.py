"""Write a canonical :class:`~stars_deploy.graph.SpikingGraph` as a NIR file that other tools load.

What was decided, and why:

- *Grid.* NIR stores no timestep. snnTorch assumes 1e-4 s in its code, SpikingJelly defaults to it; norse and nirtorch
  take one as an option. What a network computes depends on ``dt / tau`` only, so a file is written on a grid of 1e-4
  s whatever the graph's own ``dt`` is: times and rates are rescaled, and the metadata hold both timesteps. Where
  float32 does not give the graph's own numbers back, the metadata hold them too.
- *Readout.* No tool loads ``nir.I``. An integrator at the end whose ``r`` is ``1 / dt`` is left out: the file ends in
  its projection, and the logits are the sum of the file's output over all timesteps (the metadata say so). Several
  projections into it all end in the Output, where they add up; nirtorch 2.6 returns them one by one instead.
- *Normalisation* behind the Input is left out: other tools normalise images before they feed them. The metadata hold
  it.
- *Flatten* is written before a Linear behind (C, H, W), which NIR and its tools need, from axis 0 (NIR has no batch
  axis). SpikingJelly and sinabs add the batch axis when they load it; snnTorch 1.0, norse 1.1 and nirtorch's own map
  do not, and flatten the batch too.
- *Biases* are always there, zero where there is none, because norse, snnTorch and SpikingJelly count on them, and so
  a Linear is always an ``Affine`` (norse 1.1 also swaps the axes of ``nir.Linear``). NIR's convolution has one bias
  for each channel; one for each neuron goes into ``v_leak`` of the LIF or LI behind it, where it means the same: ``v
  += dt / tau (v_leak - v + r i)`` with r = 1.
- *Arrays* are float32 (float64 would make snnTorch compute in two precisions and fail) and of the population's full
  shape (``nir.write`` fails on scalars).
- *Shapes.* nir 1.0.8 takes all kernels for square ones and the channels of a kernel for those of the input: with a
  3x5 kernel or with groups it infers wrong shapes. They are checked by the graph itself instead, and such a file is
  read with ``nir.read(path, type_check=False)``.
- *Names* have no dots and are no keywords, which torch refuses; the metadata map them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import nir
import numpy as np
import numpy.typing as npt

from stars_deploy import __version__
from stars_deploy.artifacts import written_whole
from stars_deploy.errors import ConfigError, TargetError
from stars_deploy.graph import (
    IF,
    LI,
    LIF,
    Conv2d,
    CubaLIF,
    Delay,
    Flatten,
    Input,
    Integrator,
    Linear,
    Node,
    Parameter,
    Pool2d,
    Scale,
    SpikingGraph,
)
from stars_deploy.lowering.rounding import Rounding
from stars_deploy.targets.nir_graph.grid import moved, single, timed
from stars_deploy.targets.nir_graph.layout import Layout, lay_out
from stars_deploy.targets.nir_graph.metadata import MAX_METADATA, MAX_TIMESTEPS, METADATA, Metadata
from stars_deploy.targets.nir_graph.structure import MAX_EDGES, MAX_NODES

#: The grid of the files [s]: what snnTorch and SpikingJelly take for granted.
FILE_DT = 1e-4

Array = npt.NDArray[np.float32]
Shape = tuple[int, ...]


def write_nir(
    graph: SpikingGraph, rounding: Rounding | None, path: str | os.PathLike[str], *, dt: float = FILE_DT
) -> None:
    """Write `graph` to `path`, whole or not at all; the same graph gives the same bytes.

    Parameters
    ----------
    graph : SpikingGraph
        In canonical form (:func:`stars_deploy.lowering.passes.canonicalize`): every number exact in float32.
    rounding : Rounding, optional
        What makes integers of it, for :func:`~stars_deploy.targets.nir_graph.reader.read_nir` to give back.
    path : path
    dt : float
        Timestep of the grid that the file is written on [s].

    Raises
    ------
    TargetError
        If NIR cannot carry the graph, naming the node.
    GraphError
        If the graph has several ends.
    ConfigError
        If `dt` is not above 0.
    """
    if not 0 < dt < np.inf:
        raise ConfigError("dt", dt, "more than 0 s")
    layout = lay_out(graph)
    nodes = _build_nodes(graph, layout, dt)
    if graph.timesteps > MAX_TIMESTEPS or len(nodes) > MAX_NODES or len(layout.edges) > MAX_EDGES:
        got = f"{graph.timesteps} timesteps, {len(nodes)} nodes, {len(layout.edges)} edges"
        raise TargetError(
            str(path), got, f"at most {MAX_TIMESTEPS}, {MAX_NODES} and {MAX_EDGES}, which can be read back"
        )
    text = _describe(graph, layout, rounding, dt).as_text({"stars-deploy": __version__, "nir": nir.version})
    if len(text) > MAX_METADATA:
        raise TargetError(
            str(path), f"{len(text)} bytes of metadata", f"at most {MAX_METADATA}", "use fewer different time constants"
        )
    # Without nir's inference of shapes, which is wrong for kernels that are not square.
    written = nir.NIRGraph(nodes=nodes, edges=list(layout.edges), metadata={METADATA: text}, type_check=False)
    with written_whole(path) as draft:
        nir.write(draft, written)


def _build_nodes(graph: SpikingGraph, layout: Layout, dt: float) -> dict[str, Any]:
    nodes: dict[str, Any] = {}
    for node in graph.nodes:
        if node.name not in layout.names:
            continue
        source = graph.shapes[graph.sources(node.name)[0]] if graph.sources(node.name) else ()
        if node.name in layout.flattenings:
            nodes[layout.flattenings[node.name]] = _flatten(source)
        placed = moved(_with_bias(graph, layout, node), graph.dt, dt)
        nodes[layout.names[node.name]] = _NODES[type(node)](placed, source, graph.shapes[node.name])
    end = graph.sources(layout.readout.name)[0] if layout.readout else graph.output.name
    nodes[layout.output] = nir.Output(np.array(graph.shapes[end]))
    return nodes


def _with_bias(graph: SpikingGraph, layout: Layout, node: Node) -> Node:
    """Return `node` as the file holds it: without a bias for each neuron, or with one as its ``v_leak``."""
    if isinstance(node, Conv2d) and node.name in layout.biases:
        return replace(node, bias=np.zeros(len(node.weight)))
    for conv in (graph.node(name) for name, population in layout.biases.items() if population == node.name):
        if isinstance(node, (LIF, LI)) and isinstance(conv, Conv2d):
            return replace(node, v_leak=single(node.r * conv.bias))
    return node


def _describe(graph: SpikingGraph, layout: Layout, rounding: Rounding | None, dt: float) -> Metadata:
    normalize, readout = layout.normalize, layout.readout
    return Metadata(
        file_dt=dt,
        dt=graph.dt,
        timesteps=graph.timesteps,
        low=graph.input.low,
        high=graph.input.high,
        labels=graph.labels,
        names=tuple((node.name, layout.names.get(node.name, "")) for node in graph.nodes),
        edges=graph.edges,
        normalize=None
        if normalize is None
        else (normalize.name, tuple(normalize.mean.tolist()), tuple(normalize.std.tolist())),
        readout=None if readout is None else (readout.name, float(readout.r)),
        inserted=tuple(layout.flattenings.values()),
        biases=layout.biases,
        scalars=tuple(node.name for node in graph.nodes if _is_scalar(node)),
        exact=_find_exact(graph, layout, dt),
        rounding=rounding,
    )


def _is_scalar(node: Node) -> bool:
    return (isinstance(node, Delay) and not node.delay.ndim) or (isinstance(node, Scale) and not node.scale.ndim)


def _find_exact(graph: SpikingGraph, layout: Layout, dt: float) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}

    def keep(node: Node, name: str, back: Parameter) -> None:
        values = np.asarray(getattr(node, name))
        if not np.array_equal(values, back):
            found.setdefault(node.name, {})[name] = values.reshape(-1).tolist() if values.ndim else float(values)

    for node in (node for node in graph.nodes if node.name in layout.names):
        back = moved(moved(node, graph.dt, dt), dt, graph.dt)
        for name in timed(node):
            keep(node, name, getattr(back, name))
    for conv, population in layout.biases.items():
        held, taken = _with_bias(graph, layout, graph.node(population)), graph.node(population)
        if isinstance(held, (LIF, LI)) and isinstance(taken, (LIF, LI)):
            keep(graph.node(conv), "bias", single(held.v_leak / np.asarray(taken.r)))
    return found


# ---------------------------------------------------------------- nodes


def _exact(node: Node, name: str) -> Array:
    values = np.asarray(getattr(node, name))
    if not np.array_equal(values, single(values)):
        raise TargetError(
            f"{node.name}.{name}", "numbers that float32 does not hold", "a canonical graph", "canonicalize it first"
        )
    return values.astype(np.float32)


def _full(node: Node, name: str, shape: Shape) -> Array:
    return np.ascontiguousarray(np.broadcast_to(_exact(node, name), shape))


def _conv2d(node: Conv2d, source: Shape, shape: Shape) -> Any:
    return nir.Conv2d(
        input_shape=source[1:],
        weight=_exact(node, "weight"),
        stride=node.stride,
        padding=node.padding,
        dilation=node.dilation,
        groups=node.groups,
        bias=_exact(node, "bias"),
    )


def _linear(node: Linear, source: Shape, shape: Shape) -> Any:
    return nir.Affine(weight=_exact(node, "weight"), bias=_exact(node, "bias"))


def _scale(node: Scale, source: Shape, shape: Shape) -> Any:
    return nir.Scale(scale=_full(node, "scale", shape))


def _delay(node: Delay, source: Shape, shape: Shape) -> Any:
    return nir.Delay(delay=_full(node, "delay", shape))


def _pool2d(node: Pool2d, source: Shape, shape: Shape) -> Any:
    kind = nir.AvgPool2d if node.average else nir.SumPool2d
    return kind(kernel_size=np.array(node.kernel), stride=np.array(node.stride), padding=np.array(node.padding))


def _flatten(source: Shape) -> Any:
    return nir.Flatten(input_type={"input": np.array(source)}, start_dim=0, end_dim=-1)


def _population(kind: Any, renamed: Mapping[str, str]) -> Callable[[Any, Shape, Shape], Any]:
    """Return what makes a population `kind`, of whose fields `renamed` says what they are called in the graph."""

    def build(node: Node, source: Shape, shape: Shape) -> Any:
        return kind(**{field: _full(node, name, shape) for field, name in renamed.items()})

    return build


def _fields(*names: str, **renamed: str) -> dict[str, str]:
    return {**{name: name for name in names}, **renamed}


#: For each kind of node what makes the NIR node of it, of its source's shape and of its own.
_NODES: Mapping[type, Callable[[Any, Shape, Shape], Any]] = {
    Input: lambda node, source, shape: nir.Input(np.array(shape)),
    Conv2d: _conv2d,
    Linear: _linear,
    Scale: _scale,
    Delay: _delay,
    Pool2d: _pool2d,
    Flatten: lambda node, source, shape: _flatten(source),
    LIF: _population(nir.LIF, _fields("r", "v_leak", "v_threshold", "v_reset", tau="tau_mem")),
    CubaLIF: _population(nir.CubaLIF, _fields("tau_syn", "tau_mem", "r", "w_in", "v_leak", "v_threshold", "v_reset")),
    IF: _population(nir.IF, _fields("r", "v_threshold", "v_reset")),
    LI: _population(nir.LI, _fields("r", "v_leak", tau="tau_mem")),
    Integrator: _population(nir.I, _fields("r")),
}
