"""What each core of a chip does at each timestep: an activity put onto a mapping. Counts only; nothing is estimated.

Arrays are (T, S, cores): timesteps, samples (one where they are sums), cores. Time is the graph's own, in which layers
are synchronous; :mod:`stars_deploy.latency` says when a chip does it.
"""

from __future__ import annotations

from collections.abc import Mapping as Mapped
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from stars_deploy.activity import Activity
from stars_deploy.hardware.fans import OUTSIDE, Route
from stars_deploy.hardware.mapping import Mapping
from stars_deploy.hardware.placement import Floor, Place, Ways, find_ways
from stars_deploy.populations import IntArray
from stars_deploy.quantized import QuantizedGraph

Flags = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Messages:
    """What one population, or the input, sends: (T, S) of all, (T, S, cores) by the core that gets it or sends it.

    ``on_links`` is (T, S, links), over the links of :meth:`Counter.links`.
    """

    sent: IntArray
    east_west: IntArray
    north_south: IntArray
    received_by: IntArray
    sent_by: IntArray
    on_links: IntArray


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Operations of every core.

    Parameters
    ----------
    synops_conv, synops_dense : array of int, (T, S, cores)
        Spikes, or graded messages, met by non-zero weights of kernels, and of synapses stored one by one.
    stored_synops : array of int, (T, S, cores)
        The same with stored zero weights counted as well.
    active, spikes : array of int, (T, S, cores)
        Neurons that received something through a non-zero weight or fired; that fired.
    neurons : array of int, (cores,)
        All of which are updated at every timestep.
    messages : mapping of str to Messages
        For the input and each population: a message is a spike or non-zero pixel on its way to one core.
    """

    synops_conv: IntArray
    synops_dense: IntArray
    stored_synops: IntArray
    active: IntArray
    spikes: IntArray
    neurons: IntArray
    messages: Mapped[str, Messages]

    @property
    def synops(self) -> IntArray:
        """Synaptic operations of both kinds, (T, S, cores)."""
        return self.synops_conv + self.synops_dense

    @property
    def messages_in(self) -> IntArray:
        """Messages that each core receives, (T, S, cores), in the timestep in which they are sent."""
        return sum((one.received_by for one in self.messages.values()), np.zeros_like(self.spikes))

    @property
    def messages_out(self) -> IntArray:
        """Messages that each core sends, (T, S, cores)."""
        return sum((one.sent_by for one in self.messages.values()), np.zeros_like(self.spikes))


@dataclass(frozen=True)
class Counter:
    """Puts what neurons do onto the cores of one mapping of one graph."""

    graph: QuantizedGraph
    mapping: Mapping

    @cached_property
    def _ways(self) -> dict[str, tuple[tuple[Route, ...], list[int], Ways]]:
        """For each source: its routes, where the pairs of each begin, and the ways of all pairs."""
        floor = Floor(self.mapping.profile)
        places: dict[int, Place] = {core.index: core.place for core in self.mapping.cores}
        places[OUTSIDE] = floor.entry()
        ways = {}
        for source in (self.graph.input.name, *(layer.name for layer in self.mapping.layers)):
            routes = tuple(route for route in self.mapping.routes if route.source == source)
            pairs = [(places[int(one)], places[route.core]) for route in routes for one in route.source_cores]
            starts = np.cumsum([0, *(len(route.source_cores) for route in routes)]).tolist()
            ways[source] = (routes, starts, find_ways(pairs))
        return ways

    def count(self, sent: Mapped[str, Flags], active: Mapped[str, Flags]) -> Traffic:
        """Return what the cores do.

        Parameters
        ----------
        sent : mapping of str to array of int or bool, (T, S, neurons)
            Messages of the input and of each population.
        active : mapping of str to array of int or bool, (T, S, neurons)
            Of each population.
        """
        cores = self.mapping.cores
        shape = (*next(iter(active.values())).shape[:2], len(cores))
        synops = {dense: np.zeros(shape, np.int64) for dense in (False, True)}
        stored = np.zeros(shape, np.int64)
        steps = shape[0]
        for fan in self.mapping.fans:
            if fan.delay >= steps:
                continue
            arriving = sent[fan.source][: steps - fan.delay, :, fan.sources].astype(np.int64)
            met = arriving @ np.stack([fan.effective, fan.stored], axis=1)
            synops[fan.dense][fan.delay :, :, fan.core] += met[..., 0]
            stored[fan.delay :, :, fan.core] += met[..., 1]
        busy, fired = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for core in cores:
            population = self.graph.population(core.layer)
            own = np.zeros(population.shape, np.bool_)
            own[tuple(slice(*span) for span in core.box)] = True
            inside = np.flatnonzero(own)
            for sums, flags in ((busy, active), (fired, sent)):
                sums[:, :, core.index] = flags[core.layer][:, :, inside].sum(axis=2, dtype=np.int64)
        return Traffic(
            synops_conv=synops[False],
            synops_dense=synops[True],
            stored_synops=stored,
            active=busy,
            spikes=fired,
            neurons=np.array([core.neurons for core in cores], np.int64),
            messages={source: self._deliver(source, sent[source], len(cores)) for source in self._ways},
        )

    def _deliver(self, source: str, flags: Flags, cores: int) -> Messages:
        routes, starts, ways = self._ways[source]
        shape = flags.shape[:2]
        by_pair = np.zeros((*shape, starts[-1]), np.int64)
        received, sent_by = (np.zeros((*shape, cores), np.int64) for _ in range(2))
        for route, start in zip(routes, starts, strict=False):
            if not len(route.sources):
                continue
            of_cores = np.add.reduceat(flags[:, :, route.sources].astype(np.int64), route.starts, axis=2)
            by_pair[:, :, start : start + of_cores.shape[2]] = of_cores
            received[:, :, route.core] += of_cores.sum(axis=2)
            inside = route.source_cores != OUTSIDE
            sent_by[:, :, route.source_cores[inside]] += of_cores[:, :, inside]
        return Messages(
            sent=by_pair.sum(axis=2),
            east_west=by_pair @ ways.east_west,
            north_south=by_pair @ ways.north_south,
            received_by=received,
            sent_by=sent_by,
            on_links=by_pair @ ways.uses,
        )

    def links(self, source: str) -> tuple[Any, ...]:
        """Return the links that messages of `source` use, in the order of :attr:`Messages.on_links`."""
        return self._ways[source][2].links


def count_sums(counter: Counter, activity: Activity) -> Traffic:
    """Return the traffic of all samples of an activity together, (T, 1, cores); divide by their number for a mean."""
    steps = activity.evaluation.timesteps
    sent, active = (
        {name: counts.reshape(steps, 1, -1) for name, counts in sums.items()}
        for sums in (activity.sums.sent, activity.sums.active)
    )
    return counter.count(sent, active)
