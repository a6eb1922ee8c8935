"""The float graph, executed in NumPy: what quantisation is calibrated on and compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stars_deploy.convolution import FloatArray, correlate
from stars_deploy.errors import GraphError
from stars_deploy.graph import LIF, BatchNorm, Conv2d, Input, Integrator, Linear, Node, Normalize, SpikingGraph


@dataclass(frozen=True, kw_only=True)
class FloatRecord:
    """What a float graph did: for each node the value it passed on at each timestep, (T, B, *shape).

    The value of an :class:`~stars_deploy.graph.Integrator` is its potential.
    """

    values: Mapping[str, FloatArray]
    logits: FloatArray

    def rate(self, name: str) -> float:
        """Mean firing rate of a population [spikes/neuron/timestep]."""
        return float(self.values[name].mean())


def run_float(graph: SpikingGraph, images: FloatArray) -> FloatRecord:
    """Execute a float graph from rest on images (B, C, H, W), the same at every timestep.

    Returns
    -------
    FloatRecord
        ``logits`` (B, K): the potential of the last population after T timesteps, over T.
    """
    values: dict[str, list[FloatArray]] = {node.name: [] for node in graph.nodes}
    order = graph.ordered()
    membrane: dict[str, FloatArray] = {}
    for _ in range(graph.timesteps):
        for node in order:
            if isinstance(node, Input):
                values[node.name].append(images)
                continue
            incoming = sum(values[source][-1] for source in graph.sources(node.name))
            if isinstance(node, (LIF, Integrator)):
                state = membrane.get(node.name, np.float64(0))
                output, membrane[node.name] = _stepped(node, incoming, state, graph.dt)
            else:
                output = apply_node(node, incoming)
            values[node.name].append(output)
    stacked = {name: np.stack(steps) for name, steps in values.items()}
    return FloatRecord(values=stacked, logits=stacked[order[-1].name][-1] / graph.timesteps)


def apply_node(node: Node, values: FloatArray) -> FloatArray:
    """Apply a node without state to a batch (B, *shape).

    Raises
    ------
    GraphError
        If the node is a population or an input.
    """
    if isinstance(node, Conv2d):
        result = correlate(values, node.weight, node.stride, node.padding, node.dilation, node.groups)
        return result + (node.bias.reshape(-1, 1, 1) if node.bias.ndim == 1 else node.bias)
    if isinstance(node, Linear):
        return values.reshape(len(values), -1) @ node.weight.T + node.bias
    trailing = [1] * (values.ndim - 2)
    if isinstance(node, Normalize):
        return (values - node.mean.reshape(-1, *trailing)) / node.std.reshape(-1, *trailing)
    if isinstance(node, BatchNorm):
        factor = node.gamma / np.sqrt(node.var + node.eps)
        return (values - node.mean.reshape(-1, *trailing)) * factor.reshape(-1, *trailing) + node.beta.reshape(
            -1, *trailing
        )
    raise GraphError(node.name, type(node).__name__, "Conv2d, Linear, Normalize or BatchNorm")


def _stepped(
    node: LIF | Integrator, current: FloatArray, state: FloatArray | np.float64, dt: float
) -> tuple[FloatArray, FloatArray]:
    if isinstance(node, Integrator):
        potential = state + dt * node.r * current
        return potential, potential
    potential = state + dt / node.tau_mem * (node.v_leak - state + node.r * current)
    spikes = potential > node.v_threshold
    return spikes.astype(np.float64), np.where(spikes, node.v_reset, potential)
