"""How a population is cut into the parts that one core holds each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from stars_deploy.hardware.memory import words_of
from stars_deploy.hardware.profile import ChipProfile
from stars_deploy.populations import Population
from stars_deploy.projections import Projection

#: A part of a population: (first, beyond the last) along each axis of its shape.
Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How one population is cut.

    Parameters
    ----------
    tile : tuple of int
        Channels, rows and columns of a full part; neurons, 1, 1 of a flat population.
    parts : tuple of int
        Number of parts along each of these.
    binding : str
        The limit that asked for the last cut: ``neurons``, ``synaptic_words``, ``axons_in``, ``axons_out``; or
        ``tile_width`` where one core could hold everything, but for widths being powers of two; or ``none``.
    """

    tile: tuple[int, int, int]
    parts: tuple[int, int, int]
    binding: str = "none"

    @property
    def cores(self) -> int:
        """Number of parts."""
        return math.prod(self.parts)


def cut(population: Population, entering: tuple[Projection, ...], profile: ChipProfile) -> Tiling:
    """Return the coarsest tiling that holds the limits of neurons and synaptic memory, as Intel's compiler cuts.

    A feature map is cut into strips whose width is the largest power of two with ``width x rows x channels`` neurons
    within the limit (also where one core had room for all of it: the compiler cut 20 columns into 16 and 4);
    only if one column is too much, its rows are cut likewise, then its channels; channels are halved as well where a
    kernel alone overruns the memory. A flat population is cut into as many equal parts as the limit is
    overrun, again and again until none is. The finest tiling is returned where not even that suffices.
    """
    if len(population.shape) == 3:
        return _cut_map(population, entering, profile)
    return _cut_flat(population, entering, profile)


def finer(tiling: Tiling, population: Population, binding: str) -> Tiling | None:
    """Return the next finer tiling, because of the limit `binding`; None if each part is one neuron."""
    if len(population.shape) != 3:
        parts = min(2 * tiling.cores, population.size)
        return None if parts == tiling.cores else replace(_flat(population.size, parts), binding=binding)
    channels, height, width = tiling.tile
    for axis, length in ((2, width), (1, height), (0, channels)):
        if length > 1:
            tile = list(tiling.tile)
            tile[axis] = 1 << (length - 1).bit_length() - 1
            return replace(_tiled(population, (tile[0], tile[1], tile[2])), binding=binding)
    return None


def boxes(tiling: Tiling, population: Population) -> Iterator[Box]:
    """Yield the part of each core, in C order of the parts."""
    if len(population.shape) != 3:
        for index in range(tiling.cores):
            # Equal parts: the first ones get what is left over.
            small, more = divmod(population.size, tiling.cores)
            first = index * small + min(index, more)
            yield ((first, first + small + (index < more)),)
        return
    spans = [
        [(first, min(first + length, size)) for first in range(0, size, length)]
        for length, size in zip(tiling.tile, population.shape, strict=True)
    ]
    yield from itertools.product(*spans)


def _cut_map(population: Population, entering: tuple[Projection, ...], profile: ChipProfile) -> Tiling:
    limits = profile.limits
    channels, height, width = population.shape
    words, neurons = int(limits.synaptic_words_per_core.nominal), int(limits.neurons_per_core.nominal)
    binding = "none"
    while channels > 1 and sum(words_of(one, channels, profile) for one in entering) > words:
        channels, binding = -(-channels // 2), "synaptic_words"
    if width * height * channels > neurons:
        binding = "neurons"
    if channels > neurons:
        width, height, channels = 1, 1, _power_below(neurons)
    elif height * channels > neurons:
        width, height = 1, _power_below(neurons // channels)
    else:
        width = _power_below(min(width, neurons // (height * channels)))
    if binding == "none" and width < population.shape[2]:
        binding = "tile_width"
    return replace(_tiled(population, (channels, height, width)), binding=binding)


def _cut_flat(population: Population, entering: tuple[Projection, ...], profile: ChipProfile) -> Tiling:
    limits = profile.limits
    parts, binding = 1, "none"
    while True:
        size = -(-population.size // parts)
        over = {
            "neurons": size / limits.neurons_per_core.nominal,
            "synaptic_words": sum(words_of(one, size, profile) for one in entering)
            / limits.synaptic_words_per_core.nominal,
        }
        worst = max(over, key=lambda name: over[name])
        if over[worst] <= 1 or parts == population.size:
            return replace(_flat(population.size, parts), binding=binding)
        parts, binding = min(parts * math.ceil(over[worst]), population.size), worst


def _flat(size: int, parts: int) -> Tiling:
    return Tiling(tile=(-(-size // parts), 1, 1), parts=(parts, 1, 1))


def _tiled(population: Population, tile: tuple[int, int, int]) -> Tiling:
    channels, rows, columns = (-(-size // length) for length, size in zip(tile, population.shape, strict=True))
    return Tiling(tile=tile, parts=(channels, rows, columns))


def _power_below(number: int) -> int:
    """Return the largest power of two of at most `number`."""
    return 1 << number.bit_length() - 1
