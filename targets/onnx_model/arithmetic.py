"""Which numbers are wide enough: types chosen so that every operation of a model is exact, by bounds.

Measured with ONNX Runtime 1.23 and 1.32 (one thread, AVX-512 with VNNI and AMX; ns for one neuron and timestep, arrays
that stay in the second cache) for ``trunc(v * k / 4096)``: int32 Mul and Div 0.73; double Mul between Casts 0.58, 0.83;
 DequantizeLinear (float32, which multiplies and converts at once) and Cast 0.19; splitting into quotient and
remainder 0.93. For the reset: Where on 4-byte values 0.5 (1.23) and up to 4 (1.32); Not, Cast and Mul 0.45;
ThresholdedRelu and Sub of float32, which is exact for 24 bits, 0.25. State variables are integers always; float32 and
double are passed through only where every value and product is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from stars_deploy.bounds import bound_population, signed_sums, value_range
from stars_deploy.errors import TargetError
from stars_deploy.populations import DECAY_ONE, STATE_EXP, STATE_LIMIT, IntArray, Population
from stars_deploy.projections import Projection
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.targets.onnx_model.drawing import Drawing

#: Integers up to here are exact in float32, and up to there in double.
FLOAT_LIMIT = 1 << 24
DOUBLE_LIMIT = 1 << 53
INT_LIMIT = (1 << 31) - 1
#: Most neurons times timesteps that bounds are proven for by stepping; beyond, they are estimated.
_STEPPED = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """What the state of a population can reach.

    Parameters
    ----------
    kind : dtype
        Integers that hold every state variable and sum, int32 or int64.
    current, membrane : int
        Largest magnitudes carried from one timestep to the next [LSB].
    wraps, clips : bool
        Whether the current may leave 24 bits, and the membrane.
    """

    kind: np.dtype[Any]
    current: int
    membrane: int
    wraps: bool
    clips: bool


def find_ranges(graph: QuantizedGraph, population: Population, timesteps: int | None) -> Ranges:
    """Return what `population` can reach within `timesteps`, or ever where that is None.

    Raises
    ------
    TargetError
        If a sum could leave 53 bits, where the reference itself is no longer exact.
    """
    largest = largest_activation(graph, population) << STATE_EXP
    if largest > DOUBLE_LIMIT:
        raise TargetError(population.name, f"activations up to {largest >> STATE_EXP}", "less than 2**47")
    if timesteps is not None and population.size * timesteps <= _STEPPED:
        found = bound_population(graph.with_timesteps(timesteps), population)
        current = max(-found.u_low, found.u_high)
        threshold = int(np.max(population.vth)) << STATE_EXP
        highest = min(found.v_high, threshold) if population.fires else found.v_high
        membrane, peak = max(-found.v_low, highest), max(-found.v_low, found.v_high)
    else:
        current = _settled(largest, population.decay_u)
        membrane = peak = _settled(current + _largest_bias(graph, population), population.decay_v)
    wraps = current >= STATE_LIMIT
    clips = wraps or peak >= STATE_LIMIT
    narrow = largest <= (1 << 24 if population.leaks_current else 1 << 30)
    return Ranges(
        kind=np.dtype(np.int32 if narrow else np.int64),
        # After one wrap of at most 2**24 + 2**24, 2**24 is left.
        current=max(largest, 2 * STATE_LIMIT) if wraps else current,
        membrane=STATE_LIMIT - 1 if clips else membrane,
        wraps=wraps,
        clips=clips,
    )


def largest_activation(graph: QuantizedGraph, population: Population) -> int:
    """Return the largest magnitude of what enters `population` in one timestep, before the shift [LSB]."""
    return sum(largest_sum(graph, projection) for projection in graph.into(population.name))


def largest_sum(graph: QuantizedGraph, projection: Projection) -> int:
    """Return the largest magnitude of what one projection sends, partial sums in any order included [LSB]."""
    negative, positive = signed_sums(projection)
    return int((positive - negative).max()) * max(abs(value) for value in value_range(graph, projection.source))


def _largest_bias(graph: QuantizedGraph, population: Population) -> int:
    if graph.input.biases == population.name:
        return -graph.input.precision.low << STATE_EXP
    return int(np.abs(population.bias).max()) << STATE_EXP


def _settled(most: int, decay: int | IntArray) -> int:
    """Return what a sum of at most `most` a timestep can never exceed; the limit if there is none."""
    least = int(np.min(decay))
    return min(-(-most * DECAY_ONE // least), 2 * STATE_LIMIT) if least else (2 * STATE_LIMIT if most else 0)


def draw_decay(
    draw: Drawing,
    state: str,
    decay: int | IntArray,
    name: str,
    largest: int,
    kind: np.dtype[Any],
    number: np.dtype[Any],
) -> str:
    """Draw ``trunc(state * (4096 - decay) / 4096)`` in integers; empty where nothing is left.

    Parameters
    ----------
    draw : Drawing
    state : str
    decay : int, or array of int, (N,)
    name : str
        Of the tensor that keeps an array of decays.
    largest : int
        Largest magnitude of `state`.
    kind : dtype
        Of the result.
    number : dtype
        Of `state`: that of the result, or float32 that holds whole numbers.
    """
    if not isinstance(decay, int):
        return _draw_decays(draw, state, decay, name, largest, kind)
    keep = DECAY_ONE - decay
    if not keep:
        return ""
    if keep == DECAY_ONE:
        return state if number == kind else draw.cast(state, kind)
    numerator, denominator = keep // gcd(keep, DECAY_ONE), DECAY_ONE // gcd(keep, DECAY_ONE)
    if kind == np.int32 and largest * numerator <= FLOAT_LIMIT:
        factor = draw.constant(numerator / denominator, np.float32)
        return draw.cast(draw.add("DequantizeLinear" if number == kind else "Mul", state, factor), kind)
    if kind == np.int64 or (number == kind and largest * numerator <= INT_LIMIT):
        product = draw.add("Mul", state, draw.constant(numerator, kind)) if numerator > 1 else state
        return draw.add("Div", product, draw.constant(denominator, kind))
    # 24 bits times 12 bits are exact in 53.
    product = draw.add("Mul", draw.cast(state, np.float64), draw.constant(numerator / denominator, np.float64))
    return draw.cast(product, kind)


def _draw_decays(draw: Drawing, state: str, decay: IntArray, name: str, largest: int, kind: np.dtype[Any]) -> str:
    stored = draw.tensor(name, decay.astype(np.int16))
    fixed = draw.root
    keep = fixed.add("Sub", draw.constant(DECAY_ONE, np.int32), fixed.cast(stored, np.int32))
    if kind == np.int64:
        product = draw.add("Mul", state, fixed.cast(keep, kind))
        return draw.add("Div", product, draw.constant(DECAY_ONE, kind))
    wide = np.float32 if largest * DECAY_ONE <= FLOAT_LIMIT else np.float64
    factor = fixed.add("Mul", fixed.cast(keep, wide), draw.constant(1 / DECAY_ONE, wide))
    return draw.cast(draw.add("Mul", draw.cast(state, wide), factor), kind)


def draw_wrap(draw: Drawing, current: str, kind: np.dtype[Any]) -> str:
    """Draw the one wrap of a current into 24 bits."""
    limit, turn = draw.constant(STATE_LIMIT, kind), draw.constant(2 * STATE_LIMIT, kind)
    above = draw.add("Greater", current, limit)
    inside = draw.add("Greater", current, draw.constant(-STATE_LIMIT, kind))
    raised = draw.add("Where", inside, current, draw.add("Add", current, turn))
    return draw.add("Where", above, draw.add("Sub", current, turn), raised)


def draw_clip(draw: Drawing, membrane: str, kind: np.dtype[Any]) -> str:
    """Draw the limits of a membrane potential.

    ONNX Runtime 1.23 compares only parts of an int64 in Clip, Min and Max (-2603210752 passes a lower limit of
    -8388607); Greater, Less and Where are right.
    """
    low, high = draw.constant(1 - STATE_LIMIT, kind), draw.constant(STATE_LIMIT - 1, kind)
    if kind == np.int32:
        return draw.add("Clip", membrane, low, high)
    lowered = draw.add("Where", draw.add("Greater", membrane, high), high, membrane)
    return draw.add("Where", draw.add("Less", lowered, low), low, lowered)
