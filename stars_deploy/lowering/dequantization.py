"""The float graph that an integer network stands for: rounded at the network's own scales it is that network again.

Every float is written so that it comes back from 32 bits: files of other tools keep no more.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from stars_deploy.errors import QuantizationError
from stars_deploy.graph import (
    IF,
    LI,
    LIF,
    Conv2d,
    CubaLIF,
    Delay,
    FloatArray,
    Input,
    Integrator,
    Linear,
    Neuron,
    Parameter,
    SpikingGraph,
)
from stars_deploy.lowering.chains import fresh_name, require_one_end
from stars_deploy.lowering.composition import identity
from stars_deploy.lowering.layers import per_output
from stars_deploy.lowering.neurons import membrane_gain
from stars_deploy.lowering.rounding import check_linear, check_scale
from stars_deploy.populations import IntArray
from stars_deploy.quantized import DECAY_ONE, ConvProjection, DenseProjection, Population, Projection, QuantizedGraph

_Made = Union[Input, Delay, Conv2d, Linear, Neuron]
#: A state that never decays, beside ones that do, gets a time constant of this many timesteps: its leak rounds to 0 in
#: units of 1/4096, and in float32 ``1 - leak`` is 1.
ENDLESS = 1 << 30
#: Weights up to here come back from products of four numbers that were rounded to 24 bits each (relative error below
#: 2**-21), whatever their size.
LARGEST_WEIGHT = 1 << 20


def dequantize(graph: QuantizedGraph, dt: float = 1e-3) -> SpikingGraph:
    """Return the float graph that `graph` is the rounding of, at ``rounding_of(graph)``.

    It is in canonical form, with two exceptions: a convolution's bias is (C, H, W) where that of its population differs
    within a channel, and gains are a power of two times the time constants where decays do. An image that sets biases
    feeds that population through an identity, with its scale as weight and its offset as bias. Resets have no float
    word; they are part of the rounding.

    Parameters
    ----------
    graph : QuantizedGraph
    dt : float
        Length of a timestep [s], which an integer network does not know.

    Raises
    ------
    QuantizationError
        Naming what a float graph cannot say, or cannot be rounded to: spikes with an offset, an image that biases a
        population whose current lasts, scales
        that are not positive, thresholds of 0, projections of zeros or of weights beyond 2**20, delays of each synapse,
        two parts of one name, floats beyond 32 bits, or an output that is not the last.
    GraphError
        Naming a population that the input does not reach, or that does not lead to the output; or a flat image of more
        than 2048 pixels that sets biases.
    """
    check_linear(graph.input)
    _check_names(graph)
    parts = {population.name: _part(graph, population, dt) for population in graph.populations}
    nodes: list[_Made] = [_input(graph)]
    edges: list[tuple[str, str]] = []
    taken = {graph.input.name, *parts, *(item.name for item in graph.projections)}
    if graph.input.biases:
        shown = _image_projection(graph, parts[graph.input.biases], taken)
        nodes.append(shown)
        edges.extend([(graph.input.name, shown.name), (shown.name, graph.input.biases)])
    for projection in graph.projections:
        delay = _delay(graph, projection, dt, taken)
        chain = [*delay, _projection(graph, projection, parts[projection.target])]
        nodes.extend(chain)
        edges.extend(itertools.pairwise([projection.source, *(node.name for node in chain), projection.target]))
    nodes.extend(part.neuron for part in parts.values())
    for node in nodes:
        _check_range(node)
    return _checked_output(
        SpikingGraph(nodes=tuple(nodes), edges=tuple(edges), dt=dt, timesteps=graph.timesteps, labels=graph.labels),
        graph,
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A population in float: its node, and the gain that the weights before it are without."""

    population: Population
    neuron: Neuron
    gain: Parameter


def _check_names(graph: QuantizedGraph) -> None:
    names = [graph.input.name, *(item.name for item in (*graph.populations, *graph.projections))]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise QuantizationError("names", f"several parts are called {', '.join(twice)}", "unique names")


def _checked_output(made: SpikingGraph, graph: QuantizedGraph) -> SpikingGraph:
    require_one_end(made)
    if made.output.name != graph.output.name:
        # Where all populations feed others, a float graph takes the last that it executes for the output.
        got, allowed = (
            f"{graph.output.name} is read out, before {made.output.name}",
            "the last population to be executed",
        )
        raise QuantizationError("graph", got, allowed)
    return made


def _input(graph: QuantizedGraph) -> Input:
    source = graph.input
    low, high = ((value - source.offset) / source.scale for value in (source.precision.low, source.precision.high))
    return Input(name=source.name, shape=tuple(source.shape), low=low, high=high)


def _part(graph: QuantizedGraph, population: Population, dt: float) -> _Part:
    """Choose the plainest neuron: with a current only where one outlasts its timestep, with a leak only where there is.

    A population that never fires and feeds others has a threshold out of its reach.
    """
    name, scale = population.name, population.scale
    check_scale(scale, name)
    silent_end = not population.fires and not any(item.source == name for item in graph.projections)
    tau_mem, tau_syn = _time_constant(population.decay_v, dt), _time_constant(population.decay_u, dt)
    r, w_in = tau_mem / dt, tau_syn / dt
    if not _is_even(graph, population):
        # The gain is the same for all neurons, and exactly so in float32, only where it is a power of two times tau.
        power = 2.0 ** round(-math.log2(dt))
        r, w_in = tau_mem * power, tau_syn * power
    if population.leaks_current:
        v_leak = population.bias / scale * (tau_mem / dt)
        neuron: Neuron = CubaLIF(
            name=name, tau_syn=tau_syn, tau_mem=tau_mem, r=r, w_in=w_in, v_leak=v_leak,
            v_threshold=_threshold(population),
        )  # fmt: skip
    elif np.max(population.decay_v) == 0:
        plain = Integrator(name=name, r=1 / dt)
        neuron = plain if silent_end else IF(name=name, r=1 / dt, v_threshold=_threshold(population))
    else:
        r = 1.0 if _is_even(graph, population) else r
        plain_leak = LI(name=name, tau_mem=tau_mem, r=r)
        neuron = plain_leak if silent_end else LIF(name=name, tau_mem=tau_mem, r=r, v_threshold=_threshold(population))
    return _Part(population=population, neuron=neuron, gain=membrane_gain(neuron, dt))


def _is_even(graph: QuantizedGraph, population: Population) -> bool:
    """Whether decays are the same wherever projections share their weights."""
    decays = (population.decay_u, population.decay_v)
    weights: list[npt.NDArray[Any]] = [item.weight for item in graph.into(population.name)]
    if graph.input.biases == population.name:
        weights.append(np.zeros((population.shape[0], *[1] * len(population.shape))))
    return all(per_output(decay, weight) is not None for weight in weights for decay in decays)


def _time_constant(decay: int | IntArray, dt: float) -> Parameter:
    """Return the time constant [s] of a decay of 0 to 4096."""
    steps: Parameter = np.where(np.equal(decay, 0), ENDLESS, DECAY_ONE / np.maximum(decay, 1))
    return dt * steps


def _threshold(population: Population) -> Parameter:
    if np.min(population.vth) < 1:
        raise QuantizationError(f"{population.name}.vth", 0, "at least 1 step: a float threshold lies above the reset")
    threshold: Parameter = population.vth / population.scale
    return threshold


def _delay(graph: QuantizedGraph, projection: Projection, dt: float, taken: set[str]) -> tuple[Delay, ...]:
    """Return the delay before a projection, if it has one, with a name that is not yet `taken`."""
    if np.max(projection.delay) == 0:
        return ()
    steps = np.asarray(projection.delay)
    if steps.ndim:
        if (steps != steps[0]).any():
            raise QuantizationError(
                f"{projection.name}.delay", "differs between synapses of one source", "one delay for each source"
            )
        steps = steps[0].reshape(graph.shape_of(projection.source))
    return (Delay(name=fresh_name(f"{projection.name}_delay", taken), delay=steps * dt),)


def _image_projection(graph: QuantizedGraph, part: _Part, taken: set[str]) -> Conv2d | Linear:
    """Return the identity that adds to the membrane what an image that sets biases does."""
    source, population = graph.input, part.population
    if population.leaks_current:
        got = f"is the bias of {population.name}, whose current lasts"
        raise QuantizationError(source.name, got, "decay_u of 4096: in float, pixels enter the current")
    node = identity(fresh_name(f"{population.name}.image", taken), population.shape).node
    steps = population.scale * np.asarray(per_output(part.gain, node.weight), np.float64)
    bias = source.offset / steps.reshape(-1)
    return replace(node, weight=node.weight * (source.scale / steps), bias=np.broadcast_to(bias, node.bias.shape))


def _projection(graph: QuantizedGraph, projection: Projection, part: _Part) -> Conv2d | Linear:
    """Undo gain and scale; the first projection into a population has all of its bias."""
    population, scale = part.population, part.population.scale
    weight = projection.weight
    if not weight.any():
        raise QuantizationError(f"{projection.name}.weight", "all weights are 0", "at least one other weight")
    largest = max(int(weight.max()), -int(weight.min()))
    if largest > LARGEST_WEIGHT:
        got = f"a weight of {largest}"
        raise QuantizationError(f"{projection.name}.weight", got, f"at most {LARGEST_WEIGHT}: float32 loses others")
    unit = graph.input.scale if projection.source == graph.input.name else 1.0
    first = graph.into(population.name)[0].name == projection.name  # an image that is the bias leaves it 0
    # The bias of a current's population is its leak potential.
    own = population.bias if first and not isinstance(part.neuron, CubaLIF) else np.zeros_like(population.bias)
    gain = np.asarray(per_output(part.gain, weight), np.float64)
    scaled = weight * (unit / scale) / gain
    bias = own / (scale * part.gain)
    if isinstance(projection, DenseProjection):
        return Linear(name=projection.name, weight=scaled, bias=bias)
    return _convolution(projection, scaled, bias)


def _convolution(projection: ConvProjection, weight: FloatArray, bias: FloatArray) -> Conv2d:
    rows = bias.reshape(len(bias), -1)
    return Conv2d(
        name=projection.name,
        weight=weight,
        bias=rows[:, 0] if (rows == rows[:, :1]).all() else bias,
        stride=projection.stride,
        padding=projection.padding,
        dilation=projection.dilation,
        groups=projection.groups,
    )


def _check_range(node: _Made) -> None:
    limits = np.finfo(np.float32)
    for name in type(node).__dataclass_fields__:
        values = getattr(node, name)
        if isinstance(values, (float, np.ndarray)):
            sizes = np.abs(np.asarray(values, np.float64))
            sizes = sizes[sizes > 0]
            if sizes.size and not (limits.tiny <= sizes.min() and sizes.max() <= limits.max):
                got = f"magnitudes from {sizes.min():.3g} to {sizes.max():.3g}"
                raise QuantizationError(f"{node.name}.{name}", got, "those of 32-bit floats", "another scale")
