"""How a model keeps the biases of a population: no more numbers than differ.

A normalisation folded into a padded convolution makes the biases of a channel differ at borders only: nine rows for a
3x3 kernel in place of one for each pixel.
"""

from __future__ import annotations

import numpy as np

from stars_deploy.populations import STATE_EXP, IntArray, Population
from stars_deploy.targets.onnx_model.drawing import Drawing, Numbers
from stars_deploy.targets.onnx_model.frames import channels_first, channels_last

#: Most different rows: their numbers are kept in 8 bits.
_MOST_ROWS = 256


def bias_name(population: str) -> str:
    """Return the name of the tensor of biases: one for all, one a channel, one a neuron, or rows of one a channel."""
    return f"bias:{population}"


def places_name(population: str) -> str:
    """Return the name of the tensor that says which row of biases each pixel has, (H W,); there if there are rows."""
    return f"places:{population}"


def pack_bias(population: Population) -> tuple[IntArray, Numbers | None]:
    """Return the biases to keep, none of them if all are 0, and the row of each pixel where they are rows."""
    flat = channels_last(population.bias, population.shape)
    if not flat.any():
        return flat[:0], None
    if (flat == flat[0]).all():
        return flat[:1], None
    rows = flat.reshape(-1, _channels(population.shape))
    if (rows == rows[0]).all():
        return rows[0], None
    table, places = np.unique(rows, axis=0, return_inverse=True)
    if len(table) <= _MOST_ROWS and 2 * table.size + len(rows) < 2 * flat.size:
        return table, places.reshape(-1).astype(np.uint8)
    return flat, None


def unpack_bias(values: IntArray, places: IntArray | None, shape: tuple[int, ...]) -> IntArray:
    """Return the biases of a population of `shape`, undoing :func:`pack_bias`; raises ValueError or IndexError."""
    if places is not None:
        values = values.reshape(-1, _channels(shape))[places].reshape(-1)
    return channels_first(np.tile(values.reshape(-1), int(np.prod(shape)) // values.size), shape)


def draw_bias(draw: Drawing, population: Population, kind: np.dtype[np.generic]) -> str:
    """Draw the biases, shifted, (N,) or (1,) of `kind`; empty where all are 0."""
    values, places = pack_bias(population)
    if not values.size:
        return ""
    fixed = draw.root
    stored = draw.tensor(bias_name(population.name), values.astype(np.int16))
    shifted = fixed.add("Mul", fixed.cast(stored, kind), draw.constant(1 << STATE_EXP, kind))
    if places is not None:
        index = fixed.cast(draw.tensor(places_name(population.name), places), np.int32)
        return fixed.reshape(fixed.add("Gather", shifted, index, axis=0), [population.size])
    if values.size in (1, population.size):
        return shifted
    return fixed.add("Tile", shifted, draw.constant([population.size // values.size], np.int64))


def _channels(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 3 else int(np.prod(shape))
