"""Integers from a lowered float graph at scales that are known: the same graph and scales give the same integers.

With the scale S of a population [LSB per unit of its potential]: a weight is ``rint(w S / unit)`` with the gain of the
population in ``w`` and the input's scale as ``unit`` of what comes from there (1 otherwise), a bias ``rint(b S)``, a
threshold ``rint(threshold S)``, a decay ``rint(4096 leak)``. A bias of a current is a weight from a neuron that always
fires (:mod:`stars_deploy.lowering.constants`); an input that sets biases is in float an identity projection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from stars_deploy.errors import QuantizationError
from stars_deploy.graph import FloatArray, Linear, SpikingGraph
from stars_deploy.lowering.constants import always_firing, bias_projection, zero_projection
from stars_deploy.lowering.layers import FloatLayer, FloatProjection, float_layers
from stars_deploy.lowering.neurons import brief
from stars_deploy.precision import Precision, check_range
from stars_deploy.quantized import (
    BIAS_LIMIT,
    DECAY_ONE,
    VTH_NEVER,
    ConvProjection,
    DenseProjection,
    IntArray,
    Population,
    Projection,
    QuantizedGraph,
    QuantizedInput,
)

#: How exactly an identity adds what an input that sets biases says it does: it went through several float32.
IMAGE_NOISE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Everything beside the float graph that fixes the integers.

    Parameters
    ----------
    input : QuantizedInput
        Precision and scale of the payloads; its offset is 0 unless it biases a population.
    scales : mapping of str to float
        For each population, steps [LSB] for one unit of its float potential; in the order of the integer graph. The
        neuron that drives biases of currents is one of them.
    precisions : mapping of str to Precision
        Of each projection's weights; in the order of the integer graph. Without the projection that stands for an input
        that sets biases; with those from and to the neuron that drives biases of currents.
    resets : mapping of str to (int, int)
        ``reset_interval`` and ``reset_offset`` of the populations that have them [timesteps].
    """

    input: QuantizedInput
    scales: Mapping[str, float]
    precisions: Mapping[str, Precision]
    resets: Mapping[str, tuple[int, int]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, kw_only=True)
class RoundedLayer:
    """A population in integers, with the projections that enter it and the one that is the bias of its current."""

    population: Population
    projections: tuple[Projection, ...]
    current_bias: Projection | None = None


def rounding_of(graph: QuantizedGraph) -> Rounding:
    """Return the rounding that made `graph`."""
    return Rounding(
        input=graph.input,
        scales={population.name: population.scale for population in graph.populations},
        precisions={projection.name: projection.precision for projection in graph.projections},
        resets={
            population.name: (population.reset_interval, population.reset_offset)
            for population in graph.populations
            if population.reset_interval or population.reset_offset
        },
    )


def round_graph(graph: SpikingGraph, rounding: Rounding) -> QuantizedGraph:
    """Return the integers of a lowered graph; nothing but weights is clipped.

    Populations come in the order of ``rounding.scales``, projections in that of ``rounding.precisions``: files keep
    the nodes of a float graph in any order, but the last population is the one that is read out.

    Raises
    ------
    QuantizationError
        If the graph is not lowered (see :func:`~stars_deploy.lowering.layers.float_layers`), `rounding` is for another
        graph, a scale is not a positive number, a layer does not fit the chip's ranges at its scale, or an input that
        sets biases is not that in `graph`.
    GraphError
        If the order of `rounding` is none that the network can be executed in.
    """
    layers = {layer.name: layer for layer in float_layers(graph)}
    drives = [layer.current_bias for layer in layers.values() if layer.current_bias]
    constants = [drives[0].source] if drives else []
    _check_input(graph, rounding.input, constants)
    everyone = [*layers, *constants]
    _check_names("scales", rounding.scales, everyone)
    if rounding.input.biases:
        _detach_image(layers, rounding)
    names = [projection.name for layer in layers.values() for projection in layer.projections]
    names += [name for bias in drives for name in (bias.feed, bias.name)]
    _check_names("precisions", rounding.precisions, names)
    _check_names("resets", {**dict.fromkeys(everyone), **rounding.resets}, everyone)
    rounded = {name: round_layer(layer, rounding) for name, layer in layers.items()}
    if drives:
        name, feed = drives[0].source, drives[0].feed
        spatial = any(layer.current_bias and len(layer.shape) > 1 for layer in layers.values())
        neuron = always_firing(name, spatial, rounding.scales[name], *rounding.resets.get(name, (0, 0)))
        silent = zero_projection(feed, rounding.input, neuron, rounding.precisions[feed])
        rounded[name] = RoundedLayer(population=neuron, projections=(silent,))
    entering = [item for layer in rounded.values() for item in (*layer.projections, layer.current_bias) if item]
    projections = {projection.name: projection for projection in entering}
    return QuantizedGraph(
        input=rounding.input,
        populations=tuple(rounded[name].population for name in rounding.scales),
        projections=tuple(projections[name] for name in rounding.precisions),
        timesteps=graph.timesteps,
        labels=graph.labels,
    )


def round_layer(layer: FloatLayer, rounding: Rounding) -> RoundedLayer:
    """Return the integers of one layer; of `rounding` only what is about this layer and the input counts.

    Raises
    ------
    QuantizationError
        If the scale is not a positive number, the threshold is less than a step or beyond 2**17 of them, the bias does
        not fit 16 bits, or all weights of a projection round to 0.
    """
    scale = rounding.scales[layer.name]
    check_scale(scale, layer.name)
    interval, offset = rounding.resets.get(layer.name, (0, 0))
    population = Population(
        name=layer.name,
        shape=layer.shape,
        decay_u=np.rint(np.multiply(layer.leak_u, DECAY_ONE)).astype(np.int64),
        decay_v=np.rint(np.multiply(layer.leak_v, DECAY_ONE)).astype(np.int64),
        vth=_threshold(layer, scale),
        bias=_whole(layer.bias * scale, -BIAS_LIMIT, BIAS_LIMIT - 1, f"{layer.name}.bias"),
        reset_interval=interval,
        reset_offset=offset,
        scale=scale,
    )
    projections = (
        _projection(item, layer.name, rounding.precisions[item.name], scale / unit_of(item, rounding.input))
        for item in layer.projections
    )
    bias = layer.current_bias
    return RoundedLayer(
        population=population,
        projections=tuple(projections),
        current_bias=bias_projection(bias, layer.name, scale, rounding.precisions[bias.name]) if bias else None,
    )


def unit_of(projection: FloatProjection, incoming: QuantizedInput) -> float:
    """Return what one unit of the projection's source is as a payload [LSB]: 1 for a spike."""
    return incoming.scale if projection.source == incoming.name else 1.0


def check_scale(scale: float, where: str) -> None:
    """Refuse a scale that is not a positive number with a :class:`~stars_deploy.errors.QuantizationError`."""
    if not (scale > 0 and np.isfinite(scale)):
        raise QuantizationError(f"{where}.scale", scale, "a positive number [LSB per unit]")


def check_linear(source: QuantizedInput) -> None:
    """Refuse an input of spikes or payloads that are no multiples of its pixels; a bias may have an offset.

    Raises
    ------
    QuantizationError
        If it has an offset and biases no population, or its scale is not a positive number.
    """
    if source.offset and not source.biases:
        raise QuantizationError(f"{source.name}.offset", source.offset, "0: a float graph has no word for it")
    check_scale(source.scale, source.name)


def _check_input(graph: SpikingGraph, source: QuantizedInput, constants: list[str]) -> None:
    check_linear(source)
    if source.biases and constants:  # the neuron that drives currents is fed by the input
        got, allowed = "is a bias, and a current has another", "no bias into the current of a CubaLIF"
        raise QuantizationError(source.name, got, allowed)
    if (graph.input.name, tuple(graph.input.shape)) != (source.name, tuple(source.shape)):
        got = f"the input {source.name} of shape {source.shape}"
        raise QuantizationError("rounding", got, f"{graph.input.name} of shape {graph.input.shape}")


def _detach_image(layers: dict[str, FloatLayer], rounding: Rounding) -> None:
    """Take the identity that leads the image to the population that it biases out of `layers`.

    Of that layer only the neuron stays: the image is its bias, whatever the integers of the identity would be.
    """
    source, name = rounding.input, rounding.input.biases
    fed = [(layer.name, item) for layer in layers.values() for item in layer.projections if item.source == source.name]
    if [target for target, _ in fed] != [name]:
        got = f"feeds {', '.join(target for target, _ in fed)}"
        raise QuantizationError(source.name, got, f"{name} alone, whose bias it is, by one projection")
    layer, item, scale = layers[name], fed[0][1], rounding.scales[name]
    each = _diagonal(item, source.shape)
    if each is None or np.any(item.delay) or np.any(np.not_equal(layer.leak_u, 1)):
        got = f"with a delay, a kernel, or a current of {name} that lasts"
        raise QuantizationError(
            item.name, got, f"each pixel into its neuron, since {source.name} is the bias of {name}"
        )
    pairs = ((each * scale, source.scale), (layer.bias * scale, source.offset))
    if any(np.abs(found - stated).max() > IMAGE_NOISE * max(abs(stated), 1.0) for found, stated in pairs):
        raise QuantizationError(
            item.name,
            f"pixels times {brief(each * scale)}, plus {brief(layer.bias * scale)}",
            f"{source.scale:g} and {source.offset:g} [LSB], as {source.name} says",
        )
    others = tuple(other for other in layer.projections if other is not item)
    layers[name] = replace(layer, projections=others, bias=np.zeros(layer.shape))


def _diagonal(item: FloatProjection, shape: tuple[int, ...]) -> FloatArray | None:
    """Return the weight from each element of the source to the same one of the target, if there are no others."""
    node, weight = item.node, item.weight
    if isinstance(node, Linear):
        each = np.diagonal(weight)
        return each if weight.shape[0] == weight.shape[1] and np.count_nonzero(weight) == len(each) else None
    single = weight.shape == (shape[0], 1, 1, 1) and node.groups == shape[0]
    return weight.reshape(-1) if single and node.stride == (1, 1) and node.padding == (0, 0) else None


def _check_names(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    missing, unknown = sorted(set(known) - set(given)), sorted(set(given) - set(known))
    if missing:
        raise QuantizationError(f"rounding.{what}", f"nothing for {', '.join(missing)}", "one for each")
    if unknown:
        raise QuantizationError(f"rounding.{what}", f"unknown {', '.join(unknown)}", f"{', '.join(sorted(known))}")


def _whole(values: npt.ArrayLike, low: int, high: int, where: str) -> IntArray:
    rounded = np.rint(values)
    check_range(rounded, low, high, where)  # before the cast, which wraps
    return rounded.astype(np.int64)  # type: ignore[no-any-return]


def _threshold(layer: FloatLayer, scale: float) -> int | IntArray:
    if layer.threshold is None:
        return VTH_NEVER
    # v > threshold in float: the integer comparison is strict as well.
    steps = np.multiply(layer.threshold, scale)
    if np.rint(steps).min() < 1:
        raise QuantizationError(
            layer.name,
            f"its weights, bias and accumulator leave {steps.min():.2g} steps for its threshold",
            "at least 1 step",
            "more weight bits; or its weights or bias are out of proportion to the threshold",
        )
    return _whole(steps, 1, VTH_NEVER, f"{layer.name}.vth")


def _projection(item: FloatProjection, target: str, precision: Precision, steps: float) -> Projection:
    # Beyond its bits a weight saturates: that is what a calibrated share below 1 asks for, and it is reported.
    weight = np.clip(np.rint(item.weight * steps), precision.low, precision.high).astype(np.int64)
    if not weight.any():
        raise QuantizationError(
            item.name,
            f"its largest weight is {item.largest * steps:.2g} steps, so that all round to 0",
            "at least one other weight",
            f"the bias, threshold, accumulator or other projections of {target} leave no room: "
            "fewer timesteps, inputs or input bits, a smaller bias",
        )
    node = item.node
    if isinstance(node, Linear):
        return DenseProjection(
            name=item.name, source=item.source, target=target, weight=weight, precision=precision, delay=item.delay
        )
    return ConvProjection(
        name=item.name,
        source=item.source,
        target=target,
        weight=weight,
        precision=precision,
        stride=node.stride,
        padding=node.padding,
        dilation=node.dilation,
        groups=node.groups,
        delay=int(item.delay),
    )
