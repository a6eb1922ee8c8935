"""A quantised graph made ready to run: tables laid out for the kernels, and the narrowest numbers that are exact.

Frames are channels last, (H, W, C) flat, everywhere in the engine. Which numbers a population's activation is summed in
follows from the largest magnitude that it can reach: 16 bits for spikes where that suffices (twice the lanes of 32),
float32 for graded values while every sum stays an exact integer, wider integers elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from stars_deploy.bounds import signed_sums, value_range
from stars_deploy.engine.lanes import UNIT
from stars_deploy.populations import DECAY_ONE, STATE_EXP, IntArray, Population
from stars_deploy.projections import DenseProjection, Projection
from stars_deploy.quantized import QuantizedGraph

Numbers = npt.NDArray[Any]

#: What the entries of ``Window.shape`` are, in order.
GEOMETRY = (
    *("source height", "source width", "source channels", "target height", "target width", "target channels"),
    *("kernel height", "kernel width", "stride y", "stride x", "padding y", "padding x", "dilation y", "dilation x"),
    *("groups", "blocks of lanes in a group"),
)
#: Integers up to here are exact in float32.
FLOAT_LIMIT = 1 << 24
#: Tables up to here [bytes] stay in a cache as they are; of larger ones, narrow weights are read faster.
_SMALL_TABLES = 1 << 16
#: Widest accumulator that pays [bytes]: wider ones no longer fit the registers.
_WIDEST = 256


@dataclass(frozen=True, kw_only=True)
class Window:
    """Synapses of one delay as tables for :func:`~stars_deploy.engine.kernels.project_frames`.

    A dense projection is a convolution whose kernel covers all of the source.
    """

    source: str
    delay: int
    graded: bool
    units: tuple[int, ...]
    shape: IntArray
    tables: Numbers
    nonzero: npt.NDArray[np.uint8]
    zeros: IntArray

    @property
    def alone(self) -> bool:
        """Whether there is one group only, so that its lanes run into no other's outputs."""
        return int(self.shape[14]) == 1


@dataclass(frozen=True, kw_only=True)
class Synapses:
    """Synapses of many delays as lists for :func:`~stars_deploy.engine.kernels.project_synapses`."""

    source: str
    delays: IntArray
    starts: IntArray
    targets: npt.NDArray[np.int32]
    weights: Numbers


Wiring = Union[Window, Synapses]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One population with what enters it.

    Parameters
    ----------
    population : Population
    name : str
    size : int
        Number of neurons.
    wirings : tuple of Wiring
    sums, state : dtype
        Of the activation, and of the state variables.
    keep_u, keep_v : array of `state`, (neurons,)
        4096 - decay, channels last.
    bias : array of `state`, (1, 1, neurons)
        Shifted, channels last.
    threshold : array of `state`, (neurons,)
        Shifted, channels last.
    leaks : bool
        Whether a current outlasts its timestep.
    resets : array of bool, (T,)
    slack : int
        Lanes of slack behind each frame of the activation.
    steady_delay : int or None
        The delay of all that enters, if it comes from the input alone and at once: an image that stays then makes the
        same activation at every later timestep.
    """

    population: Population
    name: str
    size: int
    wirings: tuple[Wiring, ...]
    sums: np.dtype[Any]
    state: np.dtype[Any]
    keep_u: Numbers
    keep_v: Numbers
    bias: Numbers
    threshold: Numbers
    leaks: bool
    resets: npt.NDArray[np.bool_]
    slack: int
    steady_delay: int | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A graph ready to run.

    Parameters
    ----------
    graph : QuantizedGraph
    layers : tuple of Layer
    blocks : tuple of tuple of Layer
        Layers in order; those of one block depend on each other in a loop and are stepped together.
    history : mapping of str to int
        For the input and each population, how many timesteps back anything looks.
    """

    graph: QuantizedGraph
    layers: tuple[Layer, ...]
    blocks: tuple[tuple[Layer, ...], ...]
    history: dict[str, int]


def make_plan(graph: QuantizedGraph) -> Plan:
    """Lay out the tables of `graph`."""
    layers = tuple(_plan_layer(graph, population) for population in graph.populations)
    history = dict.fromkeys([graph.input.name, *(population.name for population in graph.populations)], 0)
    for projection in graph.projections:
        longest = min(int(np.max(projection.delay)), graph.timesteps)
        history[projection.source] = max(history[projection.source], longest)
    return Plan(graph=graph, layers=layers, blocks=_find_blocks(graph, layers), history=history)


def lay_out(values: Numbers, shape: tuple[int, ...], kind: npt.DTypeLike | None = None) -> Numbers:
    """Return `values` (..., *shape) flat and channels last, (..., neurons), C-ordered, in their type or in `kind`."""
    if len(shape) == 3:
        values = np.moveaxis(values, -3, -1)
    return np.ascontiguousarray(values, dtype=kind).reshape(*values.shape[: values.ndim - len(shape)], -1)


def restore(values: Numbers, shape: tuple[int, ...]) -> Numbers:
    """Undo :func:`lay_out`: return a view of `values` (..., neurons) as (..., *shape)."""
    if len(shape) != 3:
        return values.reshape(*values.shape[:-1], *shape)
    channels, height, width = shape
    return np.moveaxis(values.reshape(*values.shape[:-1], height, width, channels), -1, -3)


def is_graded(graph: QuantizedGraph, source: str) -> bool:
    """Whether `source` sends other values than 0 and 1."""
    return value_range(graph, source) not in ((0, 0), (0, 1))


def fits_32_bits(largest: int, leaks: bool) -> bool:
    """Whether a population whose activations reach `largest` can be updated in 32-bit integers.

    A current that leaks stays within 24 bits after its one wrap only while the shifted activation is at most 2**24; one
    that does not only has to leave room for membrane and bias.
    """
    return largest << STATE_EXP <= (1 << 24 if leaks else 1 << 30)


def _plan_layer(graph: QuantizedGraph, population: Population) -> Layer:
    entering = graph.into(population.name)
    largest = sum(_largest_sum(graph, projection) for projection in entering)
    sums = _exact_type(largest, any(is_graded(graph, projection.source) for projection in entering))
    state = np.dtype(np.int32 if fits_32_bits(largest, population.leaks_current) else np.int64)
    arriving = [projection for projection in entering if np.min(projection.delay) < graph.timesteps]
    wirings = tuple(_wire(graph, projection, sums) for projection in arriving)
    size = population.size

    def spread(values: Union[int, IntArray]) -> Numbers:
        return lay_out(np.broadcast_to(values, population.shape), population.shape).astype(state).reshape(size)

    return Layer(
        population=population,
        name=population.name,
        size=size,
        wirings=wirings,
        sums=sums,
        state=state,
        keep_u=spread(DECAY_ONE - population.decay_u),
        keep_v=spread(DECAY_ONE - population.decay_v),
        bias=spread(population.bias << STATE_EXP).reshape(1, 1, size),
        threshold=spread(np.left_shift(population.vth, STATE_EXP)),
        leaks=population.leaks_current,
        resets=np.array([population.resets_at(step + 1) for step in range(graph.timesteps)]),
        steady_delay=_steady_delay(graph, wirings),
        slack=max((len(wiring.units) * UNIT for wiring in wirings if isinstance(wiring, Window)), default=0),
    )


def _steady_delay(graph: QuantizedGraph, wirings: tuple[Wiring, ...]) -> int | None:
    delays = {wiring.delay if isinstance(wiring, Window) else None for wiring in wirings}
    from_input = {wiring.source for wiring in wirings} == {graph.input.name}
    return delays.pop() if from_input and len(delays) == 1 else None


def _largest_sum(graph: QuantizedGraph, projection: Projection) -> int:
    negative, positive = signed_sums(projection)
    return int((positive - negative).max()) * max(abs(value) for value in value_range(graph, projection.source))


def _exact_type(largest: int, graded: bool) -> np.dtype[Any]:
    if not graded and largest < 1 << 15:
        return np.dtype(np.int16)
    if graded and largest <= FLOAT_LIMIT:
        return np.dtype(np.float32)
    return np.dtype(np.int32 if largest < 1 << 31 else np.int64)


def _wire(graph: QuantizedGraph, projection: Projection, sums: np.dtype[Any]) -> Wiring:
    if not isinstance(projection.delay, int):
        return _list_synapses(graph, projection, sums)
    shape = graph.shape_of(projection.source)
    planes = (shape[0], 1, 1) if len(shape) == 1 else shape
    kernel, geometry = _as_window(projection, planes)
    groups = int(geometry[-1])
    units, blocks = _choose_lanes(len(kernel) // groups, sums)
    tables = _tabulate(kernel, groups, blocks, len(units) * UNIT)
    absent = (kernel == 0).reshape(len(kernel), -1).sum(axis=1).reshape(groups, -1)
    lanes = len(units) * UNIT
    zeros = [[row[start : start + lanes].max() for start in range(0, row.size, lanes)] for row in absent]
    return Window(
        source=projection.source,
        delay=projection.delay,
        graded=is_graded(graph, projection.source),
        units=units,
        shape=np.array([*planes[1:], planes[0], *geometry, blocks], np.int64),
        tables=tables.astype(_stored_type(tables, sums)),
        nonzero=(tables != 0).astype(np.uint8),
        zeros=np.array(zeros, np.int64).ravel(),
    )


def _as_window(projection: Projection, planes: tuple[int, ...]) -> tuple[IntArray, tuple[int, ...]]:
    """Return the kernel (out, in/groups, kh, kw), and the geometry from the target's height to the groups."""
    if isinstance(projection, DenseProjection):
        out = len(projection.weight)
        return projection.weight.reshape(out, *planes), (1, 1, out, *planes[1:], 1, 1, 0, 0, 1, 1, 1)
    channels, height, width = projection.output_shape(planes)
    geometry = (*projection.weight.shape[2:], *projection.stride, *projection.padding, *projection.dilation)
    return projection.weight, (height, width, channels, *geometry, projection.groups)


def _choose_lanes(outputs: int, sums: np.dtype[Any]) -> tuple[tuple[int, ...], int]:
    """Return the units of 16 lanes of one accumulator, and how many of them hold the outputs of a group."""
    units = 1
    while units * UNIT < outputs and 2 * units * UNIT * sums.itemsize <= _WIDEST:
        units *= 2
    return (0,) * units, -(-outputs // (units * UNIT))


def _stored_type(tables: IntArray, sums: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type to keep weights in: that of the sums, or narrower integers where the tables are large."""
    if sums.kind == "f" or tables.size * sums.itemsize <= _SMALL_TABLES:
        return sums
    both = np.result_type(np.min_scalar_type(tables.min()), np.min_scalar_type(-abs(int(tables.max())) - 1))
    return np.dtype(f"i{both.itemsize}")


def _tabulate(kernel: IntArray, groups: int, blocks: int, lanes: int) -> IntArray:
    """Return the weights as (groups, blocks, kernel height, kernel width, channels, lanes), flat."""
    out, width, height, columns = kernel.shape
    padded = np.zeros((groups, blocks * lanes, width, height, columns), np.int64)
    padded[:, : out // groups] = kernel.reshape(groups, -1, width, height, columns)
    split = padded.reshape(groups, blocks, lanes, width, height, columns)
    return np.ascontiguousarray(split.transpose(0, 1, 4, 5, 3, 2)).ravel()


def _list_synapses(graph: QuantizedGraph, projection: Projection, sums: np.dtype[Any]) -> Synapses:
    shape = graph.shape_of(projection.source)
    delays, starts, targets, weights = [], [], [], []
    listed = 0
    for delay, synapses in projection.by_delay():
        if delay >= graph.timesteps:
            continue
        columns = lay_out(synapses.weight.reshape(-1, *shape), shape).T
        source, target = np.nonzero(columns)
        delays.append(delay)
        starts.append(listed + np.searchsorted(source, np.arange(len(columns) + 1)))
        targets.append(target)
        weights.append(columns[source, target])
        listed += len(source)
    width = int(np.prod(shape)) + 1
    return Synapses(
        source=projection.source,
        delays=np.array(delays, np.int64),
        starts=np.array(starts, np.int64).reshape(len(delays), width),
        targets=np.concatenate([np.zeros(0, np.int64), *targets]).astype(np.int32),
        weights=np.concatenate([np.zeros(0, np.int64), *weights]).astype(sums),
    )


def _find_blocks(graph: QuantizedGraph, layers: tuple[Layer, ...]) -> tuple[tuple[Layer, ...], ...]:
    """Return the layers in order, those that a loop spans together."""
    place = {layer.name: index for index, layer in enumerate(layers)}
    reach = list(range(len(layers)))
    for projection in graph.projections:
        target = place[projection.target]
        reach[target] = max(reach[target], place.get(projection.source, -1))
    blocks: list[tuple[Layer, ...]] = []
    start = 0
    while start < len(layers):
        last = index = start
        while index <= last:
            last = max(last, reach[index])
            index += 1
        blocks.append(layers[start : last + 1])
        start = last + 1
    return tuple(blocks)
