"""Data-free calibration: scales and input bits chosen on synthetic images, layer by layer.

Each layer's candidates are judged by what they do to its membrane input: the mean square difference between the
quantised and the float current, on what the float network feeds that layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stars_deploy.convolution import FloatArray
from stars_deploy.errors import QuantizationError
from stars_deploy.export.execution import apply_node, run_float
from stars_deploy.export.quantization import FloatLayer, append_layer, float_layers, quantized_input
from stars_deploy.graph import SpikingGraph
from stars_deploy.quantized import QuantizedGraph, QuantizedInput

#: Candidates for the largest weight that does not saturate, as shares of the largest weight.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
#: Fewest input bits tried.
FEWEST_INPUT_BITS = 4
#: Images used: the error of a current averages over every neuron and timestep as well.
CALIBRATION_SAMPLES = 32


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What quantisation did to one layer.

    Parameters
    ----------
    name : str
        Population.
    scale : float
        Steps [LSB] for one unit of float potential.
    largest_weight : int
        Largest magnitude among the integer weights [LSB].
    clipped : float
        Share of weights that saturate.
    current_error : float
        Root mean square error of the current, relative to the root mean square of the float current.
    rate : float
        Mean firing rate of the float population [spikes/neuron/timestep] (0 for a readout).
    """

    name: str
    scale: float
    largest_weight: int
    clipped: float
    current_error: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Input bits, and each population's share for :func:`~stars_deploy.export.quantization.quantize_graph`."""

    input_bits: int
    shares: Mapping[str, float]
    layers: tuple[LayerReport, ...]


def calibrate_graph(graph: SpikingGraph, images: FloatArray, bits: int, input_bits: int) -> Calibration:
    """Choose input bits (at most `input_bits`) and shares for a lowered graph.

    Parameters
    ----------
    graph : SpikingGraph
    images : array, (N, C, H, W)
        Synthetic images in [0, 1]; the first few are used.
    bits : int
        Weight bits.
    input_bits : int

    Raises
    ------
    QuantizationError
        If there are no images, or no candidate fits.
    """
    if not len(images):
        raise QuantizationError("calibration", "no images", "at least one")
    images = np.asarray(images[:CALIBRATION_SAMPLES], dtype=np.float64)
    record = run_float(graph, images)
    built: QuantizedGraph | None = None
    incoming: QuantizedInput | None = None
    shares: dict[str, float] = {}
    reports = []
    for layer in float_layers(graph):
        values = record.values[layer.source]
        graded = layer.source == graph.input.name
        bits_tried: Sequence[int] = range(input_bits, min(input_bits, FEWEST_INPUT_BITS) - 1, -1)
        inputs = [incoming] if incoming else [quantized_input(graph, tried) for tried in bits_tried]
        seen = values[0] if graded else values.reshape(-1, *values.shape[2:])
        best = _best_candidate(built, inputs, layer, bits, seen, graph.timesteps)
        built, incoming = best.built, best.built.input
        shares[layer.neuron.name] = best.share
        fires = built.output.fires
        reports.append(_report(best, layer, record.rate(layer.neuron.name) if fires else 0.0))
    if incoming is None:
        raise QuantizationError("graph", "no populations", "at least one")
    return Calibration(input_bits=incoming.precision.bits, shares=shares, layers=tuple(reports))


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    built: QuantizedGraph
    share: float
    error: float


def _best_candidate(
    built: QuantizedGraph | None,
    inputs: Sequence[QuantizedInput],
    layer: FloatLayer,
    bits: int,
    values: FloatArray,
    timesteps: int,
) -> _Candidate:
    """Return the candidate of least current error; of equals, the first: most input bits, largest share."""
    wanted = _current(layer, layer.weight, layer.bias, values)
    size = float(np.sqrt(np.mean(wanted**2))) or 1.0
    candidates = []
    for incoming in inputs:
        for share in SHARES:
            candidate = append_layer(built, incoming, layer, bits, share, timesteps)
            weight, bias, seen = _as_float(candidate, layer, values)
            error = float(np.sqrt(np.mean((_current(layer, weight, bias, seen) - wanted) ** 2))) / size
            candidates.append(_Candidate(built=candidate, share=share, error=error))
    return min(candidates, key=lambda candidate: candidate.error)


def _as_float(graph: QuantizedGraph, layer: FloatLayer, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return weight, bias and input of the last layer as the integers represent them, in float units."""
    unit = 1.0
    if layer.source == graph.input.name:
        unit = graph.input.scale
        values = graph.input.quantize(values) / unit
    scale = graph.output.scale
    return graph.projections[-1].weight * unit / scale, graph.output.bias / scale, values


def _current(layer: FloatLayer, weight: FloatArray, bias: FloatArray, values: FloatArray) -> FloatArray:
    plain = type(layer.projection)
    fields = {name: getattr(layer.projection, name) for name in plain.__dataclass_fields__}
    return apply_node(plain(**{**fields, "weight": weight, "bias": bias}), values)


def _report(best: _Candidate, layer: FloatLayer, rate: float) -> LayerReport:
    weight = best.built.projections[-1].weight
    scale = best.built.output.scale
    unit = best.built.input.scale if layer.source == best.built.input.name else 1.0
    precision = best.built.projections[-1].precision
    wanted = np.rint(layer.weight * scale / unit)
    return LayerReport(
        name=layer.neuron.name,
        scale=scale,
        largest_weight=int(np.abs(weight).max()),
        clipped=float(np.mean((wanted < precision.low) | (wanted > precision.high))),
        current_error=best.error,
        rate=rate,
    )
