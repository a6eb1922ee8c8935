"""Which synapses on which core a spike of each neuron meets, and which messages carry it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stars_deploy.hardware.tiling import Box
from stars_deploy.populations import IntArray
from stars_deploy.projections import ConvProjection, DenseProjection, Projection
from stars_deploy.quantized import QuantizedGraph

#: In place of a core: the input, which comes from outside.
OUTSIDE = -1


@dataclass(frozen=True, kw_only=True)
class Fan:
    """Synapses of one delay on one core.

    Parameters
    ----------
    source, target : str
    core : int
    dense : bool
        Whether each synapse is stored by itself, not a kernel.
    delay : int [timesteps]
    sources : array of int, (n,)
        Source neurons with at least one stored synapse there, counted in C order of their population.
    effective, stored : array of int, (n,)
        Synapses that a spike of each of them meets: with a non-zero weight, and all.
    """

    source: str
    target: str
    core: int
    dense: bool
    delay: int
    sources: IntArray
    effective: IntArray
    stored: IntArray


@dataclass(frozen=True, kw_only=True)
class Route:
    """Messages from one population to one core; a spike sends one, whatever number of synapses it meets there.

    Parameters
    ----------
    source, target : str
    core : int
        Where they go.
    sources : array of int, (n,)
        Source neurons with a non-zero weight there, ordered by their core.
    source_cores, starts : array of int, (m,)
        Cores that they are on (:data:`OUTSIDE` for the input), and where in ``sources`` those of each begin.
    axons : array of int, (m,)
        Distinct axons from each of these cores: neurons, or for a convolution pixels, whose channels share one.
    axons_in : int
        Distinct axons in all.
    """

    source: str
    target: str
    core: int
    sources: IntArray
    source_cores: IntArray
    starts: IntArray
    axons: IntArray
    axons_in: int


def find_fans(graph: QuantizedGraph, projection: Projection, core: int, box: Box) -> tuple[Fan, ...]:
    """Return the synapses of `projection` on the core that holds the part `box` of its target, one for each delay."""
    shape = graph.shape_of(projection.source)
    fans = []
    for delay, synapses in projection.by_delay():
        if isinstance(synapses, ConvProjection):
            sources, effective, stored = _convolved(synapses, shape, box)
        else:
            sources, effective, stored = _listed(projection, synapses, delay, box)
        fans.append(
            Fan(
                source=projection.source, target=projection.target, core=core,
                dense=isinstance(projection, DenseProjection), delay=delay,
                sources=sources, effective=effective, stored=stored,
            )
        )  # fmt: skip
    return tuple(fans)


def find_route(graph: QuantizedGraph, fans: tuple[Fan, ...], core_of: Mapping[str, IntArray]) -> Route:
    """Return the messages of one population to one core, whose synapses there `fans` holds.

    Parameters
    ----------
    graph : QuantizedGraph
    fans : tuple of Fan
        Of all projections and delays between the two: they share the messages.
    core_of : mapping of str to array of int, (neurons,)
        Core of each neuron; a source that is not in it is outside.
    """
    first = fans[0]
    met = np.unique(np.concatenate([fan.sources[fan.effective > 0] for fan in fans]))
    cores = core_of[first.source][met] if first.source in core_of else np.full(len(met), OUTSIDE)
    order = np.argsort(cores, kind="stable")
    met, cores = met[order], cores[order]
    source_cores, starts = np.unique(cores, return_index=True)
    shape = graph.shape_of(first.source)
    axons = met if first.dense or len(shape) != 3 else met % (shape[1] * shape[2])
    ends = [*starts[1:], len(met)][: len(starts)]  # none where all weights are zeros
    return Route(
        source=first.source,
        target=first.target,
        core=first.core,
        sources=met,
        source_cores=source_cores,
        starts=starts,
        axons=np.array([len(np.unique(axons[a:b])) for a, b in zip(starts, ends, strict=True)], np.int64),
        axons_in=len(np.unique(axons)),
    )


def _listed(projection: Projection, synapses: Projection, delay: int, box: Box) -> tuple[IntArray, IntArray, IntArray]:
    rows = slice(*box[0])
    effective = (synapses.weight[rows] != 0).sum(axis=0)
    if isinstance(projection.delay, int):
        stored = np.full(len(effective), box[0][1] - box[0][0])
    else:
        stored = (projection.delay[rows] == delay).sum(axis=0)
    sources = np.flatnonzero(stored)
    return sources, effective[sources], stored[sources]


def _convolved(projection: ConvProjection, shape: tuple[int, ...], box: Box) -> tuple[IntArray, IntArray, IntArray]:
    """Return the sources that the outputs in `box` look at, and how many synapses of theirs each meets."""
    (c0, c1), *spans = box
    corner, size, places = [], [], []
    for axis, (first, last) in enumerate(spans):
        taps = projection.weight.shape[2 + axis]
        step, spread, padding = (pair[axis] for pair in (projection.stride, projection.dilation, projection.padding))
        corner.append(first * step - padding)
        size.append((last - first - 1) * step + (taps - 1) * spread + 1)
        places.append([slice(tap * spread, tap * spread + (last - first - 1) * step + 1, step) for tap in range(taps)])
    tables = _taps(projection, shape[0], c0, c1)
    seen = np.zeros((2, shape[0], *size), np.int64)
    for y, rows in enumerate(places[0]):
        for x, columns in enumerate(places[1]):
            seen[:, :, rows, columns] += tables[:, :, y, x, None, None]
    inside = [
        slice(max(0, -start), min(length, limit - start))
        for start, length, limit in zip(corner, size, shape[1:], strict=True)
    ]
    effective, stored = seen[:, :, inside[0], inside[1]]
    channel, row, column = np.nonzero(stored)
    row, column = row + max(corner[0], 0), column + max(corner[1], 0)
    kept = stored > 0
    return (channel * shape[1] + row) * shape[2] + column, effective[kept], stored[kept]


def _taps(projection: ConvProjection, channels: int, first: int, last: int) -> npt.NDArray[np.int64]:
    """Return how many of the output channels [first, last) each input channel and kernel position reaches.

    (2, channels, kh, kw): with non-zero weights, and in all.
    """
    outputs, per_group, rows, columns = projection.weight.shape
    width = outputs // projection.groups
    tables = np.zeros((2, channels, rows, columns), np.int64)
    for group in range(first // width, -(-last // width)):
        weight = projection.weight[max(first, group * width) : min(last, (group + 1) * width)]
        inputs = slice(group * per_group, (group + 1) * per_group)
        tables[0, inputs] = (weight != 0).sum(axis=0)
        tables[1, inputs] = len(weight)
    return tables
