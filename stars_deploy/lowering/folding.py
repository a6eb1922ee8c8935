"""Normalisations into the projections beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from stars_deploy.errors import GraphError
from stars_deploy.graph import BatchNorm, Conv2d, Linear, Node, Normalize, SpikingGraph
from stars_deploy.lowering.composition import Affine, prepend, spatial
from stars_deploy.lowering.neurons import with_nodes


def fold_batch_norm(graph: SpikingGraph) -> SpikingGraph:
    """Fold each batch normalisation into the projection before it.

    Requires that its only source is a Conv2d or Linear that feeds nothing else. Ensures that no BatchNorm is left.
    ``w' = w gamma / sqrt(var + eps)``, ``b' = (b - mean) gamma / sqrt(var + eps) + beta``.

    Raises
    ------
    GraphError
        If a batch normalisation has no projection of its own before it.
    """
    folded: dict[str, Node] = {}
    into: dict[str, str] = {}  # which projection a batch normalisation has become part of
    for norm in [node for node in graph.ordered() if isinstance(node, BatchNorm)]:
        source = _lone_source(graph, norm, folded, into)
        factor = norm.gamma / np.sqrt(norm.var + norm.eps)
        axes = source.bias.ndim
        bias = (source.bias - spatial(norm.mean, axes)) * spatial(factor, axes) + spatial(norm.beta, axes)
        weight = source.weight * spatial(factor, source.weight.ndim)
        folded[source.name] = replace(source, weight=weight, bias=bias)
        into[norm.name] = source.name
    if not into:
        return graph
    nodes = tuple(folded.get(node.name, node) for node in graph.nodes if node.name not in into)
    edges = tuple((into.get(source, source), target) for source, target in graph.edges if target not in into)
    return graph.with_nodes(nodes, edges)


def fold_normalization(graph: SpikingGraph) -> SpikingGraph:
    """Fold each Normalize but one behind the input into the projections after it.

    The one that stays is fed by the input alone and all that the input feeds: other tools normalise images themselves.
    A zero-padded border is not a border of zero pixels (it is one of mean pixels), so that folding makes one bias per
    neuron there: ``b' = b - w * (mean / std)``.

    Requires that each other one feeds Conv2d or Linear nodes only, each of which has no other source. Ensures that no
    other one is left.

    Raises
    ------
    GraphError
        If one feeds anything else.
    """
    for norm in [node for node in graph.nodes if isinstance(node, Normalize)]:
        if graph.sources(norm.name) == (graph.input.name,) and graph.targets(graph.input.name) == (norm.name,):
            continue
        shape = graph.shapes[norm.name]
        folded: dict[str, Node] = {}
        for name in graph.targets(norm.name):
            node = graph.node(name)
            if not isinstance(node, (Conv2d, Linear)) or len(graph.sources(name)) != 1:
                raise GraphError(
                    norm.name,
                    f"feeds {name}, a {type(node).__name__} with {len(graph.sources(name))} sources",
                    "Conv2d or Linear that nothing else feeds; or all that the input feeds",
                )
            part = Affine(node=node, entering=shape, leaving=graph.shapes[name])
            folded[name] = prepend(part, norm, shape).node
        graph = _removed(with_nodes(graph, folded), norm)
    return graph


def _lone_source(
    graph: SpikingGraph, norm: BatchNorm, folded: Mapping[str, Node], into: Mapping[str, str]
) -> Conv2d | Linear:
    sources = graph.sources(norm.name)
    name = into.get(sources[0], sources[0])
    node = folded.get(name, graph.node(name))
    targets = graph.targets(sources[0])
    if len(sources) != 1 or not isinstance(node, (Conv2d, Linear)) or len(targets) != 1:
        raise GraphError(
            norm.name,
            f"follows {', '.join(sources)} ({type(node).__name__}, feeding {', '.join(targets)})",
            "one Conv2d or Linear that feeds nothing else",
        )
    return node


def _removed(graph: SpikingGraph, node: Node) -> SpikingGraph:
    """Return `graph` without `node`, its sources feeding its targets."""
    edges: list[tuple[str, str]] = []
    for source, target in graph.edges:
        if source == node.name:
            edges.extend((other, target) for other in graph.sources(node.name))
        elif target != node.name:
            edges.append((source, target))
    return graph.with_nodes(tuple(other for other in graph.nodes if other.name != node.name), tuple(edges))
