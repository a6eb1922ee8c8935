"""How long a network takes on a chip: in each timestep the busiest core or link, then the barrier.

An estimate, bound to the neurocores. A chip waits for its slowest core, so the time is found image by image on the
probe of an activity, and then averaged: the time of a mean image would be too short.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stars_deploy.activity import Activity
from stars_deploy.errors import ConfigError
from stars_deploy.hardware import CORNERS, ChipProfile, Interval, over_corners
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.schedule import Clock, Schedule
from stars_deploy.traffic import Counter

#: Printed beside every latency.
CAVEAT = "neurocore bound, host and I/O excluded"
#: What the latency leaves out or takes as given.
NOT_MODELLED = (
    "host, embedded processors and input/output (measured systems were bound by them: 337 to 59,300 us a step)",
    "waiting for messages within a timestep: reception and update take their own times, whatever arrives when",
    "words of synaptic memory read: the time is per synop, not per word",
    "the payload of graded messages: as long on a link and at a synapse as a spike",
    "the slower links and the longer barrier between chips",
    "loops shorter than the lag of their layers: timed as if they had none",
    "delays of more than one timestep: their synops are put into the timestep before they take effect",
)
_NANO = 1e-9
#: Numbers of operations that are looked at together.
_CHUNK = 1 << 24
Times = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One timestep of a busy chip at nominal constants: its mean time [s], and what binds it in the most images.

    ``term`` is ``synapses``, ``neurons``, ``link`` or ``barrier``; ``layer`` and ``core`` are those of the
    busiest core.
    """

    seconds: float
    term: str
    layer: str
    core: int


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Nominal times of single images [s]."""

    least: float
    median: float
    p95: float
    most: float


@dataclass(frozen=True, kw_only=True)
class LatencyEstimate:
    """Latency of one inference [s].

    Parameters
    ----------
    per_inference : Interval
        Time between two results of a busy chip: the sum of T timesteps [s].
    first_output : Interval
        Time from the first input to the result in an idle chip: as many timesteps more as the network is deep [s].
    throughput : Interval
        ``1 / per_inference`` [inferences/s]; its low end belongs to the longest time.
    depth : int
        Layers on the longest path, each of which lags by one timestep.
    phases, other_phases_s :
        How the phases of a core were combined, and the nominal ``per_inference`` under the other reading [s].
    spread : Spread
        Of ``per_inference`` over images.
    samples : int
        Images that were looked at.
    binding : StepTime
        The longest timestep.
    steps : tuple of StepTime
        The timesteps of a busy chip.
    core_seconds : array, (T, cores) [s]
        Mean time that each core is busy in each of them.
    """

    per_inference: Interval
    first_output: Interval
    throughput: Interval
    depth: int
    phases: str
    other_phases_s: float
    spread: Spread
    samples: int
    binding: StepTime
    steps: tuple[StepTime, ...]
    core_seconds: Times
    caveat: str = CAVEAT
    not_modelled: tuple[str, ...] = NOT_MODELLED


@dataclass(frozen=True)
class _Prices:
    """Times of operations at one corner of their ranges [s], and what a core does with its two phases."""

    profile: ChipProfile
    corner: str
    neurons: npt.NDArray[np.int64]
    tiles: int

    def phases(self, work: Schedule) -> tuple[Times, Times]:
        """Return the synaptic and the neuron phase of each core, (W, S, cores)."""
        time = {name: getattr(self.profile.time, name).at(self.corner) * _NANO for name in _OPERATIONS}
        synaptic = (
            time["synapse_conv"] * work.synops_conv
            + time["synapse_dense"] * work.synops_dense
            + time["message_in"] * work.messages_in
        )
        neuronal = (
            time["neuron_active"] * work.active
            + time["neuron_inactive"] * (self.neurons - work.active)
            + time["spike"] * work.spikes
            + time["message_out"] * work.messages_out
        )
        return synaptic, neuronal

    def barrier(self) -> float:
        """Return what ends each timestep."""
        return self.profile.time.barrier.at(self.corner, self.tiles) * _NANO

    def steps(self, work: Schedule, phases: str) -> Times:
        """Return how long each timestep takes, (W, S)."""
        synaptic, neuronal = self.phases(work)
        busiest = _combined(synaptic, neuronal, phases).max(axis=2)
        steps: Times = np.maximum(busiest, self.longest_link(work)) + self.barrier()
        return steps

    def longest_link(self, work: Schedule) -> Times:
        """Return how long the busiest link takes, (W, S)."""
        load = work.on_links.max(axis=2, initial=0)
        return np.asarray(load * (self.profile.time.link.at(self.corner) * _NANO))


_OPERATIONS = (
    *("synapse_conv", "synapse_dense", "message_in"),
    *("neuron_active", "neuron_inactive", "spike", "message_out"),
)


def estimate_latency(graph: QuantizedGraph, activity: Activity, counter: Counter) -> LatencyEstimate:
    """Return how long one inference takes on the neurocores of a chip.

    With the operations of each core in each timestep of the chip (:mod:`stars_deploy.schedule`):
    ``synapses = t_conv S_conv + t_dense S_dense + t_in M_in``;
    ``neurons = t_active A + t_inactive (N - A) + t_spike F + t_out M_out``; a core takes their sum (phases sequential)
    or the larger (overlapped); a timestep takes the larger of its busiest core and its busiest link
    (``t_link`` x messages on it), and then the barrier.

    Parameters
    ----------
    graph : QuantizedGraph
    activity : Activity
        Its probe is looked at.
    counter : Counter
        Of `graph` on the chip.

    Raises
    ------
    ConfigError
        If the times are all 0, so that there is no throughput.
    """
    clock = Clock(graph, counter)
    seen = _look(activity, clock)
    profile, times = counter.mapping.profile, seen.steady
    per_inference = _interval(times, profile)
    if not per_inference.low > 0:
        raise ConfigError(
            f"{profile.name}: time", "an inference of 0 s at the low end", "times above 0",
            "raise the low ends of time.neuron_inactive",
        )  # fmt: skip
    nominal = times["nominal"].sum(axis=0)
    layers = [core.layer for core in counter.mapping.cores]
    mean_steps = times["nominal"].mean(axis=1).tolist()
    steps = tuple(_step(seconds, found, layers) for seconds, found in zip(mean_steps, seen.bound, strict=True))
    return LatencyEstimate(
        per_inference=per_inference,
        first_output=_interval(seen.first, profile),
        throughput=Interval(nominal=1 / per_inference.nominal, low=1 / per_inference.high, high=1 / per_inference.low),
        depth=clock.depth,
        phases=profile.phases,
        other_phases_s=float(times["other"].sum(axis=0).mean()),
        spread=Spread(
            least=float(nominal.min()), median=float(np.median(nominal)),
            p95=float(np.percentile(nominal, 95)), most=float(nominal.max()),
        ),
        samples=len(nominal),
        binding=max(steps, key=lambda step: step.seconds),
        steps=steps,
        core_seconds=seen.core_seconds / len(nominal),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """Times of every image: (W, S) [s] for each corner and, ``other``, the other reading of the phases."""

    steady: dict[str, Times]
    first: dict[str, Times]
    bound: list[Tally[tuple[str, int]]]
    core_seconds: Times


def _look(activity: Activity, clock: Clock) -> _Seen:
    """Time the probe of an activity, some images at a time."""
    mapping, counter = clock.mapping, clock.counter
    profile = mapping.profile
    neurons = np.array([core.neurons for core in mapping.cores], np.int64)
    prices = {corner: _Prices(profile, corner, neurons, mapping.tiles) for corner in CORNERS}
    other = "overlapped" if profile.phases == "sequential" else "sequential"
    steady: dict[str, list[Times]] = {corner: [] for corner in (*CORNERS, "other")}
    first: dict[str, list[Times]] = {corner: [] for corner in CORNERS}
    bound: list[Tally[tuple[str, int]]] = [Tally() for _ in range(clock.graph.timesteps)]
    core_seconds = np.zeros((clock.graph.timesteps, len(neurons)))
    for sent, active in _chunks(activity, len(neurons)):
        traffic = counter.count(sent, active)
        busy, alone = clock.steady(traffic), clock.first_inference(traffic)
        for corner, price in prices.items():
            steady[corner].append(price.steps(busy, profile.phases))
            first[corner].append(price.steps(alone, profile.phases))
        steady["other"].append(prices["nominal"].steps(busy, other))
        core_seconds += _combined(*prices["nominal"].phases(busy), profile.phases).sum(axis=1)
        _tally(prices["nominal"], busy, bound)
    return _Seen(
        steady={name: np.concatenate(parts, axis=1) for name, parts in steady.items()},
        first={name: np.concatenate(parts, axis=1) for name, parts in first.items()},
        bound=bound,
        core_seconds=core_seconds,
    )


def _chunks(activity: Activity, cores: int) -> Iterator[tuple[dict[str, npt.NDArray[np.bool_]], ...]]:
    probe = activity.probe
    neurons = sum(flags.shape[2] for flags in probe.sent.values()) + 8 * cores
    count = max(1, _CHUNK // (activity.evaluation.timesteps * neurons))
    for start in range(0, len(probe.samples), count):
        part = slice(start, start + count)
        yield tuple({name: flags[:, part] for name, flags in kind.items()} for kind in (probe.sent, probe.active))


def _combined(synaptic: Times, neuronal: Times, phases: str) -> Times:
    return synaptic + neuronal if phases == "sequential" else np.maximum(synaptic, neuronal)


def _interval(times: dict[str, Times], profile: ChipProfile) -> Interval:
    mean: Callable[[str], float] = lambda corner: float(times[corner].sum(axis=0).mean())  # noqa: E731
    return over_corners(mean).widened(profile.model_error.latency)


def _tally(price: _Prices, work: Schedule, bound: list[Tally[tuple[str, int]]]) -> None:
    """Note for each timestep and image what binds: a term and a core."""
    synaptic, neuronal = price.phases(work)
    combined = _combined(synaptic, neuronal, price.profile.phases)
    core = combined.argmax(axis=2)
    longest = np.take_along_axis(combined, core[..., None], axis=2)[..., 0]
    by_synapses = np.take_along_axis(synaptic >= neuronal, core[..., None], axis=2)[..., 0]
    term = np.where(by_synapses, "synapses", "neurons")
    link = price.longest_link(work)
    term = np.where(link > longest, "link", term)
    term = np.where(price.barrier() > np.maximum(longest, link), "barrier", term)
    for step, found in enumerate(bound):
        found.update(zip(term[step].tolist(), core[step].tolist(), strict=True))


def _step(seconds: float, found: Tally[tuple[str, int]], layers: list[str]) -> StepTime:
    (term, core), _ = max(found.items(), key=lambda item: (item[1], item[0]))
    return StepTime(seconds=seconds, term=term, layer=layers[core], core=core)
