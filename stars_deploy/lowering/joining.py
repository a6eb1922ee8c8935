"""One projection for each chain, and populations in the shape that their projections make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np

from stars_deploy.errors import GraphError
from stars_deploy.graph import Conv2d, Delay, Flatten, Linear, Neuron, Node, Pool2d, Scale, SpikingGraph
from stars_deploy.lowering.chains import Chain, chains_of, fresh_name, join_chains, populations_of
from stars_deploy.lowering.composition import Affine, append, identity, matrix, pooling, prepend


@dataclass(frozen=True, kw_only=True)
class _Link:
    source: str
    target: str
    delay: Delay | None
    part: Affine

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what the projection makes."""
        return self.part.convolved if isinstance(self.part.node, Conv2d) else self.part.node.bias.shape


def join_projections(graph: SpikingGraph) -> SpikingGraph:
    """Make one Conv2d or Linear of each chain: with the scales, pools, normalisations and flattens in it, exactly.

    A chain without a projection becomes one: a pool a depthwise convolution, anything else the identity. A population
    behind a Conv2d and a Flatten takes the convolution's shape. Where a convolution cannot stay one (a scale or a delay
    that differs from place to place, a pool whose padding mixes with values), it becomes a Linear of at most 2**22
    weights; so do all others that enter or leave the population that it feeds, which is then flat.

    Requires paths of their own (:func:`~stars_deploy.lowering.chains.separate_paths`) with delays in front
    (:func:`~stars_deploy.lowering.delays.move_delays`), and no BatchNorm. Ensures that each chain is a Conv2d or
    Linear, after a Delay or directly.

    Raises
    ------
    GraphError
        If a chain has two projections, or a matrix would have more than 2**22 weights.
    """
    taken = {node.name for node in graph.nodes}
    links = [_link(graph, chain, taken) for chain in chains_of(graph)]
    shapes = _choose_shapes(graph, links)
    chains = []
    for link in links:
        node = link.part.node
        if isinstance(node, Conv2d) and len(shapes[link.target]) == 1:
            node = matrix(link.part, f"{link.target} is fed by a matrix, or feeds one")
        elif isinstance(node, Conv2d) and len(shapes[link.source]) == 1:
            node = matrix(link.part, f"{link.source} is fed by a matrix")
        delay = link.delay
        if delay and not delay.delay.any():
            delay = None
        elif delay and delay.delay.ndim:
            delay = replace(delay, delay=delay.delay.reshape(shapes[link.source]))
        chains.append(Chain(source=link.source, target=link.target, nodes=(*([delay] if delay else []), node)))
    populations = {node.name: _reshaped(node, shapes[node.name]) for node in populations_of(graph)}
    return join_chains(graph, chains, populations)


def _link(graph: SpikingGraph, chain: Chain, taken: set[str]) -> _Link:
    nodes = chain.nodes
    delay = nodes[0] if nodes and isinstance(nodes[0], Delay) else None
    nodes = nodes[1:] if delay else nodes
    base = _base(graph, nodes)
    if base is None:
        names = [node.name for node in nodes if not isinstance(node, Flatten)]
        name = names[-1] if names else fresh_name(f"{chain.source}-{chain.target}", taken)
        part, base = identity(name, graph.shapes[chain.source]), -1
    else:
        part = _projection(graph, nodes[base])
    for node in reversed(nodes[: max(base, 0)]):
        part = prepend(part, _as_scale(node), _entering(graph, node))
    for node in nodes[base + 1 :]:
        part = append(part, _as_scale(node), graph.shapes[node.name])
    if delay and isinstance(part.node, Conv2d) and np.ptp(delay.delay):
        part = replace(part, node=matrix(part, f"{delay.name} delays elements differently"))
    return _Link(source=chain.source, target=chain.target, delay=delay, part=part)


def _base(graph: SpikingGraph, nodes: tuple[Node, ...]) -> int | None:
    """Return the place of the node that becomes the projection: the one that is one, or else the last pool."""
    every = [place for place, node in enumerate(nodes) if isinstance(node, (Conv2d, Linear))]
    mixing = [place for place in every if _as_scale(nodes[place]) is nodes[place]]
    if len(mixing) > 1:
        first, second = (nodes[place].name for place in mixing[:2])
        raise GraphError(second, f"follows {first} without a population between", "a population between projections")
    pools = [place for place, node in enumerate(nodes) if isinstance(node, Pool2d)]
    found = mixing or pools[-1:] or every[-1:]
    return found[0] if found else None


def _as_scale(node: Node) -> Node:
    """Return a Scale in place of a convolution that does no more than that."""
    if not isinstance(node, Conv2d) or node.weight.shape[1:] != (1, 1, 1) or node.groups != len(node.weight):
        return node
    plain = not node.bias.any() and node.stride == (1, 1) and node.padding == (0, 0)
    return Scale(name=node.name, scale=node.weight[:, :, 0]) if plain else node


def _projection(graph: SpikingGraph, node: Node) -> Affine:
    entering, leaving = _entering(graph, node), graph.shapes[node.name]
    if isinstance(node, Pool2d):
        return pooling(node, entering, leaving)
    if isinstance(node, (Conv2d, Linear)):
        return Affine(node=node, entering=entering, leaving=leaving)
    raise GraphError(node.name, type(node).__name__, "Conv2d, Linear or Pool2d")


def _entering(graph: SpikingGraph, node: Node) -> tuple[int, ...]:
    return graph.shapes[graph.sources(node.name)[0]]


def _choose_shapes(graph: SpikingGraph, links: Iterable[_Link]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each population: that of all the convolutions that enter it, or flat."""
    links = tuple(links)
    shapes = {graph.input.name: graph.shapes[graph.input.name]}
    for node in populations_of(graph):
        made = {link.shape for link in links if link.target == node.name}
        shapes[node.name] = made.pop() if len(made) == 1 else _flat(graph, node.name)
    pending = True
    while pending:  # a flat population flattens those that its convolutions feed
        flat = {
            link.target
            for link in links
            if isinstance(link.part.node, Conv2d) and len(shapes[link.source]) == 1 and len(shapes[link.target]) > 1
        }
        pending = bool(flat)
        shapes.update({name: _flat(graph, name) for name in flat})
    return shapes


def _flat(graph: SpikingGraph, name: str) -> tuple[int, ...]:
    return (int(np.prod(graph.shapes[name])),)


def _reshaped(node: Neuron, shape: tuple[int, ...]) -> Neuron:
    arrays = {field.name: getattr(node, field.name) for field in fields(node)}
    changes = {name: value.reshape(shape) for name, value in arrays.items() if isinstance(value, np.ndarray)}
    return replace(node, **changes)  # type: ignore[arg-type]
