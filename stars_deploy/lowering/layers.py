"""The layers of a lowered float graph: each population with everything that enters it, in units of its membrane.

The gain of a population (its ``r``, its leaks, ``w_in``) is folded into weights and bias, so that a layer of any kind
is, each timestep and in this order: ``u = (1 - leak_u) u + sum of w x + current bias``; ``v = (1 - leak_v) v + u +
bias``; a spike where ``v > threshold``, and then ``v = 0``. That is the order and the form of the integer network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Union

import numpy as np

from stars_deploy.convolution import correlate
from stars_deploy.errors import QuantizationError
from stars_deploy.graph import (
    NEURONS,
    SPIKING,
    Conv2d,
    CubaLIF,
    Delay,
    FloatArray,
    Input,
    Linear,
    Neuron,
    Node,
    Parameter,
    SpikingGraph,
)
from stars_deploy.lowering.chains import require_one_end
from stars_deploy.lowering.composition import spatial
from stars_deploy.lowering.constants import CurrentBias, name_biases
from stars_deploy.lowering.neurons import EQUAL, membrane_gain
from stars_deploy.populations import IntArray


@dataclass(frozen=True, kw_only=True)
class FloatProjection:
    """Synapses into a layer.

    Parameters
    ----------
    node : Conv2d or Linear
        Name and geometry; its own weight and bias are without the gain.
    source : str
        Input or population.
    delay : int, or array of int, (in,) [timesteps]
        One, or one for each element of the source in C order (dense synapses only).
    weight : array, of the node's weight's shape [unit of potential]
        What one unit of the source adds to ``u``.
    """

    node: Conv2d | Linear
    source: str
    delay: Union[int, IntArray]
    weight: FloatArray

    @property
    def name(self) -> str:
        """Name of the node."""
        return self.node.name

    @property
    def largest(self) -> float:
        """Largest weight magnitude."""
        return float(np.abs(self.weight).max())

    def project(self, weight: FloatArray, values: FloatArray) -> FloatArray:
        """Return what `weight` in place of the own one makes of `values`, (B, *source shape) to (B, *shape)."""
        node = self.node
        if isinstance(node, Linear):
            sums: FloatArray = values.reshape(len(values), -1) @ weight.T
            return sums
        return correlate(values, weight, node.stride, node.padding, node.dilation, node.groups)


@dataclass(frozen=True, kw_only=True)
class FloatLayer:
    """One population with all that enters it; see the module for its equations.

    Parameters
    ----------
    neuron : Neuron
    shape : tuple of int
    projections : tuple of FloatProjection
        At least one, in the order of the graph's nodes.
    bias : array, of ``shape`` [unit of potential]
        Of all projections together, or what the leak potential of a :class:`~stars_deploy.graph.CubaLIF` adds.
    leak_v, leak_u : float, or array of ``shape``
        Shares of membrane and current that a timestep takes; ``leak_u`` is 1 where there is no current.
    threshold : float, or array of ``shape``, or None
        None for a population that never fires.
    current_bias : CurrentBias, optional
        What all projections together add to ``u``; only where there is a current and its bias is not 0.
    """

    neuron: Neuron
    shape: tuple[int, ...]
    projections: tuple[FloatProjection, ...]
    bias: FloatArray
    leak_v: Parameter
    leak_u: Parameter
    threshold: Parameter | None
    current_bias: CurrentBias | None = None

    @property
    def name(self) -> str:
        """Name of the population."""
        return self.neuron.name


def float_layers(graph: SpikingGraph) -> tuple[FloatLayer, ...]:
    """Return the layers of a lowered graph, in order of execution.

    Each comes after the sources of its undelayed projections, and the output last.

    Raises
    ------
    QuantizationError
        If the graph is not lowered: a node of another kind, a population that is fed by something else than
        projections, a projection that is not fed by one input or firing population (or a delay after one) or feeds
        several; or if a leak is more than 1, a leak or reset potential is not 0, or gains or delays differ within what
        shares its weights.
    GraphError
        If the graph does not end in one population, or something does not lead there.
    """
    for node in graph.nodes:
        if not isinstance(node, (Input, Conv2d, Linear, Delay, *NEURONS)):
            allowed = "Conv2d, Linear, Delay and populations"
            raise QuantizationError(node.name, f"a {type(node).__name__}", allowed, "lower the graph first")
    require_one_end(graph)
    layers = [_float_layer(graph, node) for node in graph.ordered() if isinstance(node, NEURONS)]
    drives = {layer.name: _current_bias(graph, layer) for layer in layers if isinstance(layer.neuron, CubaLIF)}
    biases = name_biases({name: bias for name, bias in drives.items() if bias.any()}, (n.name for n in graph.nodes))
    return tuple(replace(layer, current_bias=biases.get(layer.name)) for layer in layers)


def per_output(values: Parameter | IntArray, weight: FloatArray | IntArray) -> Parameter | None:
    """Return `values` of each neuron, shaped to multiply `weight` (out, ...); None where they differ within an output.

    What a convolution makes shares its weights over space: there, values have to be the same for all of a channel.
    """
    if np.ndim(values) == 0:
        return float(np.asarray(values))
    rows = np.asarray(values, np.float64).reshape(len(weight), -1)
    if np.ptp(rows, axis=1).max() > EQUAL * np.abs(rows).max(initial=0.0):
        return None
    return rows[:, 0].reshape(-1, *[1] * (weight.ndim - 1))


def _float_layer(graph: SpikingGraph, neuron: Neuron) -> FloatLayer:
    shape = graph.shapes[neuron.name]
    leak_v, leak_u = _leak(graph, neuron, "tau_mem", 0.0), _leak(graph, neuron, "tau_syn", 1.0)
    gain = membrane_gain(neuron, graph.dt)
    _check_potentials(neuron)
    sources = graph.sources(neuron.name)
    bias = np.zeros(shape)
    projections = []
    for node in (node for node in graph.nodes if node.name in sources):
        if not isinstance(node, (Conv2d, Linear)):
            raise _misfed(graph, neuron, "Conv2d or Linear")
        if not isinstance(neuron, CubaLIF):
            bias = bias + spatial(node.bias, len(shape)) * gain
        projections.append(_float_projection(graph, node, gain))
    if isinstance(neuron, CubaLIF):
        bias = bias + neuron.v_leak * leak_v
    return FloatLayer(
        neuron=neuron,
        shape=shape,
        projections=tuple(projections),
        bias=bias,
        leak_v=leak_v,
        leak_u=leak_u,
        threshold=neuron.v_threshold if isinstance(neuron, SPIKING) else None,
    )


def _current_bias(graph: SpikingGraph, layer: FloatLayer) -> FloatArray:
    gain = membrane_gain(layer.neuron, graph.dt)
    total: FloatArray = np.zeros(layer.shape)
    for item in layer.projections:
        total = total + spatial(item.node.bias, len(layer.shape)) * gain
    return total


def _leak(graph: SpikingGraph, neuron: Neuron, constant: str, without: float) -> Parameter:
    """Return ``dt`` over a time constant, or `without` where the population has no such constant."""
    tau = getattr(neuron, constant, None)
    if tau is None:
        return without
    leak = graph.dt / tau
    if np.max(leak) > 1 + EQUAL:
        raise QuantizationError(f"{neuron.name}.{constant}", f"{np.min(tau)} s", f"at least dt = {graph.dt} s")
    limited: Parameter = np.minimum(leak, 1.0)
    return limited


def _check_potentials(neuron: Neuron) -> None:
    leak = 0.0 if isinstance(neuron, CubaLIF) else getattr(neuron, "v_leak", 0.0)
    reset = getattr(neuron, "v_reset", 0.0)
    if np.any(leak) or np.any(reset):
        raise QuantizationError(neuron.name, f"v_leak {leak}, v_reset {reset}", "0 and 0", "lower the graph first")


def _float_projection(graph: SpikingGraph, node: Conv2d | Linear, gain: Parameter) -> FloatProjection:
    if len(graph.targets(node.name)) != 1:
        raise QuantizationError(node.name, f"feeds {', '.join(graph.targets(node.name))}", "one population")
    source = before = _lone_source(graph, node)
    if isinstance(before, Delay):
        source = _lone_source(graph, before)
    if not isinstance(source, (Input, *SPIKING)):
        raise _misfed(
            graph, before if isinstance(before, Delay) else node, "one input or population that fires, or a Delay of it"
        )
    factor = per_output(gain, node.weight)
    if factor is None:
        target = graph.targets(node.name)[0]
        raise QuantizationError(
            f"{target}.r", f"a gain that differs within a channel of {node.name}", "one gain for each channel"
        )
    delay = _delay(graph, before, node) if isinstance(before, Delay) else 0
    return FloatProjection(node=node, source=source.name, delay=delay, weight=node.weight * factor)


def _delay(graph: SpikingGraph, delay: Delay, node: Conv2d | Linear) -> int | IntArray:
    steps = graph.delay_steps(delay.name).reshape(-1)
    if steps.min() == steps.max():
        return int(steps[0])
    if isinstance(node, Conv2d):
        got = f"delays from {steps.min()} to {steps.max()} timesteps into {node.name}"
        raise QuantizationError(delay.name, got, "one delay before a convolution")
    return steps


def _lone_source(graph: SpikingGraph, node: Node) -> Node | None:
    sources = graph.sources(node.name)
    return graph.node(sources[0]) if len(sources) == 1 else None


def _misfed(graph: SpikingGraph, node: Node, allowed: str) -> QuantizationError:
    sources = [graph.node(name) for name in graph.sources(node.name)]
    found = ", ".join(f"{source.name} ({type(source).__name__})" for source in sources)
    return QuantizationError(node.name, f"is fed by {found}", allowed)
