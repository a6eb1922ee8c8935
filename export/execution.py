"""The float graph, executed in NumPy: what quantisation is calibrated on and compared with.

Short, slow and obvious, in float64: every other reading of a float graph is measured against this one. The equations
are in the docstrings of :mod:`stars_deploy.nodes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stars_deploy.convolution import correlate
from stars_deploy.errors import GraphError
from stars_deploy.graph import (
    IF,
    LI,
    LIF,
    NEURONS,
    SPIKING,
    BatchNorm,
    Conv2d,
    CubaLIF,
    Delay,
    Flatten,
    FloatArray,
    Input,
    Linear,
    Neuron,
    Node,
    Normalize,
    Pool2d,
    Scale,
    SpikingGraph,
)


@dataclass(frozen=True, kw_only=True)
class FloatRecord:
    """What a float graph did.

    Parameters
    ----------
    values : mapping of str to array, (T, B, *shape)
        For each node what it passed on at each timestep: of a population that fires its spikes (0 or 1), of one that
        does not its potential.
    logits : array, (B, K)
        Of an output that fires: the spikes of each neuron over T. Of one that does not: its potential after T
        timesteps, over T. K neurons, flattened in C order.
    """

    values: Mapping[str, FloatArray]
    logits: FloatArray

    def rate(self, name: str) -> float:
        """Mean firing rate of a population [spikes/neuron/timestep]."""
        return float(self.values[name].mean())


def run_float(graph: SpikingGraph, images: FloatArray) -> FloatRecord:
    """Execute a float graph; each population starts at its ``v_reset`` and without current.

    Parameters
    ----------
    graph : SpikingGraph
    images : array, (B, *shape) or (T, B, *shape)
        Presented at every timestep, or one frame for each.

    Raises
    ------
    GraphError
        If the images do not fit the input or the number of timesteps, or the graph does not end in a population.
    """
    frames = _over_time(graph, np.asarray(images, dtype=np.float64))
    order, output = graph.ordered(), graph.output
    values: dict[str, list[FloatArray]] = {node.name: [] for node in order}
    batch = frames.shape[1]
    states = {n.name: initial_state(n, (batch, *graph.shapes[n.name])) for n in order if isinstance(n, NEURONS)}

    def arriving(name: str, step: int) -> FloatArray:
        sources = graph.sources(name)
        if step < 0:  # before the first timestep there was nothing
            return np.zeros((batch, *graph.shapes[sources[0]]))
        return sum((values[source][step] for source in sources[1:]), start=values[sources[0]][step])

    for step in range(graph.timesteps):
        for node in order:
            name = node.name
            if isinstance(node, Input):
                passed_on = frames[step]
            elif isinstance(node, Delay):
                delays = graph.delay_steps(name)
                passed_on = np.zeros((batch, *graph.shapes[name]))
                for delay in np.unique(delays):
                    passed_on = np.where(delays == delay, arriving(name, step - int(delay)), passed_on)
            elif isinstance(node, NEURONS):
                passed_on, states[name] = step_neuron(node, arriving(name, step), states[name], graph.dt)
            else:
                passed_on = apply_node(node, arriving(name, step))
            values[name].append(passed_on)
    stacked = {name: np.stack(steps) for name, steps in values.items()}
    total = stacked[output.name].sum(axis=0) if isinstance(output, SPIKING) else states[output.name][-1]
    return FloatRecord(values=stacked, logits=total.reshape(batch, -1) / graph.timesteps)


def _over_time(graph: SpikingGraph, images: FloatArray) -> FloatArray:
    """Return what the input shows at each timestep, (T, B, *shape)."""
    shape = tuple(graph.input.shape)
    axes = len(shape)
    if images.ndim not in (axes + 1, axes + 2) or images.shape[-axes:] != shape:
        raise GraphError(graph.input.name, f"images of shape {images.shape}", f"(samples, {shape})")
    if images.ndim == axes + 1:
        return np.broadcast_to(images, (graph.timesteps, *images.shape))
    if len(images) != graph.timesteps:
        raise GraphError(graph.input.name, f"{len(images)} frames", f"{graph.timesteps}, one for each timestep")
    return images


def apply_node(node: Node, values: FloatArray) -> FloatArray:
    """Apply a node without state to a batch (B, *shape).

    Raises
    ------
    GraphError
        If the node is a population, a delay or an input.
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
    elif isinstance(node, Scale):
        result = values * node.scale
    elif isinstance(node, Pool2d):
        channels = values.shape[1]
        result = correlate(values, np.ones((channels, 1, *node.kernel)), node.stride, node.padding, groups=channels)
        result = result / (math.prod(node.kernel) if node.average else 1)
    elif isinstance(node, Flatten):
        result = values.reshape(len(values), -1)
    else:
        raise GraphError(
            node.name, type(node).__name__, "Conv2d, Linear, Normalize, BatchNorm, Scale, Pool2d or Flatten"
        )
    return result


def initial_state(node: Neuron, shape: tuple[int, ...]) -> tuple[FloatArray, ...]:
    """Return the state that a population starts from, for :func:`step_neuron`.

    Parameters
    ----------
    node : a population
    shape : tuple of int
        (B, *shape of the population).

    Returns
    -------
    tuple of array
        The potential, at ``v_reset`` (0 where a population has none); of a :class:`~stars_deploy.nodes.CubaLIF` its
        current and then its potential.
    """
    potential = np.broadcast_to(np.asarray(node.v_reset if isinstance(node, SPIKING) else 0.0), shape)
    return (np.zeros(shape), potential) if isinstance(node, CubaLIF) else (potential,)


def step_neuron(
    node: Neuron, current: FloatArray, state: tuple[FloatArray, ...], dt: float
) -> tuple[FloatArray, tuple[FloatArray, ...]]:
    """Advance a population by one timestep.

    Parameters
    ----------
    node : a population
    current : array, (B, *shape)
        What arrives: the sum of its sources.
    state : tuple of array
        From :func:`initial_state` or the timestep before; the potential comes last.
    dt : float
        Length of the timestep [s].

    Returns
    -------
    output : array, (B, *shape)
        Spikes (0 or 1), or the potential of a population that never fires.
    state : tuple of array
    """
    potential = state[-1]
    rest: tuple[FloatArray, ...] = ()
    if isinstance(node, CubaLIF):
        synaptic = state[0] + dt / node.tau_syn * (node.w_in * current - state[0])
        potential = potential + dt / node.tau_mem * (node.v_leak - potential + node.r * synaptic)
        rest = (synaptic,)
    elif isinstance(node, (LIF, LI)):
        potential = potential + dt / node.tau_mem * (node.v_leak - potential + node.r * current)
    else:
        potential = potential + dt * node.r * current
    if not isinstance(node, (LIF, CubaLIF, IF)):
        return potential, (potential,)
    spikes = potential > node.v_threshold
    return spikes.astype(np.float64), (*rest, np.where(spikes, node.v_reset, potential))
