"""Where a NetX file means something else to Lava than its numbers say.

NetX stores plain integers; Lava's processes (lava-nc 0.10.0, lava-dl 0.6.0) narrow, shift and wrap some of them in
silence. Both our writer and our reader ask :func:`find_alteration` and refuse what Lava would alter, so that a file
that exists is executed exactly.
"""

from __future__ import annotations

import math

import numpy as np

from stars_deploy.quantized import DECAY_ONE, ConvProjection, DenseProjection, IntArray, Population, Projection

#: ``Conv`` keeps kernel size, stride, padding, dilation and groups as int8 (``AbstractPyConvModel``).
CONV_SETTING_LIMIT = 127
#: ``Conv`` wraps its sums into signed 24 bits (``PyConvModelFixed.clamp_precision``).
ACTIVATION_LIMIT = (1 << 23) - 1
#: Above it one wrap no longer brings a current back into 24 bits, and Lava's int32 overflows where the current is kept.
LEAKY_ACTIVATION_LIMIT = 1 << 18
#: Range of a mixed-sign dense matrix (``netx.utils.optimize_weight_bits`` clips to it).
MIXED_LOW, MIXED_HIGH = -256, 254


def find_alteration(projection: Projection, population: Population, highest: int) -> str:
    """Say what Lava would change of one layer, or return an empty string if it executes the layer exactly.

    Parameters
    ----------
    projection : Projection
    population : Population
        What the projection enters.
    highest : int
        Largest payload that the source sends [LSB]: 1 for spikes.
    """
    if isinstance(projection, ConvProjection):
        settings = (
            *projection.weight.shape[2:],
            *projection.stride,
            *projection.padding,
            *projection.dilation,
            projection.groups,
        )
        if max(settings) > CONV_SETTING_LIMIT:
            return (
                f"a kernel size, stride, padding, dilation or groups of {max(settings)} (at most 127: Lava keeps int8)"
            )
    elif altered := _altered_dense(projection):
        return altered
    limit = ACTIVATION_LIMIT if population.decay_u == DECAY_ONE else LEAKY_ACTIVATION_LIMIT
    largest = largest_activation(projection, highest)
    if largest > limit:
        return f"activations of up to {largest} (at most {limit}: beyond it Lava's integers wrap)"
    return ""


def largest_activation(projection: Projection, highest: int) -> int:
    """Return the largest magnitude that the sum of one neuron's synapses can reach [LSB]."""
    rows = projection.weight.reshape(len(projection.weight), -1)
    excitation = np.where(rows > 0, rows, 0).sum(axis=1).max()
    inhibition = -np.where(rows < 0, rows, 0).sum(axis=1).min()
    return int(max(excitation, inhibition)) * highest


def executed_dense(weight: IntArray) -> IntArray | None:
    """Return the matrix that Lava's ``Dense`` multiplies with, or None if Lava cannot load it.

    NetX shifts the weights left to fill 8 bits (``optimize_weight_bits``); the process derives the sign mode again,
    clips to 8 bits and clears low bits (``clip_weights``, ``truncate_weights``); its sums are shifted back right.

    Parameters
    ----------
    weight : array of int, (out, in) [LSB]

    Returns
    -------
    array of float, (out, in), or None
        In units of `weight` [LSB]; fractions where a cleared bit was worth less than one.
    """
    low, high = int(weight.min()), int(weight.max())
    if low == high == 0:
        return None  # log2 of an infinite scale
    mixed = low < 0 <= high
    if mixed and high:
        weight = np.clip(weight, MIXED_LOW, MIXED_HIGH)
        low, high = max(low, MIXED_LOW), min(high, MIXED_HIGH)
    positive, negative = (127, -128) if mixed else (255, -256)
    scale = min(positive / high if high > 0 else math.inf, negative / low if low < 0 else math.inf)
    shift = math.floor(math.log2(scale)) + mixed
    if shift < 0:
        return None
    zeros = next((bits for bits in range(8, 0, -1) if not (weight % (1 << bits)).any()), 0)
    cleared = shift + zeros - mixed
    sign = -1 if high <= 0 else 1
    if low < 0 < high:
        cleared += 1
        stored = np.clip(weight << shift, -256, 255)
    else:
        stored = np.clip(sign * weight << shift, 0, 255)
    if cleared < 0:
        return np.zeros_like(weight)  # NumPy's shift by a negative number of bits
    result: IntArray = sign * ((stored >> cleared) << cleared) / (1 << shift)  # type: ignore[assignment]
    return result


def _altered_dense(projection: DenseProjection) -> str:
    weight = projection.weight
    executed = executed_dense(weight)
    if executed is None:
        return f"weights from {weight.min()} to {weight.max()}, which Lava's dense layer cannot load"
    wrong = np.argwhere(executed != weight)
    if len(wrong):
        row, column = (int(index) for index in wrong[0])
        return f"weight[{row}, {column}] = {weight[row, column]}, which acts as {executed[row, column]:g} in Lava"
    return ""
