"""Data-free calibration: scales and input bits chosen on synthetic images, layer by layer.

Each layer's candidates are judged by what they do to its membrane input: the mean square difference between the
quantised and the float current, on what the float network feeds that layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stars_deploy.errors import QuantizationError
from stars_deploy.export.execution import run_float
from stars_deploy.export.quantization import fit_layer, quantized_input
from stars_deploy.graph import FloatArray, Parameter, SpikingGraph
from stars_deploy.lowering.constants import bias_steps
from stars_deploy.lowering.layers import FloatLayer, FloatProjection, float_layers
from stars_deploy.lowering.rounding import RoundedLayer, unit_of
from stars_deploy.quantized import STATE_EXP, IntArray, Population, QuantizedInput, decayed

#: Candidates for the largest weight that does not saturate, as shares of the largest weight: low ones for few bits.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
#: Fewest input bits tried.
FEWEST_INPUT_BITS = 4
#: Beyond these, there is something to warn of. Our choice: none of them stops a build.
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
        Largest magnitude among the integer weights of all projections [LSB].
    allowed_weight : int
        Largest weight of the bits asked for [LSB].
    clipped : float
        Share of weights that saturate.
    weight_error : float
        Root mean square error of the integer weights of all projections, relative to the root mean square of the float
        weights in steps.
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
    weight_error: float
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
    """Input bits, and each population's share for :func:`~stars_deploy.export.quantization.quantize_graph`.

    ``deployed`` is what :func:`compare_rates` says of the whole integer network, once that has been run.
    """

    input_bits: int
    shares: Mapping[str, float]
    layers: tuple[LayerReport, ...]
    deployed: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all layers, then those of the whole network."""
        return (*(text for layer in self.layers for text in layer.warnings), *self.deployed)


def compare_rates(layers: Sequence[LayerReport], deployed: Mapping[str, float]) -> tuple[str, ...]:
    """Say which populations go silent or saturate only in the whole integer network, where errors of layers add up.

    Parameters
    ----------
    layers : sequence of LayerReport
    deployed : mapping of str to float
        Firing rate of each population of the integer network on the calibration images [spikes/neuron/timestep].

    Raises
    ------
    QuantizationError
        If a rate is missing.
    """
    found = []
    for layer in layers:
        if layer.name not in deployed:
            raise QuantizationError(layer.name, "has no deployed rate", "one for each population")
        rate = deployed[layer.name]
        change = f"its rate is {rate:.2g}, and was {layer.rate:.2g} before quantisation"
        if layer.fires and layer.quantized_rate > 0 and rate == 0:
            found.append(f"{layer.name} goes silent in the deployed network: {change}")
        elif rate > SATURATED_RATE >= layer.quantized_rate:
            found.append(f"{layer.name} is saturated in the deployed network: {change}")
    return tuple(found)


def calibrate_graph(graph: SpikingGraph, images: FloatArray, bits: int, input_bits: int) -> Calibration:
    """Choose input bits (at most `input_bits`) and shares for a lowered graph.

    Input bits are those of least error, summed over the layers that the input enters.

    Parameters
    ----------
    graph : SpikingGraph
    images : array, (N, *shape) or (T, N, *shape)
        Synthetic images, or one frame for each timestep, from 0 to the input's ``high``; a few dozen do, as the error
        of a current averages over neurons and timesteps too.
    bits : int
        Weight bits.
    input_bits : int

    Raises
    ------
    QuantizationError
        If there are no images, or no candidate fits.
    """
    images = np.asarray(images, dtype=np.float64)
    over_time = images.ndim == len(graph.input.shape) + 2
    if not images.size:
        raise QuantizationError("calibration", "no images", "at least one")
    record = run_float(graph, images)
    # The same image at every timestep: one of them is enough, where no delay and no spikes make a difference.
    stimulus = _Stimulus(
        graph=graph, sent={**record.values, graph.input.name: images if over_time else images[np.newaxis]}
    )
    layers = float_layers(graph)
    fed = [layer for layer in layers if any(item.source == graph.input.name for item in layer.projections)]
    best = _best_input(stimulus, fed, bits, input_bits)
    incoming = best[fed[0].name].incoming
    for layer in layers:
        if layer.name not in best:
            best[layer.name] = _best_candidate(stimulus, layer, incoming, bits)
    return Calibration(
        input_bits=incoming.precision.bits,
        shares={layer.name: best[layer.name].share for layer in layers},
        layers=tuple(_report(best[layer.name], layer, graph.timesteps, record.rate(layer.name)) for layer in layers),
    )


@dataclass(frozen=True, kw_only=True)
class _Stimulus:
    """What the float network sends: by source, (T, B, *shape), or (1, B, *shape) where it is always the same."""

    graph: SpikingGraph
    sent: Mapping[str, FloatArray]

    def sums(
        self, layer: FloatLayer, weights: Sequence[FloatArray], incoming: QuantizedInput | None = None
    ) -> FloatArray:
        """Return what `weights` of the layer's projections make of it, (T or 1, B, *shape), without the biases.

        The input is in float, or in the payloads of `incoming`.
        """
        total: FloatArray | None = None
        for projection, weight in zip(layer.projections, weights, strict=True):
            values = self.sent[projection.source]
            if incoming is not None and projection.source == incoming.name:
                values = incoming.quantize(values).astype(np.float64)
            values = self._delayed(projection, values)
            sums = projection.project(weight, values.reshape(-1, *values.shape[2:]))
            sums = sums.reshape(*values.shape[:2], *layer.shape)
            total = sums if total is None else total + sums
        return np.zeros((1, 1, *layer.shape)) if total is None else total

    def _delayed(self, projection: FloatProjection, values: FloatArray) -> FloatArray:
        if np.max(projection.delay) == 0:
            return values
        steps = self.graph.timesteps
        values = np.broadcast_to(values, (steps, *values.shape[1:]))
        flat = values.reshape(*values.shape[:2], -1)
        delays = np.broadcast_to(projection.delay, flat.shape[2:])
        late = np.zeros(flat.shape)
        for delay in (int(delay) for delay in np.unique(delays) if delay < steps):
            late[delay:, :, delays == delay] = flat[: steps - delay, :, delays == delay]
        return late.reshape(values.shape)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    incoming: QuantizedInput
    share: float
    rounded: RoundedLayer
    sums: IntArray
    error: float


def _best_input(stimulus: _Stimulus, fed: Sequence[FloatLayer], bits: int, input_bits: int) -> dict[str, _Candidate]:
    """Return the candidates of the layers that the input enters at its best bits; of equals, at the most bits."""
    best: dict[str, _Candidate] = {}
    refusals: list[QuantizationError] = []
    for tried in range(input_bits, min(input_bits, FEWEST_INPUT_BITS) - 1, -1):
        incoming = quantized_input(stimulus.graph, tried)
        try:
            found = {layer.name: _best_candidate(stimulus, layer, incoming, bits) for layer in fed}
        except QuantizationError as refused:
            refusals.append(refused)
            continue
        if not best or sum(item.error for item in found.values()) < sum(item.error for item in best.values()):
            best = found
    if not best:
        raise refusals[0]
    return best


def _best_candidate(stimulus: _Stimulus, layer: FloatLayer, incoming: QuantizedInput, bits: int) -> _Candidate:
    """Return the candidate of least current error; of equals, that of the largest share."""
    wanted = stimulus.sums(layer, [item.weight for item in layer.projections]) + layer.bias
    if layer.current_bias:
        wanted = wanted + layer.current_bias.values
    size = float(np.sqrt(np.mean(wanted**2))) or 1.0
    best: _Candidate | None = None
    refusals: list[QuantizationError] = []
    for share in SHARES:
        try:
            rounded = fit_layer(layer, incoming, bits, share, stimulus.graph.timesteps)
        except QuantizationError as refused:
            refusals.append(refused)
            continue
        sums = stimulus.sums(layer, [item.weight.astype(np.float64) for item in rounded.projections], incoming)
        if rounded.current_bias:
            sums = sums + bias_steps(rounded.current_bias)
        current = (sums + rounded.population.bias) / _steps(layer, rounded.population)
        error = float(np.sqrt(np.mean((current - wanted) ** 2))) / size
        if best is None or error < best.error:
            whole = np.rint(sums).astype(np.int64)
            best = _Candidate(incoming=incoming, share=share, rounded=rounded, sums=whole, error=error)
    if best is None:
        raise refusals[0]
    return best


def _steps(layer: FloatLayer, population: Population) -> Parameter:
    """Return the steps [LSB] of one unit of potential: what a current does depends on the threshold that it meets."""
    if layer.threshold is None:
        return population.scale
    steps: Parameter = np.divide(population.vth, layer.threshold)
    return steps


def _report(best: _Candidate, layer: FloatLayer, timesteps: int, rate: float) -> LayerReport:
    population = best.rounded.population
    weight = np.concatenate([item.weight.reshape(-1) for item in best.rounded.projections])
    wanted = np.concatenate(
        [item.weight.reshape(-1) * (population.scale / unit_of(item, best.incoming)) for item in layer.projections]
    )
    precision = best.rounded.projections[0].precision
    whole = np.rint(wanted)
    return LayerReport(
        name=population.name,
        fires=population.fires,
        scale=population.scale,
        largest_weight=int(np.abs(weight).max()),
        allowed_weight=precision.high,
        clipped=float(np.mean((whole < precision.low) | (whole > precision.high))),
        weight_error=float(np.sqrt(np.mean((weight - wanted) ** 2) / np.mean(wanted**2))),
        current_error=best.error,
        rate=rate if population.fires else 0.0,
        quantized_rate=_rate(population, best.sums, timesteps) if population.fires else 0.0,
    )


def _rate(population: Population, sums: IntArray, timesteps: int) -> float:
    """Return the rate at which a quantised population fires, by the integer dynamics; the proof rules out overflows."""
    u = v = np.zeros(sums.shape[1:], np.int64)
    spikes = []
    for activation in np.broadcast_to(sums, (timesteps, *sums.shape[1:])):
        u = decayed(u, population.decay_u) + (activation << STATE_EXP)
        v = decayed(v, population.decay_v) + u + (population.bias << STATE_EXP)
        fired = v > np.left_shift(population.vth, STATE_EXP)
        v = np.where(fired, 0, v)
        spikes.append(fired.mean())
    return float(np.mean(spikes))
