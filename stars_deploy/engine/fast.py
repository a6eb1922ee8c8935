"""The fast engine: a quantised graph compiled once, and run on batches of any size within a budget of memory."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stars_deploy.engine.execution import Runner
from stars_deploy.engine.plan import make_plan
from stars_deploy.engine.tally import Fans
from stars_deploy.engine.workspace import Extent, choose_extent
from stars_deploy.errors import ConfigError
from stars_deploy.quantized import IntArray, QuantizedGraph
from stars_deploy.synops import LayerCounts, NeuronSums, merge_sums
from stars_deploy.targets.base import SpikeArray, SpikeRecord, choose_classes
from stars_deploy.targets.reference import check_images

#: Memory that a run may use beside its images and its tables [bytes].
DEFAULT_MEMORY = 2 << 30


@dataclass(frozen=True, kw_only=True)
class FastRun:
    """What a network did on a batch.

    Parameters
    ----------
    potential : array of int, (B, N) [LSB]
        Membrane potential of the last population after the last timestep.
    counts : mapping of str to LayerCounts
        Sums over the batch, for each population.
    spikes, active : mapping of str to array of bool, (T, B, *shape)
        Spikes of the populations that were to be recorded; and where asked for, which of their neurons received
        something through a non-zero weight or fired.
    output_spikes : array of int, (B, N)
        Spikes of the last population over all timesteps.
    sums : NeuronSums or None
        Counts of each neuron and timestep, summed over the batch, where asked for.
    """

    potential: IntArray
    counts: Mapping[str, LayerCounts]
    spikes: Mapping[str, SpikeArray]
    output_spikes: IntArray
    active: Mapping[str, SpikeArray] = field(default_factory=dict)
    sums: NeuronSums | None = None

    def classes(self) -> npt.NDArray[np.int64]:
        """Return the predicted class of each sample, (B,): see :func:`stars_deploy.targets.base.choose_classes`."""
        return choose_classes(self.output_spikes, self.potential)


class FastEngine:
    """A network compiled for running; equal to :func:`~stars_deploy.targets.reference.run_reference` in every spike.

    Parameters
    ----------
    graph : QuantizedGraph
    threads : int, optional
        They share the samples; by default one for each processor that this process may use.
    memory : int
        Budget [bytes] for everything that grows with the samples or timesteps of a run, recorded spikes included; the
        images and the network's own tables come on top.

    Raises
    ------
    ConfigError
        If `threads` or `memory` is below 1.
    """

    def __init__(self, graph: QuantizedGraph, *, threads: int | None = None, memory: int = DEFAULT_MEMORY) -> None:
        if threads is not None and threads < 1:
            raise ConfigError("threads", threads, "at least 1")
        if memory < 1:
            raise ConfigError("memory", memory, "at least 1 byte")
        self.graph, self.memory = graph, memory
        self.threads = threads or _processors()
        self._plan = make_plan(graph)
        self._fans = Fans(self._plan)
        #: Those of the last run: fresh memory costs more than running a small network in it.
        self._idle: list[Runner] = []

    def run(
        self, images: IntArray, *, record: Collection[str] = (), activity: bool = False, per_neuron: bool = False
    ) -> FastRun:
        """Run a batch of quantised images.

        Parameters
        ----------
        images : array of int, (B, *shape) or (T, B, *shape) [LSB]
            Presented at every timestep, or one frame for each.
        record : collection of str
            Populations whose spikes are kept; all are counted in any case.
        activity : bool
            Keep of the same populations which neurons were active as well.
        per_neuron : bool
            Count each neuron apart: 16 bytes for each neuron and timestep, in each thread.

        Raises
        ------
        ConfigError
            If there is no population of a name in `record`, or the memory does not suffice.
        QuantizationError
            If the images do not fit the network's input.
        """
        check_images(self.graph, images)
        samples = images.shape[1 if self.graph.input.over_time(images) else 0]
        recorded, marked = self._recordings(record, samples, activity)
        threads = max(1, min(self.threads, samples))
        potential = np.zeros((samples, self.graph.output.size), np.int64)
        fired = np.zeros_like(potential)
        kept = sum(spikes.nbytes for spikes in (*recorded.values(), *marked.values()))
        sums_of_all = self._sum_bytes() * per_neuron
        kept += sums_of_all * (threads > 1)  # where those of the threads are merged
        each = (self.memory - 2 * potential.nbytes - kept) // threads - sums_of_all
        extent = choose_extent(self._plan, -(-samples // threads) or 1, each)
        chunks = iter([slice(start, start + extent.samples) for start in range(0, samples, extent.samples)])
        runners = self._take_runners(extent, threads, per_neuron)

        def work(runner: Runner) -> None:
            for chunk in chunks:  # shared: each thread takes the next (a list's iterator is atomic)
                parts, marks = (
                    {name: spikes[:, chunk] for name, spikes in arrays.items()} for arrays in (recorded, marked)
                )
                potential[chunk], fired[chunk] = runner.run(_take(self.graph, images, chunk), parts, marks)
            runner.close()

        if threads == 1:
            work(runners[0])
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, runners))
        counts, sums = _merge(runners), merge_sums([runner.tally.neuron_sums() for runner in runners])
        self._idle = runners
        return FastRun(
            potential=potential, counts=counts, spikes=recorded, output_spikes=fired, active=marked, sums=sums
        )

    def _sum_bytes(self) -> int:
        sources = int(np.prod(self.graph.input.shape)) + 2 * sum(layer.size for layer in self._plan.layers)
        return 8 * self.graph.timesteps * sources

    def _take_runners(self, extent: Extent, threads: int, per_neuron: bool) -> list[Runner]:
        """Return runners that have counted nothing; whoever runs at the same time gets others."""
        idle, self._idle = self._idle, []
        fitting = [one for one in idle if (one.extent, one.per_neuron) == (extent, per_neuron)][:threads]
        for runner in fitting:
            runner.forget()
        missing = threads - len(fitting)
        return fitting + [Runner(self._plan, self._fans, extent, per_neuron) for _ in range(missing)]

    def _recordings(
        self, record: Collection[str], samples: int, activity: bool
    ) -> tuple[dict[str, SpikeArray], dict[str, SpikeArray]]:
        names = [population.name for population in self.graph.populations]
        if unknown := set(record) - set(names):
            raise ConfigError("record", sorted(unknown), f"{names}")
        shapes = {name: (self.graph.timesteps, samples, *self.graph.shape_of(name)) for name in names if name in record}
        needed = sum(int(np.prod(shape)) for shape in shapes.values()) * (2 if activity else 1)
        if needed >= self.memory:
            raise ConfigError(
                "memory", f"{self.memory} bytes, and {needed} of recorded spikes", "more memory than spikes",
                "record fewer layers or samples, or raise --memory",
            )  # fmt: skip
        spikes = {name: np.zeros(shape, np.bool_) for name, shape in shapes.items()}
        marks = {name: np.zeros(shape, np.bool_) for name, shape in shapes.items()} if activity else {}
        return spikes, marks


def run_fast(graph: QuantizedGraph, images: IntArray, *, threads: int = 1) -> SpikeRecord:
    """Run `graph` on a batch and return every spike, as :func:`~stars_deploy.targets.reference.run_reference` does."""
    names = [population.name for population in graph.populations]
    run = FastEngine(graph, threads=threads).run(images, record=names)
    return SpikeRecord(spikes=run.spikes, potential=run.potential)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _take(graph: QuantizedGraph, images: IntArray, chunk: slice) -> IntArray:
    return images[:, chunk] if graph.input.over_time(images) else images[chunk]


def _merge(runners: list[Runner]) -> dict[str, LayerCounts]:
    total, *others = (runner.tally.counts() for runner in runners)
    for counts in others:
        total = {name: layer + counts[name] for name, layer in total.items()}
    return total
