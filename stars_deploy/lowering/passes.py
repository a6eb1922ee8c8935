"""Rewrites of the float graph that keep its meaning: each says what it requires and what it ensures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from stars_deploy.convolution import correlate
from stars_deploy.errors import GraphError
from stars_deploy.graph import BatchNorm, Conv2d, FloatArray, Linear, Node, Normalize, SpikingGraph

Weighted = (Conv2d, Linear)


def fold_batch_norm(graph: SpikingGraph) -> SpikingGraph:
    """Fold each batch normalisation into the projection before it.

    Requires that its only source is a Conv2d or Linear that feeds nothing else. Ensures that no BatchNorm is left.
    ``w' = w gamma / sqrt(var + eps)``, ``b' = (b - mean) gamma / sqrt(var + eps) + beta``.

    Raises
    ------
    GraphError
        If a batch normalisation has no projection of its own before it.
    """
    for norm in [node for node in graph.nodes if isinstance(node, BatchNorm)]:
        source = _lone_source(graph, norm)
        factor = norm.gamma / np.sqrt(norm.var + norm.eps)
        bias = (source.bias - _spatial(norm.mean, source.bias)) * _spatial(factor, source.bias)
        folded = replace(
            source,
            weight=source.weight * factor.reshape(-1, *[1] * (source.weight.ndim - 1)),
            bias=bias + _spatial(norm.beta, source.bias),
        )
        graph = _merged(graph, keep=folded, drop=norm)
    return graph


def fold_normalization(graph: SpikingGraph) -> SpikingGraph:
    """Fold the input normalisation into the projection after it.

    Requires that it feeds Conv2d or Linear nodes only, each of which has no other source. Ensures that no Normalize is
    left. A zero-padded border is not a border of zero pixels (it is one of mean pixels), so the bias becomes one per
    neuron: ``b' = b - w * (mean / std)``.

    Raises
    ------
    GraphError
        If it feeds anything else.
    """
    for norm in [node for node in graph.nodes if isinstance(node, Normalize)]:
        shape = graph.shapes[norm.name]
        offset = np.broadcast_to(_spatial(norm.mean / norm.std, np.empty(shape)), shape)
        for name in graph.targets(norm.name):
            node = graph.node(name)
            if not isinstance(node, Weighted) or len(graph.sources(name)) != 1:
                raise GraphError(
                    norm.name,
                    f"feeds {name}, a {type(node).__name__} with {len(graph.sources(name))} sources",
                    "Conv2d or Linear that nothing else feeds",
                )
            graph = _with_node(graph, _shifted(node, offset, 1 / norm.std))
        graph = _removed(graph, norm)
    return graph


#: In the order in which they are applied.
PASSES: tuple[Callable[[SpikingGraph], SpikingGraph], ...] = (fold_batch_norm, fold_normalization)


def lower(graph: SpikingGraph) -> SpikingGraph:
    """Apply every pass; what is left is input, convolutions, dense layers and neurons.

    Raises
    ------
    GraphError
        Naming the pass that failed.
    """
    for step in PASSES:
        try:
            graph = step(graph)
        except GraphError as error:
            raise GraphError(f"{step.__name__}, {error.where}", error.got, error.allowed, error.remedy) from error
    return graph


def _shifted(node: Conv2d | Linear, offset: FloatArray, factor: FloatArray) -> Node:
    if isinstance(node, Linear):
        columns = np.broadcast_to(_spatial(factor, offset), offset.shape).reshape(-1)
        return replace(node, weight=node.weight * columns, bias=node.bias - node.weight @ offset.reshape(-1))
    seen = correlate(offset[None], node.weight, node.stride, node.padding, node.dilation, node.groups)[0]
    by_input = factor.reshape(node.groups, 1, -1, 1, 1)
    weight = node.weight.reshape(node.groups, -1, *node.weight.shape[1:]) * by_input
    bias = np.broadcast_to(_spatial(node.bias, seen), seen.shape) if node.bias.ndim == 1 else node.bias
    # Without padding every neuron of a channel sees the same offset, and one bias a channel is enough.
    rounding = 1e-12 * (np.abs(bias).max() + np.abs(seen).max())
    bias = bias - seen
    uniform = np.ptp(bias.reshape(len(bias), -1), axis=1).max() <= rounding
    return replace(node, weight=weight.reshape(node.weight.shape), bias=bias[:, 0, 0] if uniform else bias)


def _spatial(per_channel: FloatArray, like: FloatArray) -> FloatArray:
    return per_channel.reshape(-1, *[1] * (like.ndim - 1))


def _lone_source(graph: SpikingGraph, norm: BatchNorm) -> Conv2d | Linear:
    sources = graph.sources(norm.name)
    node = graph.node(sources[0])
    if len(sources) != 1 or not isinstance(node, Weighted) or len(graph.targets(node.name)) != 1:
        raise GraphError(
            norm.name,
            f"follows {', '.join(sources)} ({type(node).__name__}, feeding {', '.join(graph.targets(node.name))})",
            "one Conv2d or Linear that feeds nothing else",
        )
    return node


def _with_node(graph: SpikingGraph, node: Node) -> SpikingGraph:
    return graph.with_nodes(tuple(node if old.name == node.name else old for old in graph.nodes), graph.edges)


def _removed(graph: SpikingGraph, node: Node) -> SpikingGraph:
    bridges = tuple((source, target) for source in graph.sources(node.name) for target in graph.targets(node.name))
    edges = tuple(edge for edge in graph.edges if node.name not in edge) + bridges
    return graph.with_nodes(tuple(other for other in graph.nodes if other.name != node.name), edges)


def _merged(graph: SpikingGraph, keep: Node, drop: Node) -> SpikingGraph:
    return _removed(_with_node(graph, keep), drop)
