"""From the float graph to the chip's integers: the search for scales.

One scale S [LSB per unit of float potential] for each population: weights, bias and threshold of a population are
multiplied by S and rounded to nearest (:mod:`stars_deploy.lowering.rounding`), because a Loihi population has one
threshold. S is as large as the weight bits, the bias range, the threshold range and the interval proof allow, and then
chosen by calibration. All that the proof needs of other populations is whether they fire, so that loops are no matter.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from stars_deploy.bounds import bound_layer, prove_bounds
from stars_deploy.errors import QuantizationError
from stars_deploy.graph import Conv2d, Linear, SpikingGraph
from stars_deploy.lowering.layers import FloatLayer, float_layers
from stars_deploy.lowering.rounding import RoundedLayer, Rounding, round_graph, round_layer, unit_of
from stars_deploy.precision import Precision
from stars_deploy.quantized import BIAS_LIMIT, VTH_NEVER, QuantizedGraph, QuantizedInput

#: Most bits of an image's payload: what cameras and data sets have.
IMAGE_BITS = 8
#: Least and largest value that a population sends.
SPIKE_RANGE = (0, 1)
#: Most bits of the synapses that are the bias of a current.
BIAS_BITS = 16


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
        Bits of the image, unsigned, 1 to 8; 1 where the input is spikes.
    shares : mapping of str to float, optional
        For each population, the weight that just fits the bits, as a share of its largest weight; below 1 the
        largest weights saturate. From :func:`stars_deploy.export.calibration.calibrate_graph`; 1 where not given.

    Raises
    ------
    QuantizationError
        If the graph is not lowered, a layer does not fit the chip's ranges, or its accumulator cannot be proven to.
    GraphError
        If the graph does not end in one population, to read out.
    """
    incoming = quantized_input(graph, input_bits)
    layers = float_layers(graph)
    fitted = [
        fit_layer(layer, incoming, bits, (shares or {}).get(layer.name, 1.0), graph.timesteps) for layer in layers
    ]
    precision = Precision(bits=bits, signed=True)
    scales = {layer.population.name: layer.population.scale for layer in fitted}
    precisions = {node.name: precision for node in graph.nodes if isinstance(node, (Conv2d, Linear))}
    drives = [(layer, layer.current_bias) for layer in layers if layer.current_bias]
    if drives:
        constant = drives[0][1]
        scales = {constant.source: 1.0, **scales}
        precisions = {constant.feed: precision, **precisions}
        precisions.update({bias.name: _bias_precision(layer, incoming, bits) for layer, bias in drives})
    rounding = Rounding(input=incoming, scales=scales, precisions=precisions)
    built = round_graph(graph, rounding)
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


def fit_layer(layer: FloatLayer, incoming: QuantizedInput, bits: int, share: float, timesteps: int) -> RoundedLayer:
    """Round a layer at the largest scale that the ranges and the interval proof allow.

    Parameters
    ----------
    layer : FloatLayer
    incoming : QuantizedInput
    bits : int
        Weight bits, signed.
    share : float
        See :func:`quantize_graph`.
    timesteps : int

    Raises
    ------
    QuantizationError
        If `bits` or `share` is out of range, all weights of a projection are 0, or no scale keeps the accumulator
        within 24 bits and yet a threshold of at least 1 step and a weight other than 0 in each projection.
    """
    if not 2 <= bits <= 8:
        raise QuantizationError("bits", bits, "2 to 8")
    if not 0 < share <= 1:
        raise QuantizationError(f"{layer.name}, share", share, "more than 0, at most 1")
    precision = Precision(bits=bits, signed=True)
    precisions = {projection.name: precision for projection in layer.projections}
    if layer.current_bias:
        precisions[layer.current_bias.name] = _bias_precision(layer, incoming, bits)
    scale = _largest_scale(layer, incoming, bits, share)
    # Nearly always the first or second try fits. Saturated weights do not shrink with the scale, so that `used` may
    # hardly fall: the falling second factor ends the search in any case, with weights or a threshold that round to 0.
    for attempt in itertools.count():
        rounded = round_layer(layer, Rounding(input=incoming, scales={layer.name: scale}, precisions=precisions))
        used = _utilization(rounded, incoming, timesteps)
        if used <= 1:
            break
        scale *= min(0.999 / used, 0.5 ** (attempt / 32))
    return rounded


def _utilization(layer: RoundedLayer, incoming: QuantizedInput, timesteps: int) -> float:
    pixels = (incoming.precision.low, incoming.precision.high)
    synapses = (*layer.projections, *((layer.current_bias,) if layer.current_bias else ()))
    entering = ((item, pixels if item.source == incoming.name else SPIKE_RANGE) for item in synapses)
    return bound_layer(layer.population, entering, timesteps).utilization


def _bias_precision(layer: FloatLayer, incoming: QuantizedInput, bits: int) -> Precision:
    """Return the precision of the synapses that are the bias of a layer's current: as wide as what it is added to.

    A weight of an image is multiplied by payloads; that of a neuron that fires is not, and would leave the former no
    steps in the same bits. 16 bits at most: what files keep.
    """
    graded = incoming.precision.bits > 1 and any(item.source == incoming.name for item in layer.projections)
    return Precision(bits=min(bits + incoming.precision.bits, BIAS_BITS) if graded else bits, signed=True)


def _largest_scale(layer: FloatLayer, incoming: QuantizedInput, bits: int, share: float) -> float:
    """Return the largest scale at which the largest weights, biases and threshold are all in range.

    A weight of 1 in float is ``scale / unit`` steps, because graded input arrives already multiplied by its unit.
    """
    limits = []
    largest = Precision(bits=bits, signed=True).high
    for projection in layer.projections:
        if projection.largest == 0:
            allowed, remedy = "at least one other weight", "remove the layer, or train it"
            raise QuantizationError(projection.name, "all weights are 0", allowed, remedy)
        limits.append(unit_of(projection, incoming) * largest / share / projection.largest)
    if layer.current_bias:
        limits.append(_bias_precision(layer, incoming, bits).high / share / layer.current_bias.largest)
    largest_bias = float(np.abs(layer.bias).max())
    if largest_bias > 0:
        limits.append((BIAS_LIMIT - 1) / largest_bias)
    if layer.threshold is not None:
        limits.append((VTH_NEVER - 1) / float(np.max(layer.threshold)))
    return min(limits)
