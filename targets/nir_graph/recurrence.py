"""Loops of a float graph that passes no delay: which edges close them, and a delay on each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from stars_deploy.errors import GraphError
from stars_deploy.graph import NEURONS, Delay, Input, Node
from stars_deploy.targets.nir_graph.names import distinct

Edge = tuple[str, str]


def delay_loops(
    nodes: Mapping[str, Node], edges: Collection[Edge], dt: float, steps: int
) -> tuple[dict[str, Node], tuple[Edge, ...]]:
    """Return nodes and edges with a delay of `steps` timesteps in every loop that has none.

    An edge closes a loop if it goes back to a node that is still open when the graph is walked in depth-first order,
    from the input, to targets in the order of their names. The delay is put on that edge or, where it leaves a
    projection that only one node feeds and that feeds nothing else, on the edge into it, and so on back to the
    population: it is spikes that come later, while a bias of the recurrent projection acts from the first timestep
    (as in snnTorch, where a recurrent layer starts from the spikes 0). Edges from one node share one delay.

    Parameters
    ----------
    nodes : mapping of str to Node
    edges : collection of (str, str)
    dt : float
        Timestep [s].
    steps : int
        0 refuses such loops.

    Raises
    ------
    GraphError
        If there is such a loop and `steps` is 0, naming it.
    """
    closing = _closing_edges(nodes, edges, dt)
    if not closing:
        return dict(nodes), tuple(edges)
    if not steps:
        loop = next(iter(closing.values()))
        shown = " -> ".join([*loop[:8], *(["..."] if len(loop) > 8 else []), loop[0]])
        raise GraphError(
            "edges",
            f"a loop without a delay: {shown}",
            "loops with a Delay of at least a timestep: NIR does not say when a recurrent spike arrives",
            "--recurrent-delay 1 if, as in snnTorch and norse, recurrent spikes arrive one timestep later",
        )
    changed, kept = dict(nodes), list(edges)
    delays: dict[str, str] = {}
    for edge in dict.fromkeys(_move_back(edge, nodes, edges) for edge in closing):
        source, target = edge
        if source not in delays:
            delays[source] = distinct(f"{source}_delay", changed)
            changed[delays[source]] = Delay(name=delays[source], delay=np.array(steps * dt))
            kept.append((source, delays[source]))
        kept[kept.index(edge)] = (delays[source], target)
    return changed, tuple(kept)


def _closing_edges(nodes: Mapping[str, Node], edges: Iterable[Edge], dt: float) -> dict[Edge, list[str]]:
    """Return the edges that close a loop without a delay, each with the nodes of its loop."""
    late = {node.name for node in nodes.values() if isinstance(node, Delay) and np.rint(node.delay / dt).min() >= 1}
    targets: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in sorted(edges):
        if target not in late:
            targets[source].append(target)
    roots = [node.name for node in nodes.values() if isinstance(node, Input)] + sorted(late)
    closing: dict[Edge, list[str]] = {}
    closed: set[str] = set()
    for root in roots:
        # The way from the root, in order, each with what is left to visit from there.
        way = {} if root in closed else {root: iter(targets[root])}
        while way:
            name = next(reversed(way))
            target = next(way[name], "")
            if not target:
                closed.add(name)
                del way[name]
            elif target in way:
                names = list(way)
                closing[name, target] = names[names.index(target) :]
            elif target not in closed:
                way[target] = iter(targets[target])
    return closing


def _move_back(edge: Edge, nodes: Mapping[str, Node], edges: Collection[Edge]) -> Edge:
    source, target = edge
    while not isinstance(nodes[source], (*NEURONS, Input)):
        before = [one for one, other in edges if other == source]
        if len(before) != 1 or sum(one == source for one, _ in edges) != 1 or isinstance(nodes[source], Delay):
            break
        source, target = before[0], source
    return source, target
