"""Which node of a canonical graph goes where in a NIR file; why is said in :mod:`~.writer`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stars_deploy.errors import TargetError
from stars_deploy.graph import (
    LI,
    LIF,
    BatchNorm,
    Conv2d,
    Integrator,
    Linear,
    Normalize,
    SpikingGraph,
)
from stars_deploy.targets.nir_graph.names import distinct, portable_names

#: How exactly ``dt * r`` of a readout is 1, relative: float32 has 24 bits.
UNIT = 1e-6


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The places of a graph's nodes in a file.

    Parameters
    ----------
    normalize : Normalize, optional
        The normalisation that is left out behind the input.
    readout : Integrator, optional
        The integrator that is left out before the output.
    names : mapping of str to str
        Nodes of the graph that are in the file, with their names there.
    output : str
        Name of the file's Output.
    flattenings : mapping of str to str
        For each Linear of the graph behind (C, H, W), the name in the file of the flattening that is put before it.
    edges : tuple of (str, str)
        In the names of the file.
    biases : mapping of str to str
        For each convolution of the graph whose bias differs from neuron to neuron, the population that takes it.
    """

    normalize: Normalize | None
    readout: Integrator | None
    names: Mapping[str, str]
    output: str
    flattenings: Mapping[str, str]
    edges: tuple[tuple[str, str], ...]
    biases: Mapping[str, str]


def lay_out(graph: SpikingGraph) -> Layout:
    """Find a place in a NIR file for every node of `graph`.

    Raises
    ------
    TargetError
        If a node has none.
    GraphError
        If the graph has several ends.
    """
    normalize, readout = _find_normalize(graph), _find_readout(graph)
    absent = {node.name for node in (normalize, readout) if node is not None}
    names = portable_names(node.name for node in graph.nodes if node.name not in absent)
    output = distinct("output", names.values())
    flattenings: dict[str, str] = {}
    for name, place in names.items():
        if isinstance(graph.node(name), Linear) and len(graph.shapes[graph.sources(name)[0]]) > 1:
            taken = (*names.values(), output, *flattenings.values())
            flattenings[name] = distinct(f"{place}_flatten", taken)
    return Layout(
        normalize=normalize,
        readout=readout,
        names=names,
        output=output,
        flattenings=flattenings,
        edges=_place_edges(graph, normalize, readout, names, output, flattenings),
        biases=_find_biases(graph),
    )


def _place_edges(
    graph: SpikingGraph,
    normalize: Normalize | None,
    readout: Integrator | None,
    names: Mapping[str, str],
    output: str,
    flattenings: Mapping[str, str],
) -> tuple[tuple[str, str], ...]:
    sources, targets = dict(names), {**names, **flattenings}
    edges = list(graph.edges)
    if normalize is not None:
        edges.remove((graph.input.name, normalize.name))
        sources[normalize.name] = names[graph.input.name]
    placed = [(flattenings[name], names[name]) for name in flattenings]
    if readout is None:
        placed.append((names[graph.output.name], output))
    else:
        targets[readout.name] = output
    return tuple([(sources[source], targets[target]) for source, target in edges] + placed)


def _find_normalize(graph: SpikingGraph) -> Normalize | None:
    for node in graph.nodes:
        if isinstance(node, BatchNorm):
            raise TargetError(node.name, "a BatchNorm", "a canonical graph", "canonicalize it first")
        if isinstance(node, Normalize):
            if graph.sources(node.name) != (graph.input.name,) or graph.targets(graph.input.name) != (node.name,):
                raise TargetError(
                    node.name,
                    f"fed by {', '.join(graph.sources(node.name))}; "
                    f"the input feeds {', '.join(graph.targets(graph.input.name))}",
                    "a normalisation of the input alone, and an input that feeds nothing else: NIR has no such node",
                )
            return node
    return None


def _find_readout(graph: SpikingGraph) -> Integrator | None:
    end = graph.output
    if not isinstance(end, Integrator) or graph.targets(end.name) or isinstance(end.r, np.ndarray):
        return None
    return end if abs(end.r * graph.dt - 1) <= UNIT else None


def _find_biases(graph: SpikingGraph) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in graph.nodes:
        if not isinstance(node, Conv2d) or node.bias.ndim == 1:
            continue
        targets = graph.targets(node.name)
        target = graph.node(targets[0]) if len(targets) == 1 else None
        if not isinstance(target, (LIF, LI)) or np.any(np.equal(target.r, 0)) or np.any(target.v_leak):
            got = ", ".join(f"{name} ({type(graph.node(name)).__name__})" for name in targets)
            raise TargetError(
                f"{node.name}.bias",
                f"one for each neuron, before {got}",
                "one for each channel, or before one LIF or LI with a gain and no v_leak: NIR has no other place",
            )
        if target.name in found.values():
            raise TargetError(
                f"{node.name}.bias", f"a second bias for each neuron of {target.name}", "one: its v_leak holds it"
            )
        found[node.name] = target.name
    return found
