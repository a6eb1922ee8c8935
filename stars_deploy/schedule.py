"""When a chip does what a graph says: layers are synchronous in the graph, and lag one after another on the chip.

A neuron's spikes cross the mesh and meet the synapses of their targets in the timestep in which it fires; its targets
are updated with them in the next one. So a population at depth d (projections without delay before it; the input has
depth 0) is updated for the graph's timestep t at the chip's timestep ``t + d``, and its synapses are met at
``t + d - 1``. A projection with a delay of at least one timestep needs no lag: the delay is one. (Lava and SANA-FE
agree on this order.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stars_deploy.hardware.mapping import Mapping
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.traffic import Counter, Traffic

Counts = npt.NDArray[np.int64]


def find_lags(graph: QuantizedGraph) -> dict[str, int]:
    """Return by how many timesteps the input (0) and each population lag behind the graph's time."""
    lags = {graph.input.name: 0}
    for population in graph.populations:
        known = [
            lags[one.source] + (1 if np.min(one.delay) == 0 else 0)
            for one in graph.into(population.name)
            if one.source in lags
        ]
        # What the image biases, or only loops enter, is updated in the timestep after the image was written.
        lags[population.name] = max([1, *known])
    return lags


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What the cores and links do in each timestep of the chip: (W, S, cores) and (W, S, links).

    Parameters
    ----------
    synops_conv, synops_dense, messages_in : array of int
        Of the synaptic phase.
    active, spikes, messages_out : array of int
        Of the neuron phase.
    on_links : array of int
    """

    synops_conv: Counts
    synops_dense: Counts
    messages_in: Counts
    active: Counts
    spikes: Counts
    messages_out: Counts
    on_links: Counts


@dataclass(frozen=True)
class Clock:
    """Shifts counts from the graph's time to the chip's."""

    graph: QuantizedGraph
    counter: Counter

    @property
    def mapping(self) -> Mapping:
        """Where the cores are."""
        return self.counter.mapping

    @property
    def depth(self) -> int:
        """By how many timesteps the output lags behind the input."""
        return find_lags(self.graph)[self.graph.output.name]

    def first_inference(self, traffic: Traffic) -> Schedule:
        """Return the ``T + depth`` timesteps of one inference in an idle chip, until the output is there."""
        return self._shift(traffic, self.graph.timesteps + self.depth, wrap=False)

    def steady(self, traffic: Traffic) -> Schedule:
        """Return T timesteps of a chip that is given one such inference after another without a pause."""
        return self._shift(traffic, self.graph.timesteps, wrap=True)

    def _shift(self, traffic: Traffic, window: int, *, wrap: bool) -> Schedule:
        lags = find_lags(self.graph)
        layers = [core.layer for core in self.mapping.cores]
        neuron_lags = np.array([lags[layer] for layer in layers])

        def by_core(counts: Counts, core_lags: npt.NDArray[np.int64]) -> Counts:
            moved = np.zeros((window, *counts.shape[1:]), np.int64)
            for lag in np.unique(core_lags):
                own = core_lags == lag
                moved[:, :, own] = _moved(counts[:, :, own], int(lag), window, wrap)
            return moved

        links = sorted({link for source in traffic.messages for link in self.counter.links(source)})
        place = {link: index for index, link in enumerate(links)}
        samples, cores = traffic.spikes.shape[1:]
        incoming = np.zeros((window, samples, cores), np.int64)
        on_links = np.zeros((window, samples, len(links)), np.int64)
        for source, messages in traffic.messages.items():
            incoming += _moved(messages.received_by, lags[source], window, wrap)
            used = [place[link] for link in self.counter.links(source)]
            on_links[:, :, used] += _moved(messages.on_links, lags[source], window, wrap)
        return Schedule(
            synops_conv=by_core(traffic.synops_conv, neuron_lags - 1),
            synops_dense=by_core(traffic.synops_dense, neuron_lags - 1),
            messages_in=incoming,
            active=by_core(traffic.active, neuron_lags),
            spikes=by_core(traffic.spikes, neuron_lags),
            messages_out=by_core(traffic.messages_out, neuron_lags),
            on_links=on_links,
        )


def _moved(counts: Counts, lag: int, window: int, wrap: bool) -> Counts:
    """Return `counts` (T, ...) `lag` timesteps later in a window, either cyclic or idle around them.

    What is beside the way to the output may go on after the window: it is left out.
    """
    if wrap:
        return np.roll(counts, lag, axis=0)
    moved = np.zeros((window, *counts.shape[1:]), np.int64)
    moved[lag : lag + len(counts)] = counts[: max(0, window - lag)]
    return moved
