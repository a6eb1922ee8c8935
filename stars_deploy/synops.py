"""Synaptic operations: which stored weights a spike meets, counted and not assumed.

A synaptic operation (synop) is one spike at one stored non-zero weight whose target neuron exists: NeuroBench's
``Effective_ACs``, and what the counters of Loihi 2 read (0.1 to 0.5 % on the full cores of lava-dl's PilotNet). A
weight that would look into the padding is never met. A graded input message meets weights in the same way
(``Effective_MACs``) and is counted apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from stars_deploy.precision import Precision
from stars_deploy.quantized import ConvProjection, IntArray, Projection, QuantizedGraph
from stars_deploy.targets.base import SpikeRecord
from stars_deploy.targets.reference import present, project

_BIT = Precision(bits=1, signed=False)


def fan_out(projection: Projection, shape: tuple[int, ...], *, stored: bool = False) -> IntArray:
    """Return how many synapses one spike of each source neuron drives.

    Parameters
    ----------
    projection : Projection
    shape : tuple of int
        Shape of the source population.
    stored : bool
        Count stored zero weights as well (what dense storage reads); otherwise non-zero weights only.

    Returns
    -------
    array of int, of `shape` [synapses]
    """
    weight = projection.weight
    kept: IntArray = np.ones_like(weight) if stored else (weight != 0).astype(np.int64)
    if not isinstance(projection, ConvProjection):
        fans: IntArray = kept.sum(axis=0, dtype=np.int64).reshape(shape)
        return fans
    out, per_group, rows, columns = weight.shape
    per_tap = kept.reshape(projection.groups, out // projection.groups, per_group, rows, columns).sum(axis=1)
    per_tap = per_tap.reshape(shape[0], rows, columns)
    _, height, width = projection.output_shape(shape)
    (pad_y, pad_x), (step_y, step_x), (dilate_y, dilate_x) = projection.padding, projection.stride, projection.dilation
    padded = np.zeros((shape[0], shape[1] + 2 * pad_y, shape[2] + 2 * pad_x), np.int64)
    for y in range(rows):
        for x in range(columns):
            top, left = y * dilate_y, x * dilate_x
            padded[
                :,
                top : top + step_y * (height - 1) + 1 : step_y,
                left : left + step_x * (width - 1) + 1 : step_x,
            ] += per_tap[:, y, x, None, None]
    return padded[:, pad_y : pad_y + shape[1], pad_x : pad_x + shape[2]]


def connections(projection: Projection, shape: tuple[int, ...]) -> int:
    """Return the synapses between neurons that exist, zero weights included: an ANN's multiply-accumulates."""
    return int(fan_out(projection, shape, stored=True).sum())


@dataclass(frozen=True, kw_only=True)
class Wire:
    """Synapses of one delay, prepared for counting: fan-out per source neuron (flat)."""

    projection: Projection
    delay: int
    effective: IntArray
    stored: IntArray

    @cached_property
    def ones(self) -> Projection:
        """The synapses with 1 for each non-zero weight; made only for who counts from a record of spikes."""
        weight = (self.projection.weight != 0).astype(np.int64)
        return replace(self.projection, weight=weight, precision=_BIT)


@dataclass(frozen=True, kw_only=True)
class LayerCounts:
    """Sums over a batch for one population, each an array of int (T,).

    ``active`` counts neuron updates in which the neuron received a spike or a graded message through a non-zero
    weight, or fired.
    """

    spikes: IntArray
    spike_synops: IntArray
    input_synops: IntArray
    dense_synops: IntArray
    active: IntArray

    def __add__(self, other: LayerCounts) -> LayerCounts:
        return LayerCounts(
            spikes=self.spikes + other.spikes,
            spike_synops=self.spike_synops + other.spike_synops,
            input_synops=self.input_synops + other.input_synops,
            dense_synops=self.dense_synops + other.dense_synops,
            active=self.active + other.active,
        )


@dataclass(frozen=True, kw_only=True)
class NeuronSums:
    """What each neuron did at each timestep, summed over samples.

    Parameters
    ----------
    sent : mapping of str to array of int, (T, *shape)
        Messages of the input (non-zero pixels; none where the image sets biases) and spikes of each population.
    active : mapping of str to array of int, (T, *shape)
        Of each population: samples in which the neuron received something through a non-zero weight, or fired.
    """

    sent: Mapping[str, IntArray]
    active: Mapping[str, IntArray]


def merge_sums(parts: Sequence[NeuronSums | None]) -> NeuronSums | None:
    """Return the sums over all `parts`; None if one of them is, or if there are none."""
    known = [part for part in parts if part is not None]
    if not known or len(known) != len(parts):
        return None
    first, *others = known
    if not others:
        return first
    return NeuronSums(
        sent={name: sum((part.sent[name] for part in others), sums) for name, sums in first.sent.items()},
        active={name: sum((part.active[name] for part in others), sums) for name, sums in first.active.items()},
    )


def wire_up(graph: QuantizedGraph) -> tuple[Wire, ...]:
    """Return the synapses of `graph`, prepared for :func:`count_batch`."""
    return tuple(
        Wire(
            projection=synapses,
            delay=delay,
            effective=fan_out(synapses, graph.shape_of(projection.source)).ravel(),
            stored=_stored(projection, delay, graph.shape_of(projection.source)).ravel(),
        )
        for projection in graph.projections
        for delay, synapses in projection.by_delay()
    )


def _stored(projection: Projection, delay: int, shape: tuple[int, ...]) -> IntArray:
    """Return the synapses of one delay that a spike of each source neuron meets, stored zero weights included."""
    if isinstance(projection.delay, int):
        return fan_out(projection, shape, stored=True)
    stored: IntArray = (projection.delay == delay).sum(axis=0, dtype=np.int64).reshape(shape)
    return stored


def find_active(
    graph: QuantizedGraph, wires: tuple[Wire, ...], record: SpikeRecord, images: IntArray
) -> dict[str, npt.NDArray[np.bool_]]:
    """Return which neurons received something through a non-zero weight or fired, (T, B, *shape) for each population.

    Parameters as for :func:`count_batch`.
    """
    sent = _messages(graph, record, images)
    active = {population.name: sent[population.name].copy() for population in graph.populations}
    for wire in wires:
        _touch(active[wire.projection.target], wire, sent[wire.projection.source])
    return active


def count_batch(
    graph: QuantizedGraph,
    wires: tuple[Wire, ...],
    record: SpikeRecord,
    images: IntArray,
    active: Mapping[str, npt.NDArray[np.bool_]] | None = None,
) -> dict[str, LayerCounts]:
    """Count what a batch made each population do.

    Parameters
    ----------
    graph : QuantizedGraph
    wires : tuple of Wire
        From :func:`wire_up` of the same graph.
    record : SpikeRecord
        Spikes (T, B, *shape).
    images : array of int, (B, *shape) or (T, B, *shape) [LSB]
        A pixel of 0 sends no message; one that sets a bias sends none at all.
    active : mapping of str to array of bool, optional
        From :func:`find_active`, where that is known already.

    Returns
    -------
    dict of str to LayerCounts
        Sums over the batch. A spike whose delay would bring it in after the last timestep meets no weight.
    """
    sent = _messages(graph, record, images)
    busy = find_active(graph, wires, record, images) if active is None else active
    return {name: _count_layer(graph, name, wires, sent, marks) for name, marks in busy.items()}


def sum_neurons(
    graph: QuantizedGraph, record: SpikeRecord, images: IntArray, active: Mapping[str, npt.NDArray[np.bool_]]
) -> NeuronSums:
    """Return the sums of each neuron over a batch; `active` from :func:`find_active`."""
    sent = _messages(graph, record, images)
    return NeuronSums(
        sent={name: flags.sum(axis=1, dtype=np.int64) for name, flags in sent.items()},
        active={name: flags.sum(axis=1, dtype=np.int64) for name, flags in active.items()},
    )


def _messages(graph: QuantizedGraph, record: SpikeRecord, images: IntArray) -> dict[str, npt.NDArray[np.bool_]]:
    """Return what the input and each population send, (T, B, *shape) each."""
    pixels = present(graph, images != 0)
    return {graph.input.name: np.zeros_like(pixels) if graph.input.biases else pixels, **record.spikes}


def _count_layer(
    graph: QuantizedGraph,
    name: str,
    wires: tuple[Wire, ...],
    sent: Mapping[str, npt.NDArray[np.bool_]],
    active: npt.NDArray[np.bool_],
) -> LayerCounts:
    steps = graph.timesteps
    from_spikes, from_input, dense = (np.zeros(steps, np.int64) for _ in range(3))
    for wire in wires:
        if wire.projection.target != name or wire.delay >= steps:
            continue
        source = wire.projection.source
        messages = sent[source].reshape(*sent[source].shape[:2], -1).sum(axis=1)
        arriving = messages[: steps - wire.delay]
        (from_input if source == graph.input.name else from_spikes)[wire.delay :] += arriving @ wire.effective
        dense[wire.delay :] += arriving @ wire.stored
    per_step = (steps, -1)
    return LayerCounts(
        spikes=sent[name].reshape(per_step).sum(axis=1),
        spike_synops=from_spikes,
        input_synops=from_input,
        dense_synops=dense,
        active=active.reshape(per_step).sum(axis=1),
    )


def _touch(touched: npt.NDArray[np.bool_], wire: Wire, spikes: npt.NDArray[np.bool_]) -> None:
    """Mark in `touched` (T, B, *shape) the neurons that spikes reach, one timestep at a time to bound memory."""
    for step in range(wire.delay, len(touched)):
        touched[step] |= project(wire.ones, spikes[step - wire.delay].astype(np.int64)) > 0
