"""The float graph, executed in NumPy: what quantisation is calibrated on and compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stars_deploy.convolution import correlate
from stars_deploy.errors import GraphError
from stars_deploy.graph import (
    LIF,
    NEURONS,
    BatchNorm,
    Conv2d,
    FloatArray,
    Input,
    Integrator,
    Linear,
    Node,
    Normalize,
    SpikingGraph,
)


@dataclass(frozen=True, kw_only=True)
class FloatRecord:
    """What a float graph did.

    Parameters
    ----------
    values : mapping of str to array, (T, B, *shape)
        For each node what it passed on at each timestep; of an :class:`~stars_deploy.graph.Integrator` its potential.
    logits : array, (B, K)
        The potential of the last population after T timesteps, over T.
    """

    values: Mapping[str, FloatArray]
    logits: FloatArray

    def rate(self, name: str) -> float:
        """Mean firing rate of a population [spikes/neuron/timestep]."""
        return float(self.values[name].mean())


def run_float(graph: SpikingGraph, images: FloatArray) -> FloatRecord:
    """Execute a float graph on images (B, C, H, W), the same at every timestep; all potentials start at 0.

    Raises
    ------
    GraphError
        If the images do not fit the input, or the graph does not end in a population.
    """
    if images.ndim != len(graph.input.shape) + 1 or images.shape[1:] != tuple(graph.input.shape):
        raise GraphError(graph.input.name, f"images of shape {images.shape}", f"(samples, {graph.input.shape})")
    order = graph.ordered()
    if not isinstance(order[-1], NEURONS):
        raise GraphError(order[-1].name, f"a {type(order[-1]).__name__} at the end", "a LIF or Integrator")
    values: dict[str, list[FloatArray]] = {node.name: [] for node in order}
    membrane: dict[str, FloatArray] = {}
    for _ in range(graph.timesteps):
        for node in order:
            if isinstance(node, Input):
                values[node.name].append(images)
                continue
            incoming = np.sum([values[source][-1] for source in graph.sources(node.name)], axis=0)
            if isinstance(node, NEURONS):
                state = membrane.get(node.name, np.zeros_like(incoming))
                output, membrane[node.name] = step_neuron(node, incoming, state, graph.dt)
            else:
                output = apply_node(node, incoming)
            values[node.name].append(output)
    stacked = {name: np.stack(steps) for name, steps in values.items()}
    return FloatRecord(values=stacked, logits=membrane[order[-1].name] / graph.timesteps)


def apply_node(node: Node, values: FloatArray) -> FloatArray:
    """Apply a node without state to a batch (B, *shape).

    Raises
    ------
    GraphError
        If the node is a population or an input.
    """
    trailing = [1] * (values.ndim - 2)
    if isinstance(node, Conv2d):
        result = correlate(values, node.weight, node.stride, node.padding, node.dilation, node.groups)
        result = result + (node.bias.reshape(-1, 1, 1) if node.bias.ndim == 1 else node.bias)
    elif isinstance(node, Linear):
        result = values.reshape(len(values), -1) @ node.weight.T + node.bias
    elif isinstance(node, Normalize):
        result = (values - node.mean.reshape(-1, *trailing)) / node.std.reshape(-1, *trailing)
    elif isinstance(node, BatchNorm):
        factor = (node.gamma / np.sqrt(node.var + node.eps)).reshape(-1, *trailing)
        result = (values - node.mean.reshape(-1, *trailing)) * factor + node.beta.reshape(-1, *trailing)
    else:
        raise GraphError(node.name, type(node).__name__, "Conv2d, Linear, Normalize or BatchNorm")
    return result


def step_neuron(
    node: LIF | Integrator, current: FloatArray, state: FloatArray, dt: float
) -> tuple[FloatArray, FloatArray]:
    """Advance a population by `dt` [s] from potential `state`; return what it passes on and its new potential.

    The equations are those of :class:`~stars_deploy.graph.LIF` and :class:`~stars_deploy.graph.Integrator`.
    """
    if isinstance(node, Integrator):
        potential = state + dt * node.r * current
        return potential, potential
    potential = state + dt / node.tau_mem * (node.v_leak - state + node.r * current)
    spikes = potential > node.v_threshold
    return spikes.astype(np.float64), np.where(spikes, node.v_reset, potential)
