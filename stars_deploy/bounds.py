"""The interval proof: no accumulator of an integer network can leave the chip's 24 bits.

For each channel, the largest and smallest activation follow from the signs of the weights and the range of the source
(spikes are 0 or 1, graded input 0 to its maximum); current and membrane are then stepped through all timesteps as
intervals. Trunc, shift and addition are monotone, so the intervals hold for every input: at padded borders, where fewer
weights act, before a delay has passed, and in a loop with a delay, because 0 lies in the range of every source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from stars_deploy.errors import QuantizationError
from stars_deploy.quantized import (
    STATE_EXP,
    STATE_LIMIT,
    DenseProjection,
    IntArray,
    Population,
    Projection,
    QuantizedGraph,
    decayed,
)


@dataclass(frozen=True, kw_only=True)
class StateBounds:
    """The extremes [LSB] that current ``u`` and membrane ``v`` (before its reset) of a population can reach."""

    u_low: int
    u_high: int
    v_low: int
    v_high: int

    @property
    def utilization(self) -> float:
        """Largest magnitude over the limit of 2**23 - 1; above 1 the proof fails.

        A current of exactly +2**23 would not wrap, but is refused as well: it is no signed 24-bit number.
        """
        return max(-self.u_low, self.u_high, -self.v_low, self.v_high) / (STATE_LIMIT - 1)


def prove_bounds(graph: QuantizedGraph) -> Mapping[str, StateBounds]:
    """Prove that no state variable of `graph` can wrap or clip within its timesteps.

    Returns
    -------
    mapping of str to StateBounds
        By population.

    Raises
    ------
    QuantizationError
        Naming the population whose accumulator could leave 24 bits, and by how much.
    """
    bounds = {}
    for population in graph.populations:
        found = bound_population(graph, population)
        if found.utilization > 1:
            raise QuantizationError(
                population.name,
                f"accumulates up to {found.utilization:.2f} times the 24-bit limit in {graph.timesteps} timesteps",
                f"|u|, |v| < {STATE_LIMIT}",
                "use fewer weight bits, input bits or timesteps",
            )
        bounds[population.name] = found
    return bounds


def find_overflow(graph: QuantizedGraph) -> str:
    """Say which accumulator of `graph` could leave 24 bits, or return an empty string where none can.

    A network that someone else made is run in any case: engines wrap and clip as the chip does.
    """
    try:
        prove_bounds(graph)
    except QuantizationError as error:
        return f"{error.where} {error.got}: it would wrap or clip there, as on the chip"
    return ""


def bound_population(graph: QuantizedGraph, population: Population) -> StateBounds:
    """Return the interval of one population's state variables over the timesteps of `graph`."""
    entering = [(projection, value_range(graph, projection.source)) for projection in graph.into(population.name)]
    if graph.input.biases == population.name:
        # The image is part of the membrane's sum and not of the current's.
        payload = graph.input.precision
        image = (np.int64(payload.low), np.int64(payload.high))
        return bound_layer(population, entering, graph.timesteps, image)
    return bound_layer(population, entering, graph.timesteps)


def bound_layer(
    population: Population,
    entering: Iterable[tuple[Projection, tuple[int, int]]],
    timesteps: int,
    image: tuple[np.int64, np.int64] = (np.int64(0), np.int64(0)),
) -> StateBounds:
    """Return the interval of a population's state variables from what enters it alone.

    Parameters
    ----------
    population : Population
    entering : pairs of Projection and (int, int) [LSB]
        Each projection into it, and the least and largest value that its source sends; 0 lies between them.
    timesteps : int
    image : pair of int [LSB]
        Range of what the input adds to the bias.
    """
    low = high = np.zeros(population.shape, np.int64)
    for projection, (least, largest) in entering:
        negative, positive = _signed_maps(projection, population.shape)
        low = low + negative * largest + positive * least
        high = high + positive * largest + negative * least
    return _bound_states(population, low, high, timesteps, image)


def _bound_states(
    population: Population,
    low: IntArray,
    high: IntArray,
    timesteps: int,
    image: tuple[np.int64, np.int64] = (np.int64(0), np.int64(0)),
) -> StateBounds:
    """Step the intervals of current and membrane.

    A reset adds nothing: what follows it is what follows the first timestep.

    Parameters
    ----------
    population : Population
    low, high : array of int, broadcastable to the population's shape [LSB]
        Range of the activation of one timestep, before the shift.
    timesteps : int
    image : pair of int [LSB]
        Range of what the input adds to the bias.
    """
    bias_low, bias_high = ((population.bias + pixel) << STATE_EXP for pixel in image)
    threshold = np.left_shift(population.vth, STATE_EXP)
    u_low = u_high = v_low = v_high = np.zeros(population.shape, np.int64)
    # Extremes only grow: should int64 overflow in a later timestep, the first one beyond the limit still counts.
    extremes = [0, 0, 0, 0]
    for _ in range(timesteps):
        before = (u_low, u_high, v_low, v_high)
        u_low = decayed(u_low, population.decay_u) + (low << STATE_EXP)
        u_high = decayed(u_high, population.decay_u) + (high << STATE_EXP)
        v_low = decayed(v_low, population.decay_v) + u_low + bias_low
        v_high = decayed(v_high, population.decay_v) + u_high + bias_high
        extremes = [
            min(extremes[0], int(u_low.min())),
            max(extremes[1], int(u_high.max())),
            min(extremes[2], int(v_low.min())),
            max(extremes[3], int(v_high.max())),
        ]
        # What exceeds the threshold (at least 0) fires and goes to 0; what does not stays.
        v_low = np.where(v_high > threshold, np.minimum(v_low, 0), v_low)
        v_high = np.minimum(v_high, threshold)
        if all(map(np.array_equal, before, (u_low, u_high, v_low, v_high))):
            break  # later timesteps repeat this one
    return StateBounds(u_low=extremes[0], u_high=extremes[1], v_low=extremes[2], v_high=extremes[3])


def value_range(graph: QuantizedGraph, source: str) -> tuple[int, int]:
    """Return the least and largest value that an input or a population sends; 0 (nothing sent) lies between them."""
    if source == graph.input.name:
        return graph.input.precision.low, graph.input.precision.high
    return 0, int(graph.population(source).fires)


def signed_sums(projection: Projection) -> tuple[IntArray, IntArray]:
    """Return the sum of the negative and of the positive weights into each output channel, (out,) each."""
    rows = projection.weight.reshape(len(projection.weight), -1)
    return np.minimum(rows, 0).sum(1), np.maximum(rows, 0).sum(1)


def _signed_maps(projection: Projection, shape: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    """Return the sums of :func:`signed_sums` so that they broadcast over `shape`, that of the target.

    Where the source is one place, each neuron sees it with one weight of the kernel, and the sums are for each neuron.
    """
    if isinstance(projection, DenseProjection):
        return signed_sums(projection)
    sizes, padding = projection.weight.shape[2:], projection.padding
    plain = projection.stride == projection.dilation == (1, 1)
    places = [shape[axis + 1] + sizes[axis] - 1 - 2 * padding[axis] for axis in (0, 1)]
    if plain and places == [1, 1] and all(padding[axis] < sizes[axis] for axis in (0, 1)):
        rows, columns = (padding[axis] - np.arange(shape[axis + 1]) for axis in (0, 1))
        seen = projection.weight[:, :, rows[:, np.newaxis], columns]
        return np.minimum(seen, 0).sum(1), np.maximum(seen, 0).sum(1)
    negative, positive = signed_sums(projection)
    return negative.reshape(-1, 1, 1), positive.reshape(-1, 1, 1)
