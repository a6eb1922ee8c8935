"""From the float graph to the chip's integers.

One scale S [LSB per unit of float potential] for each population: weights, bias and threshold of a population are
multiplied by S and rounded to nearest, because a Loihi population has one threshold. S is as large as the weight bits,
the bias range, the threshold range and the interval proof allow, and then chosen by calibration.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from stars_deploy.bounds import bound_population, prove_bounds
from stars_deploy.errors import QuantizationError
from stars_deploy.graph import LIF, NEURONS, Conv2d, FloatArray, Input, Integrator, Linear, Node, SpikingGraph
from stars_deploy.precision import Precision
from stars_deploy.quantized import (
    BIAS_LIMIT,
    DECAY_ONE,
    VTH_NEVER,
    ConvProjection,
    DenseProjection,
    Population,
    Projection,
    QuantizedGraph,
    QuantizedInput,
)

#: Most bits of an image's payload: what cameras and data sets have.
IMAGE_BITS = 8


@dataclass(frozen=True, kw_only=True)
class FloatLayer:
    """One projection and the population it feeds, in float, with the neuron's gain folded in.

    ``weight`` and ``bias`` give the membrane step [unit of potential] of one timestep; ``leak`` is the share of the
    potential lost in a timestep.
    """

    projection: Conv2d | Linear
    neuron: LIF | Integrator
    source: str
    shape: tuple[int, ...]
    weight: FloatArray
    bias: FloatArray
    leak: float

    @property
    def largest(self) -> float:
        """Largest weight magnitude."""
        return float(np.abs(self.weight).max())


def float_layers(graph: SpikingGraph) -> tuple[FloatLayer, ...]:
    """Return the layers of a lowered feed-forward graph, in order of execution.

    Raises
    ------
    QuantizationError
        If a population is not fed by exactly one Conv2d or Linear of its own, that by exactly one input or LIF; if a
        node is of another kind or leads nowhere; or if a leak or reset potential is not 0.
    """
    for node in graph.nodes:
        if not isinstance(node, (Input, Conv2d, Linear, *NEURONS)):
            raise QuantizationError(
                node.name, f"a {type(node).__name__}", "Conv2d, Linear, LIF, Integrator", "lower the graph first"
            )
    layers = tuple(_float_layer(graph, node) for node in graph.ordered() if isinstance(node, NEURONS))
    ends = [node.name for node in graph.nodes if not graph.targets(node.name)]
    if not layers or ends != [layers[-1].neuron.name]:  # at least one layer, then: callers rely on it
        raise QuantizationError("graph", f"ends in {', '.join(ends)}", "one population, to read out")
    return layers


def _float_layer(graph: SpikingGraph, neuron: LIF | Integrator) -> FloatLayer:
    projection = _lone_source(graph, neuron)
    if not isinstance(projection, (Conv2d, Linear)):
        raise _misfed(graph, neuron, "one Conv2d or Linear")
    source = _lone_source(graph, projection)
    if not isinstance(source, (Input, LIF)):
        raise _misfed(graph, projection, "one input or LIF")
    if len(graph.targets(projection.name)) != 1:
        raise QuantizationError(projection.name, f"feeds {', '.join(graph.targets(projection.name))}", "one population")
    leak = 0.0
    gain = graph.dt * neuron.r
    if isinstance(neuron, LIF):
        if neuron.v_leak or neuron.v_reset:
            raise QuantizationError(neuron.name, f"v_leak {neuron.v_leak}, v_reset {neuron.v_reset}", "0 and 0")
        leak = graph.dt / neuron.tau_mem
        gain = leak * neuron.r
        if not 0 <= leak <= 1:
            raise QuantizationError(f"{neuron.name}.tau_mem", f"{neuron.tau_mem} s", f"at least dt = {graph.dt} s")
    shape = graph.shapes[neuron.name]
    bias = projection.bias
    if bias.ndim == 1 and len(shape) == 3:
        bias = np.broadcast_to(bias.reshape(-1, 1, 1), shape)
    return FloatLayer(
        projection=projection,
        neuron=neuron,
        source=source.name,
        shape=shape,
        weight=projection.weight * gain,
        bias=bias * gain,
        leak=leak,
    )


def _lone_source(graph: SpikingGraph, node: Node) -> Node | None:
    sources = graph.sources(node.name)
    return graph.node(sources[0]) if len(sources) == 1 else None


def _misfed(graph: SpikingGraph, node: Node, allowed: str) -> QuantizationError:
    sources = [graph.node(name) for name in graph.sources(node.name)]
    found = ", ".join(f"{source.name} ({type(source).__name__})" for source in sources)
    return QuantizationError(node.name, f"is fed by {found}", allowed)


def quantize_graph(
    graph: SpikingGraph, bits: int, input_bits: int, shares: Mapping[str, float] | None = None
) -> QuantizedGraph:
    """Quantise a lowered graph and prove its bounds.

    Parameters
    ----------
    graph : SpikingGraph
        After :func:`stars_deploy.lowering.passes.lower`.
    bits : int
        Weight bits, signed, 2 to 8.
    input_bits : int
        Bits of the image, unsigned, 1 to 8.
    shares : mapping of str to float, optional
        For each population, the weight that just fits the bits, as a share of its largest weight; below 1 the
        largest weights saturate. From :func:`stars_deploy.export.calibration.calibrate_graph`; 1 where not given.

    Raises
    ------
    QuantizationError
        If a layer does not fit the chip's ranges, or its accumulator cannot be proven to.
    """
    incoming = quantized_input(graph, input_bits)
    first, *others = ((layer, (shares or {}).get(layer.neuron.name, 1.0)) for layer in float_layers(graph))
    built = append_layer(None, incoming, first[0], bits, first[1], graph.timesteps)
    for layer, share in others:
        built = append_layer(built, incoming, layer, bits, share, graph.timesteps)
    built = replace(built, labels=graph.labels)
    prove_bounds(built)
    return built


def quantized_input(graph: SpikingGraph, bits: int) -> QuantizedInput:
    """Return the integer input of a float graph, its largest pixel at the top of the range.

    Raises
    ------
    QuantizationError
        If pixels can be negative (graded input is unsigned) or can only be 0, or `bits` is out of range.
    """
    if graph.input.low < 0 or graph.input.high <= 0:
        raise QuantizationError(
            graph.input.name, f"pixels from {graph.input.low} to {graph.input.high}", "from 0 to a positive number"
        )
    if not 1 <= bits <= IMAGE_BITS:
        raise QuantizationError(f"{graph.input.name}.precision", f"{bits} bits", f"1 to {IMAGE_BITS}")
    precision = Precision(bits=bits, signed=False)
    scale = precision.high / graph.input.high
    return QuantizedInput(name=graph.input.name, shape=graph.input.shape, precision=precision, scale=scale)


def append_layer(
    built: QuantizedGraph | None,
    incoming: QuantizedInput,
    layer: FloatLayer,
    bits: int,
    share: float,
    timesteps: int,
) -> QuantizedGraph:
    """Append a layer at the largest scale that the ranges and the interval proof allow.

    Parameters
    ----------
    built : QuantizedGraph or None
        The layers before it.
    incoming : QuantizedInput
    layer : FloatLayer
    bits : int
        Weight bits, signed.
    share : float
        See :func:`quantize_graph`.
    timesteps : int

    Raises
    ------
    QuantizationError
        If `bits` or `share` is out of range, all weights are 0, or no scale keeps the accumulator within 24 bits
        and yet a threshold of at least 1 step and a weight other than 0.
    """
    if not 2 <= bits <= 8:
        raise QuantizationError("bits", bits, "2 to 8")
    if not 0 < share <= 1:
        raise QuantizationError(f"{layer.neuron.name}, share", share, "more than 0, at most 1")
    precision = Precision(bits=bits, signed=True)
    unit = incoming.scale if layer.source == incoming.name else 1.0
    if layer.largest == 0:
        raise QuantizationError(
            layer.projection.name, "all weights are 0", "at least one other weight", "remove the layer, or train it"
        )
    scale = _largest_scale(layer, unit * precision.high / share)
    # Nearly always the first or second try fits. Saturated weights do not shrink with the scale, so that `used` may
    # hardly fall: the falling second factor ends the search in any case, with weights or a threshold that round to 0.
    for attempt in itertools.count():
        candidate = _appended(built, incoming, layer, precision, scale, unit, timesteps)
        used = bound_population(candidate, candidate.output).utilization
        if used <= 1:
            break
        scale *= min(0.999 / used, 0.5 ** (attempt / 32))
    return candidate


def _largest_scale(layer: FloatLayer, weight_steps: float) -> float:
    """Return the largest scale at which largest weight, bias and threshold are all in range.

    A weight of 1 in float is ``scale / unit`` steps, because graded input arrives already multiplied by its unit; so
    `weight_steps` is ``unit`` times the largest integer weight.
    """
    scale = weight_steps / layer.largest
    largest_bias = float(np.abs(layer.bias).max())
    if largest_bias > 0:
        scale = min(scale, (BIAS_LIMIT - 1) / largest_bias)
    if isinstance(layer.neuron, LIF):
        scale = min(scale, (VTH_NEVER - 1) / layer.neuron.v_threshold)
    return scale


def _appended(
    built: QuantizedGraph | None,
    incoming: QuantizedInput,
    layer: FloatLayer,
    precision: Precision,
    scale: float,
    unit: float,
    timesteps: int,
) -> QuantizedGraph:
    population = Population(
        name=layer.neuron.name,
        shape=layer.shape,
        decay_v=round(layer.leak * DECAY_ONE),
        vth=_threshold(layer.neuron, scale),
        bias=np.rint(layer.bias * scale).astype(np.int64),
        scale=scale,
    )
    projection = _projection(layer, precision, scale / unit)
    return QuantizedGraph(
        input=incoming,
        populations=(*(built.populations if built else ()), population),
        projections=(*(built.projections if built else ()), projection),
        timesteps=timesteps,
    )


def _threshold(neuron: LIF | Integrator, scale: float) -> int:
    if isinstance(neuron, Integrator):
        return VTH_NEVER
    # v > threshold in float: the integer comparison is strict as well.
    vth = round(neuron.v_threshold * scale)
    if vth < 1:
        raise QuantizationError(
            neuron.name,
            f"its weights, bias and accumulator leave {neuron.v_threshold * scale:.2g} steps for its threshold",
            "at least 1 step",
            "more weight bits; or its weights or bias are out of proportion to the threshold",
        )
    return vth


def _projection(layer: FloatLayer, precision: Precision, steps: float) -> Projection:
    # Beyond its bits a weight saturates: that is what a calibrated share below 1 asks for, and it is reported.
    weight = np.clip(np.rint(layer.weight * steps), precision.low, precision.high).astype(np.int64)
    name, target = layer.projection.name, layer.neuron.name
    if not weight.any():
        raise QuantizationError(
            name,
            f"its largest weight is {layer.largest * steps:.2g} steps, so that all round to 0",
            "at least one other weight",
            f"the bias, threshold or accumulator of {target} leaves no room: fewer timesteps or inputs, a smaller bias",
        )
    if isinstance(layer.projection, Linear):
        return DenseProjection(name=name, source=layer.source, target=target, weight=weight, precision=precision)
    return ConvProjection(
        name=name,
        source=layer.source,
        target=target,
        weight=weight,
        precision=precision,
        stride=layer.projection.stride,
        padding=layer.projection.padding,
        dilation=layer.projection.dilation,
        groups=layer.projection.groups,
    )
