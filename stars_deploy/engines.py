"""What runs networks: the fast engine, which counts while it runs, or anything that records every spike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stars_deploy.engine import DEFAULT_MEMORY, FastEngine
from stars_deploy.errors import TargetError
from stars_deploy.quantized import IntArray, QuantizedGraph
from stars_deploy.synops import LayerCounts, NeuronSums, count_batch, find_active, sum_neurons, wire_up
from stars_deploy.targets.base import SpikeArray, SpikeRecord

#: Runs a graph on a batch of quantised images, (B, *shape) or (T, B, *shape) [LSB], and returns every spike.
Execute = Callable[[QuantizedGraph, IntArray], SpikeRecord]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a batch gave.

    Parameters
    ----------
    classes : array of int, (B,)
        The answer to each sample.
    counts : mapping of str to LayerCounts
        Of each population, summed over the batch.
    sums : NeuronSums or None
        Of each neuron, where they were asked for.
    """

    classes: npt.NDArray[np.int64]
    counts: Mapping[str, LayerCounts]
    sums: NeuronSums | None = None


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Every spike of a batch, and which neurons were touched or fired: bool (T, B, *shape) for each population."""

    spikes: Mapping[str, SpikeArray]
    active: Mapping[str, SpikeArray]


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A network made ready by an engine; both take quantised images, (B, *shape) or (T, B, *shape) [LSB].

    Parameters
    ----------
    measure : callable
        ``measure(images, per_neuron)`` counts.
    trace : callable
        ``trace(images)`` keeps every spike.
    """

    measure: Callable[[IntArray, bool], Measurement]
    trace: Callable[[IntArray], Trace]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What runs networks.

    Parameters
    ----------
    prepare : callable
        Makes a graph ready for running.
    samples : int
        Most samples that it should be given at a time.
    """

    prepare: Callable[[QuantizedGraph], Runner]
    samples: int


def fast_engine(threads: int | None = None, memory: int = DEFAULT_MEMORY) -> Engine:
    """Return the engine that counts while it runs, without keeping spikes.

    Parameters
    ----------
    threads, memory
        See :class:`stars_deploy.engine.FastEngine`.
    """

    def prepare(graph: QuantizedGraph) -> Runner:
        engine = FastEngine(graph, threads=threads, memory=memory)
        names = [population.name for population in graph.populations]

        def measure(images: IntArray, per_neuron: bool) -> Measurement:
            run = engine.run(images, per_neuron=per_neuron)
            return Measurement(classes=run.classes(), counts=run.counts, sums=run.sums)

        def trace(images: IntArray) -> Trace:
            run = engine.run(images, record=names, activity=True)
            return Trace(spikes=run.spikes, active=run.active)

        return Runner(measure=measure, trace=trace)

    return Engine(prepare=prepare, samples=256)


def recording_engine(execute: Execute) -> Engine:
    """Return an engine that has `execute` record every spike, and counts them afterwards."""

    def prepare(graph: QuantizedGraph) -> Runner:
        wires = wire_up(graph)

        def run(images: IntArray) -> tuple[SpikeRecord, dict[str, SpikeArray]]:
            record = execute(graph, images)
            _check_record(graph, record, images.shape[1 if graph.input.over_time(images) else 0])
            return record, find_active(graph, wires, record, images)

        def measure(images: IntArray, per_neuron: bool) -> Measurement:
            record, active = run(images)
            return Measurement(
                classes=record.classes(),
                counts=count_batch(graph, wires, record, images, active),
                sums=sum_neurons(graph, record, images, active) if per_neuron else None,
            )

        def trace(images: IntArray) -> Trace:
            record, active = run(images)
            return Trace(spikes=record.spikes, active=active)

        return Runner(measure=measure, trace=trace)

    return Engine(prepare=prepare, samples=32)


def _check_record(graph: QuantizedGraph, record: SpikeRecord, samples: int) -> None:
    for population in graph.populations:
        expected = (graph.timesteps, samples, *population.shape)
        spikes = record.spikes.get(population.name)
        if spikes is None or spikes.shape != expected:
            got = "no spikes" if spikes is None else f"spikes of shape {spikes.shape}"
            raise TargetError(population.name, f"the engine returned {got}", f"{expected}")
