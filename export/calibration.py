"""Data-free calibration: scales and input bits chosen on synthetic images, layer by layer.

Each layer's candidates are judged by what they do to its membrane input: the mean square difference between the
quantised and the float current, on what the float network feeds that layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stars_deploy.errors import QuantizationError
from stars_deploy.export.execution import apply_node, run_float, step_neuron
from stars_deploy.export.quantization import FloatLayer, append_layer, float_layers, quantized_input
from stars_deploy.graph import LIF, FloatArray, Integrator, SpikingGraph
from stars_deploy.quantized import QuantizedGraph, QuantizedInput

#: Candidates for the largest weight that does not saturate, as shares of the largest weight: low ones for few bits.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
#: Fewest input bits tried.
FEWEST_INPUT_BITS = 4
#: Beyond these, :attr:`LayerReport.warnings` has something to say. Our choice: none of them stops a build.
SATURATED_RATE = 0.9
LARGE_ERROR = 0.2


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What quantisation did to one layer, on the calibration images.

    Parameters
    ----------
    name : str
        Population.
    fires : bool
        False for a readout.
    scale : float
        Steps [LSB] for one unit of float potential.
    largest_weight : int
        Largest magnitude among the integer weights [LSB].
    allowed_weight : int
        Largest weight of the bits asked for [LSB].
    clipped : float
        Share of weights that saturate.
    current_error : float
        Root mean square error of the current against the threshold, relative to the root mean square of the float
        current.
    rate, quantized_rate : float
        Mean firing rate [spikes/neuron/timestep] of the float population, and of the quantised one fed by the same
        float network; 0 for a readout.
    """

    name: str
    fires: bool
    scale: float
    largest_weight: int
    allowed_weight: int
    clipped: float
    current_error: float
    rate: float
    quantized_rate: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about this layer, one sentence each; empty where all is well."""
        found = []
        if self.fires and self.rate == 0:
            found.append("never fires, not even before quantisation")
        elif self.fires and self.quantized_rate == 0:
            found.append(f"goes silent: it fired at a rate of {self.rate:.2g} before quantisation")
        if self.quantized_rate > SATURATED_RATE:
            found.append(f"is saturated: it fires at {self.quantized_rate:.0%} of all timesteps")
        if self.current_error > LARGE_ERROR:
            found.append(f"has its input current changed by {self.current_error:.0%}: use more weight bits")
        if 2 * self.largest_weight < self.allowed_weight:
            found.append(
                f"uses weights up to {self.largest_weight} of {self.allowed_weight}: "
                "its bias, threshold or accumulator limits the scale"
            )
        return tuple(f"{self.name} {text}" for text in found)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Input bits, and each population's share for :func:`~stars_deploy.export.quantization.quantize_graph`."""

    input_bits: int
    shares: Mapping[str, float]
    layers: tuple[LayerReport, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all layers."""
        return tuple(text for layer in self.layers for text in layer.warnings)


def calibrate_graph(graph: SpikingGraph, images: FloatArray, bits: int, input_bits: int) -> Calibration:
    """Choose input bits (at most `input_bits`) and shares for a lowered graph.

    Parameters
    ----------
    graph : SpikingGraph
    images : array, (N, C, H, W)
        Synthetic images in [0, 1]; a few dozen do, as the error of a current averages over neurons and timesteps too.
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
    images = np.asarray(images, dtype=np.float64)
    record = run_float(graph, images)
    built: QuantizedGraph | None = None
    shares: dict[str, float] = {}
    reports = []
    for layer in float_layers(graph):
        name = layer.neuron.name
        values = record.values[layer.source]
        bits_tried: Sequence[int] = range(input_bits, min(input_bits, FEWEST_INPUT_BITS) - 1, -1)
        inputs = [built.input] if built else [quantized_input(graph, tried) for tried in bits_tried]
        # The image is the same at every timestep: once is enough.
        seen = values[0] if layer.source == graph.input.name else values.reshape(-1, *values.shape[2:])
        best = _best_candidate(built, inputs, layer, bits, seen, graph.timesteps)
        built, input_bits = best.built, best.built.input.precision.bits
        shares[name] = best.share
        reports.append(_report(best, layer, graph, record.rate(name)))
    return Calibration(input_bits=input_bits, shares=shares, layers=tuple(reports))


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    built: QuantizedGraph
    share: float
    current: FloatArray
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
    best: _Candidate | None = None
    refusals: list[QuantizationError] = []
    for incoming in inputs:
        for share in SHARES:
            try:
                candidate = append_layer(built, incoming, layer, bits, share, timesteps)
            except QuantizationError as refused:
                refusals.append(refused)
                continue
            current = _quantized_current(candidate, layer, values)
            error = float(np.sqrt(np.mean((current - wanted) ** 2))) / size
            if best is None or error < best.error:
                best = _Candidate(built=candidate, share=share, current=current, error=error)
    if best is None:
        raise refusals[0]
    return best


def _quantized_current(graph: QuantizedGraph, layer: FloatLayer, values: FloatArray) -> FloatArray:
    """Return the current of the last layer as its integers make it, in float units.

    What a current does depends on the threshold that it stands against: so the unit is that of the rounded threshold.
    """
    scale = graph.output.scale
    if isinstance(layer.neuron, LIF):
        scale = float(np.max(graph.output.vth)) / layer.neuron.v_threshold
    weight: FloatArray = graph.projections[-1].weight / scale
    bias: FloatArray = graph.output.bias / scale
    if layer.source == graph.input.name:
        values = graph.input.quantize(values).astype(np.float64)
    return _current(layer, weight, bias, values)


def _current(layer: FloatLayer, weight: FloatArray, bias: FloatArray, values: FloatArray) -> FloatArray:
    plain = type(layer.projection)
    fields = {name: getattr(layer.projection, name) for name in plain.__dataclass_fields__}
    return apply_node(plain(**{**fields, "weight": weight, "bias": bias}), values)


def _report(best: _Candidate, layer: FloatLayer, graph: SpikingGraph, rate: float) -> LayerReport:
    projection, population = best.built.projections[-1], best.built.output
    unit = best.built.input.scale if layer.source == best.built.input.name else 1.0
    wanted = np.rint(layer.weight * population.scale / unit)
    precision = projection.precision
    return LayerReport(
        name=population.name,
        fires=population.fires,
        scale=population.scale,
        largest_weight=int(np.abs(projection.weight).max()),
        allowed_weight=precision.high,
        clipped=float(np.mean((wanted < precision.low) | (wanted > precision.high))),
        current_error=best.error,
        rate=rate if population.fires else 0.0,
        quantized_rate=_rate(layer, graph, best.current),
    )


def _rate(layer: FloatLayer, graph: SpikingGraph, current: FloatArray) -> float:
    if isinstance(layer.neuron, Integrator):
        return 0.0
    # The gain is in the current already.
    neuron = replace(layer.neuron, r=1 / layer.leak)
    if layer.source == graph.input.name:
        steps = np.broadcast_to(current, (graph.timesteps, *current.shape))
    else:
        steps = current.reshape(graph.timesteps, -1, *current.shape[1:])
    state = np.zeros(steps.shape[1:])
    rates = []
    for step in steps:
        spikes, state = step_neuron(neuron, step, state, graph.dt)
        rates.append(spikes.mean())
    return float(np.mean(rates))
