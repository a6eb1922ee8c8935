"""Delays: each moves to the beginning of its chain, where spikes leave a population."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stars_deploy.errors import GraphError
from stars_deploy.graph import Conv2d, Delay, Flatten, FloatArray, Linear, Node, Normalize, Pool2d, SpikingGraph
from stars_deploy.lowering.chains import Chain, chains_of, join_chains


def move_delays(graph: SpikingGraph) -> SpikingGraph:
    """Move each delay before everything else in its chain, and add up those that meet there.

    A delay of each element passes a Flatten, a Scale and a Normalize as it is; anything that mixes elements only where
    it is the same for all. Before a delay's first output there is nothing: so it passes nothing that adds a bias.

    Requires paths of their own (:func:`~stars_deploy.lowering.chains.separate_paths`). Ensures that a delay follows the
    input or a population, at most one in each chain.

    Raises
    ------
    GraphError
        If a delay cannot pass what is before it.
    """
    return join_chains(graph, [_moved(graph, chain) for chain in chains_of(graph)])


def _moved(graph: SpikingGraph, chain: Chain) -> Chain:
    first: Delay | None = None
    passed: list[Node] = []
    for node in reversed(chain.nodes):
        if isinstance(node, Delay):
            first = replace(node, delay=node.delay + (first.delay if first else 0.0))
        else:
            passed.append(node)
            first = replace(first, delay=_pass(graph, first, node)) if first else None
    return replace(chain, nodes=(*([first] if first else []), *reversed(passed)))


def _shape_before(graph: SpikingGraph, node: Node) -> tuple[int, ...]:
    return graph.shapes[graph.sources(node.name)[0]]


def _pass(graph: SpikingGraph, node: Delay, other: Node) -> FloatArray:
    """Return the delay of what `other` makes as one of what enters `other`."""
    delay = node.delay
    offset = other.bias if isinstance(other, (Conv2d, Linear)) else getattr(other, "mean", np.zeros(1))
    if delay.any() and offset.any():
        raise GraphError(
            node.name,
            f"delays the {'mean' if isinstance(other, Normalize) else 'bias'} of {other.name}, which would begin late",
            f"no bias in {other.name}, or the delay before it",
        )
    if isinstance(other, Flatten):
        return delay.reshape(_shape_before(graph, other)) if delay.ndim else delay
    if isinstance(other, (Conv2d, Linear, Pool2d)):
        if delay.min() != delay.max():
            got = f"differs between elements ({delay.min()} to {delay.max()} s) after {other.name}"
            raise GraphError(node.name, got, f"one delay for all, or the delay before {other.name}")
        return np.asarray(delay.min())
    return delay
