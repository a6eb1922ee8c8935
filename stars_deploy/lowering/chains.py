"""Chains: what lies between two populations, once no two paths of a graph share a node."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Optional, Union

import numpy as np

from stars_deploy.errors import GraphError
from stars_deploy.graph import NEURONS, Conv2d, Input, Linear, Neuron, Node, Normalize, SpikingGraph

#: Nodes that chains begin and end at.
ENDS = (Input, *NEURONS)
Projecting = Union[Conv2d, Linear]
#: Most nodes on all paths between populations: sums of sums would make 2**depth of them.
MOST_COPIES = 1 << 15
_Path = tuple[str, Optional["_Path"]]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Nodes without state from ``source`` (the input or a population) to the population ``target``, in order."""

    source: str
    target: str
    nodes: tuple[Node, ...]


def require_one_end(graph: SpikingGraph) -> SpikingGraph:
    """Refuse a graph in which anything does not lead to the one population that is read out.

    Requires nothing. Ensures that :attr:`~stars_deploy.graph.SpikingGraph.output` exists and that every node leads to
    it.

    Raises
    ------
    GraphError
        Naming what leads elsewhere or nowhere.
    """
    reached, pending = {graph.output.name}, [graph.output.name]
    while pending:
        for name in graph.sources(pending.pop()):
            if name not in reached:
                reached.add(name)
                pending.append(name)
    for node in graph.nodes:
        if node.name not in reached:
            raise GraphError(node.name, "leads nowhere", f"a path to {graph.output.name}", "remove it")
    return graph


def separate_paths(graph: SpikingGraph) -> SpikingGraph:
    """Give each path between populations nodes of its own, so that sums happen in populations only.

    ``W (x + y) + b = (W x + b) + W y``: a projection of a sum becomes one projection for each source, the bias kept in
    the first; a node that feeds several is copied for each. Copies are called ``name.1``, ``name.2``, ...

    Requires nothing. Ensures that each node without state has one source and one target.

    Raises
    ------
    GraphError
        If a loop passes no population, or the paths have more than 2**15 nodes together.
    """
    taken = {node.name for node in graph.nodes}
    met: set[str] = set()
    ways: dict[tuple[str, int], int] = {}  # ways to a population: a node and the way on from it, numbered
    chains = []
    for path in _paths(graph):
        nodes, way = [], ways.setdefault((path[-1], 0), len(ways) + 1)
        for name in reversed(path[1:-1]):
            node, known = graph.node(name), len(ways)
            way = ways.setdefault((name, way), known + 1)
            if len(ways) == known:  # what it adds comes along another path already
                node = _without_offset(node)
            nodes.append(node)
        for place, node in reversed(list(enumerate(nodes))):
            if node.name in met:
                nodes[place] = replace(node, name=fresh_name(node.name, taken))
            met.add(node.name)
        chains.append(Chain(source=path[0], target=path[-1], nodes=tuple(reversed(nodes))))
    return join_chains(graph, chains)


def chains_of(graph: SpikingGraph) -> tuple[Chain, ...]:
    """Return the chains of a graph after :func:`separate_paths`, those of one target together."""
    return tuple(
        Chain(source=path[0], target=path[-1], nodes=tuple(graph.node(name) for name in path[1:-1]))
        for path in _paths(graph)
    )


def join_chains(
    graph: SpikingGraph, chains: Iterable[Chain], populations: Mapping[str, Node] | None = None
) -> SpikingGraph:
    """Return `graph` with other chains, and other `populations` of the same names where given.

    A population comes after the chains that enter it, in the order in which `graph` lists populations.
    """
    into: dict[str, list[Chain]] = {}
    for chain in chains:
        into.setdefault(chain.target, []).append(chain)
    nodes: list[Node] = []
    edges: list[tuple[str, str]] = []
    for node in graph.nodes:
        if not isinstance(node, ENDS):
            continue
        for chain in into.get(node.name, []):
            names = [chain.source, *(part.name for part in chain.nodes), node.name]
            nodes.extend(chain.nodes)
            edges.extend(itertools.pairwise(names))
        nodes.append((populations or {}).get(node.name, node))
    return graph.with_nodes(tuple(nodes), tuple(edges))


def populations_of(graph: SpikingGraph) -> tuple[Neuron, ...]:
    """Return the populations of `graph`, in its order."""
    return tuple(node for node in graph.nodes if isinstance(node, NEURONS))


def fresh_name(wanted: str, taken: set[str]) -> str:
    """Return `wanted`, or ``wanted.1``, ``wanted.2``, ... if it is taken already; the name is then taken."""
    numbered = (f"{wanted}.{number}" for number in itertools.count(1))
    name = next(name for name in itertools.chain([wanted], numbered) if name not in taken)
    taken.add(name)
    return name


def _paths(graph: SpikingGraph) -> list[tuple[str, ...]]:
    """Return every path from the input or a population through nodes without state to a population."""
    _check_paths(graph)
    found = []
    for population in populations_of(graph):
        # A path is a name and the path on from it, so that paths share their ends.
        pending: list[_Path] = [
            (source, (population.name, None)) for source in reversed(graph.sources(population.name))
        ]
        while pending:
            path = pending.pop()
            if isinstance(graph.node(path[0]), ENDS):
                found.append(tuple(_names(path)))
            else:
                pending.extend((source, path) for source in reversed(graph.sources(path[0])))
    return found


def _names(path: _Path | None) -> Iterator[str]:
    while path:
        yield path[0]
        path = path[1]


def _check_paths(graph: SpikingGraph) -> None:
    """Count the nodes on all paths without following them."""
    between = [node.name for node in graph.nodes if not isinstance(node, ENDS)]
    waiting = {n: sum(not isinstance(graph.node(source), ENDS) for source in graph.sources(n)) for n in between}
    ready = [name for name, missing in waiting.items() if not missing]
    paths: dict[str, int] = {}
    lengths: dict[str, int] = {}
    for name in ready:
        paths[name] = sum(paths.get(source, 1) for source in graph.sources(name))
        lengths[name] = paths[name] + sum(lengths.get(source, 0) for source in graph.sources(name))
        for target in graph.targets(name):
            if target in waiting:
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)
    if len(ready) < len(between):
        loop = sorted(set(between) - set(ready))
        raise GraphError("edges", f"a loop without a population through {', '.join(loop)}", "a population in each loop")
    copies = sum(lengths.get(source, 0) for node in populations_of(graph) for source in graph.sources(node.name))
    if copies > MOST_COPIES:
        raise GraphError("edges", f"{copies} nodes on all paths between populations", f"at most {MOST_COPIES}")


def _without_offset(node: Node) -> Node:
    if isinstance(node, (Conv2d, Linear)):
        return replace(node, bias=np.zeros(node.weight.shape[0]))
    return replace(node, mean=np.zeros_like(node.mean)) if isinstance(node, Normalize) else node
