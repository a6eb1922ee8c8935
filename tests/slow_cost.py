"""The cost model in plain loops, one synapse, neuron, message and timestep at a time: what the fast one must equal."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
from synapses import synapses_of


def flat_index(index, shape):
    """Return the number of a neuron in C order."""
    number = 0
    for at, length in zip(index, shape, strict=True):
        number = number * length + at
    return number


def synapses_with_delays(graph, projection):
    """Return (source, target, weight, delay) of each synapse, neurons counted in C order."""
    shape, made = graph.shape_of(projection.source), graph.shape_of(projection.target)
    found = []
    for source, target, weight in synapses_of(projection, shape):
        i, j = flat_index(target, made), flat_index(source, shape)
        delay = projection.delay if isinstance(projection.delay, int) else int(projection.delay[i, j])
        found.append((j, i, weight, delay))
    return found


def cores_of(graph, mapping):
    """Return {(population, neuron): core}, from the boxes of the cores."""
    found = {}
    for core in mapping.cores:
        for index in itertools.product(*(range(*span) for span in core.box)):
            key = (core.layer, flat_index(index, graph.shape_of(core.layer)))
            assert key not in found, "a neuron on two cores"
            found[key] = core.index
    return found


def path(one, other):
    """Return the tiles on the way: first along x, then along y."""
    x, y = one
    tiles = [(x, y)]
    while (x, y) != other:
        if x != other[0]:
            x += 1 if x < other[0] else -1
        else:
            y += 1 if y < other[1] else -1
        tiles.append((x, y))
    return tiles


class SlowCounts:
    """What the cores do for one sample: each a dict of (graph's timestep, core), or of (source, timestep, ...)."""

    def __init__(self, graph, mapping, sent, active):
        """`sent` and `active` are (T, neurons) arrays of one sample."""
        self.steps = graph.timesteps
        self.place = {core.index: (core.place.x, core.place.y) for core in mapping.cores}
        home = cores_of(graph, mapping)
        for name in ("conv", "dense", "stored", "active", "spikes"):
            setattr(self, name, defaultdict(int))
        self.received, self.sent_by, self.messages = defaultdict(int), defaultdict(int), defaultdict(int)
        self.east_west, self.north_south, self.links = defaultdict(int), defaultdict(int), defaultdict(int)
        listeners = defaultdict(set)
        for projection in graph.projections:
            kind = self.dense if projection.weight.ndim == 2 else self.conv
            for source, target, weight, delay in synapses_with_delays(graph, projection):
                core = home[projection.target, target]
                if weight:
                    listeners[projection.source, source].add(core)
                for step in range(self.steps - delay):
                    if sent[projection.source][step, source]:
                        self.stored[step + delay, core] += 1
                        if weight:
                            kind[step + delay, core] += 1
        for (name, neuron), cores in listeners.items():
            for step in range(self.steps):
                if sent[name][step, neuron]:
                    for core in cores:
                        self._send(name, step, home.get((name, neuron)), core)
        for (name, neuron), core in home.items():
            for step in range(self.steps):
                self.active[step, core] += bool(active[name][step, neuron])
                self.spikes[step, core] += bool(sent[name][step, neuron])

    def _send(self, name, step, here, core):
        self.messages[name, step] += 1
        self.received[name, step, core] += 1
        if here is not None:
            self.sent_by[name, step, here] += 1
        way = path((0, 0) if here is None else self.place[here], self.place[core])
        for one, other in itertools.pairwise(way):
            self.links[name, step, (one, other)] += 1
            (self.east_west if one[1] == other[1] else self.north_south)[name, step] += 1


def slow_lags(graph):
    """Return by how many timesteps each population lags: the longest way of projections without delay, at least 1."""
    lags = {graph.input.name: 0}
    for population in graph.populations:
        lag = 1
        for projection in graph.projections:
            if projection.target == population.name and projection.source in lags:
                lag = max(lag, lags[projection.source] + (int(np.min(projection.delay)) == 0))
        lags[population.name] = lag
    return lags


def slow_step_times(graph, mapping, counts, *, corner, phases, wrap):
    """Return the seconds of each timestep of the chip for one sample, from its `counts`."""
    lags, time, steps = slow_lags(graph), mapping.profile.time, graph.timesteps
    window = steps if wrap else steps + lags[graph.output.name]

    def graph_step(step, lag):
        moved = (step - lag) % steps if wrap else step - lag
        return moved if 0 <= moved < steps else None

    def at(name):
        return getattr(time, name).at(corner) * 1e-9

    seconds = []
    for step in range(window):
        longest = 0.0
        for core in mapping.cores:
            lag = lags[core.layer]
            synaptic = 0.0
            if (met := graph_step(step, lag - 1)) is not None:
                synaptic += at("synapse_conv") * counts.conv[met, core.index]
                synaptic += at("synapse_dense") * counts.dense[met, core.index]
            for source, behind in lags.items():
                if (sent := graph_step(step, behind)) is not None:
                    synaptic += at("message_in") * counts.received[source, sent, core.index]
            active = spikes = out = 0
            if (updated := graph_step(step, lag)) is not None:
                active, spikes = counts.active[updated, core.index], counts.spikes[updated, core.index]
                out = counts.sent_by[core.layer, updated, core.index]
            neuronal = at("neuron_active") * active + at("neuron_inactive") * (core.neurons - active)
            neuronal += at("spike") * spikes + at("message_out") * out
            both = synaptic + neuronal if phases == "sequential" else max(synaptic, neuronal)
            longest = max(longest, both)
        on_link = defaultdict(int)
        for (source, sent, link), messages in counts.links.items():
            if graph_step(step, lags[source]) == sent:
                on_link[link] += messages
        longest = max([longest, *(at("link") * messages for messages in on_link.values())])
        seconds.append(longest + time.barrier.at(corner, mapping.tiles) * 1e-9)
    return seconds
