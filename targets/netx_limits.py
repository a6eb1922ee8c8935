"""Where a NetX file means something else to Lava than its numbers say.

NetX stores plain integers; Lava's processes (lava-nc 0.10.0, lava-dl 0.6.0) narrow, shift and wrap some of them in
silence. Both our writer and our reader ask :func:`find_alteration` and refuse what Lava would alter, so that a file
that exists is executed exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stars_deploy.quantized import ConvProjection, DenseProjection, IntArray, Population, Projection

#: ``Conv`` keeps kernel size, stride, padding, dilation and groups as int8 (``AbstractPyConvModel``).
CONV_SETTING_LIMIT = 127
#: NetX clamps longer synaptic delays in silence [timesteps] (``hdf5.Network.create_dense``).
DELAY_LIMIT = 62
#: ``Conv`` wraps its sums into signed 24 bits (``PyConvModelFixed.clamp_precision``).
ACTIVATION_LIMIT = (1 << 23) - 1
#: Above it one wrap no longer brings a current back into 24 bits, and Lava's int32 overflows where the current is kept.
LEAKY_ACTIVATION_LIMIT = 1 << 18
#: Range of a mixed-sign dense matrix (``netx.utils.optimize_weight_bits`` clips to it).
MIXED_LOW, MIXED_HIGH = -256, 254
#: Synapses that are looked at together, so that temporary arrays stay small.
_BLOCK = 1 << 20


def find_alteration(
    projection: Projection,
    population: Population,
    high: int = 1,
    low: int = 0,
    recurrent: DenseProjection | None = None,
    delayed: bool = False,
) -> str:
    """Say what Lava would change of one layer, or return an empty string if it executes the layer exactly.

    Parameters
    ----------
    projection : Projection
        From the layer before.
    population : Population
        What the projection enters.
    high, low : int
        Largest and smallest payload that the source sends [LSB]: 1 and 0 for spikes.
    recurrent : DenseProjection, optional
        From the population to itself (a ``dense_rec`` layer).
    delayed : bool
        Whether the layer has a field ``delay``.
    """
    if isinstance(projection, ConvProjection):
        altered = _altered_conv(projection)
    elif recurrent is None:
        altered = _altered_dense((projection,), ("weight",), exponent=True)
    else:
        # With delays, NetX forgets the exponent that undoes its left shift of the weights.
        altered = _altered_dense((projection, recurrent), ("weight", "weight_rec"), exponent=not delayed)
    if altered:
        return altered
    limit = LEAKY_ACTIVATION_LIMIT if population.leaks_current else ACTIVATION_LIMIT
    largest = largest_activation(projection, high, low, recurrent)
    if largest > limit:
        return f"activations of up to {largest} (at most {limit}: beyond it Lava's integers wrap)"
    return ""


def largest_activation(
    projection: Projection, high: int = 1, low: int = 0, recurrent: DenseProjection | None = None
) -> int:
    """Return the largest magnitude that the sum of one neuron's synapses can reach [LSB].

    Parameters
    ----------
    projection : Projection
    high, low : int
        Largest and smallest payload that its source sends [LSB].
    recurrent : DenseProjection, optional
        Enters the same population, with spikes.
    """
    excitation, inhibition = _extremes(projection.weight, max(high, 0), min(low, 0))
    if recurrent is not None:
        more, less = _extremes(recurrent.weight, 1, 0)
        excitation, inhibition = excitation + more, inhibition + less
    return max(int(excitation.max()), -int(inhibition.min()))


def executed_dense(*weights: IntArray, exponent: bool = True) -> tuple[IntArray, ...] | None:
    """Return the matrices that Lava's ``Dense`` processes multiply with, or None if Lava cannot load them.

    NetX shifts the weights of a layer left to fill 8 bits, those of a recurrent layer together with the others
    (``optimize_weight_bits``); each process derives its own sign mode, clips to 8 bits and clears low bits
    (``clip_weights``, ``truncate_weights``); its sums are shifted back right.

    Parameters
    ----------
    *weights : array of int, (out, in) [LSB]
        One matrix, or the forward and the recurrent one.
    exponent : bool
        Whether the sums are shifted back: not those of a recurrent layer with delays, whose exponent NetX forgets.

    Returns
    -------
    tuple of array of float, (out, in), or None
        In units of `weights` [LSB]; fractions where a cleared bit was worth less than one.
    """
    scaling = _scale(weights)
    if scaling is None:
        return None
    return tuple(_execute(weight, _range((weight,)), scaling, exponent) for weight in weights)


def _altered_conv(projection: ConvProjection) -> str:
    settings = (
        *projection.weight.shape[2:],
        *projection.stride,
        *projection.padding,
        *projection.dilation,
        projection.groups,
    )
    if max(settings) > CONV_SETTING_LIMIT:
        return f"a kernel size, stride, padding, dilation or groups of {max(settings)} (at most 127: Lava keeps int8)"
    return ""


def _altered_dense(projections: tuple[DenseProjection, ...], names: tuple[str, ...], exponent: bool) -> str:
    weights = tuple(projection.weight for projection in projections)
    scaling = _scale(weights)
    if scaling is None:
        low, high = _range(weights)
        return f"weights from {low} to {high}, which Lava's dense layer cannot load"
    for weight, name in zip(weights, names, strict=True):
        signs = _range((weight,))
        for start, block in _blocks(weight):
            executed = _execute(block, signs, scaling, exponent)
            wrong = np.argwhere(executed != block)
            if len(wrong):
                row, column = (int(index) for index in wrong[0])
                acts = f"{executed[row, column]:g}"
                return f"{name}[{start + row}, {column}] = {block[row, column]}, which acts as {acts} in Lava"
    return ""


def _extremes(weight: IntArray, high: int, low: int) -> tuple[IntArray, IntArray]:
    """Return the largest and the smallest sum that each neuron can receive [LSB]."""
    rows = weight.reshape(len(weight), -1)
    largest, smallest = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    for start, block in _blocks(rows):
        positive, negative = (np.where(block > 0, block, 0).sum(axis=1), np.where(block < 0, block, 0).sum(axis=1))
        largest[start : start + len(block)] = positive * high + negative * low
        smallest[start : start + len(block)] = positive * low + negative * high
    return largest, smallest


def _blocks(rows: IntArray) -> Iterator[tuple[int, IntArray]]:
    step = max(1, _BLOCK // rows.shape[1])
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]


def _range(weights: tuple[IntArray, ...]) -> tuple[int, int]:
    return min(int(weight.min()) for weight in weights), max(int(weight.max()) for weight in weights)


@dataclass(frozen=True)
class _Scaling:
    """How NetX and its processes change the weights of a layer."""

    clip: tuple[int, int]
    #: Left shift [bits].
    shift: int
    #: Low bits that a process of one sign clears; one of mixed signs clears another.
    cleared: int


def _scale(weights: tuple[IntArray, ...]) -> _Scaling | None:
    """Do the arithmetic of ``netx.utils.optimize_weight_bits`` on the matrices side by side."""
    low, high = clip = _range(weights)
    if low == high == 0:
        return None  # log2 of an infinite scale
    mixed = low < 0 <= high
    if mixed and high:
        low, high = clip = max(low, MIXED_LOW), min(high, MIXED_HIGH)
    positive, negative = (127, -128) if mixed else (255, -256)
    scale = min(positive / high if high > 0 else math.inf, negative / low if low < 0 else math.inf)
    shift = math.floor(math.log2(scale)) + mixed
    if shift < 0:
        return None
    used = 1 << 8  # more than 8 low bits are not looked for
    for weight in weights:
        for _, block in _blocks(weight):
            used |= int(np.bitwise_or.reduce(np.clip(block, *clip), axis=None))
    zeros = (used & -used).bit_length() - 1
    return _Scaling(clip=clip, shift=shift, cleared=shift + zeros - mixed)


def _execute(weight: IntArray, signs: tuple[int, int], scaling: _Scaling, exponent: bool) -> IntArray:
    """Return what a process multiplies with; `signs` are the smallest and the largest value of its whole matrix."""
    low, high = signs
    sign, cleared = -1 if high <= 0 else 1, scaling.cleared
    weight = np.clip(weight, *scaling.clip)
    if low < 0 < high:
        cleared += 1
        stored = np.clip(weight << scaling.shift, -256, 255)
    else:
        stored = np.clip(sign * weight << scaling.shift, 0, 255)
    if cleared < 0:
        return np.zeros_like(weight)  # NumPy's shift by a negative number of bits
    result: IntArray = sign * ((stored >> cleared) << cleared)
    return result / (1 << scaling.shift) if exponent else result  # type: ignore[return-value]
