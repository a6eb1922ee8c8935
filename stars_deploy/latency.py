"""How long a network takes on a chip: the busiest layer of each timestep, then the barrier.

An estimate from mean activity: a chip waits for its slowest core, so single images take longer or shorter.
"""

from __future__ import annotations

from dataclasses import dataclass

from stars_deploy.errors import ConfigError
from stars_deploy.hardware import ChipProfile, CoreEstimate, Interval, over_corners
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.simulate import Evaluation, LayerActivity

#: Printed beside every latency.
CAVEAT = "neurocore bound, host and I/O excluded"
#: What the latency leaves out or takes as given.
NOT_MODELLED = (
    "host, embedded processors and input/output (measured systems were bound by them: 337 to 59,300 us a step)",
    "the split of a layer over its cores: taken as even, over the least cores that hold it",
    "reception of messages and load of the mesh",
    "the barrier between chips",
    "images that are busier than the mean: the busiest layer is found from mean activity",
)
_NANO = 1e-9


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One timestep at nominal constants: how long it takes [s], and which layer and term bind."""

    seconds: float
    layer: str
    term: str


@dataclass(frozen=True, kw_only=True)
class LatencyEstimate:
    """Latency of one inference [s].

    Parameters
    ----------
    per_inference : Interval
        Time between two results of a full pipeline: the sum of its timesteps [s].
    first_output : Interval
        Time from the first input to the result: as many mean timesteps more as the network is deep [s].
    throughput : Interval
        ``1 / per_inference`` [inferences/s]; its low end belongs to the longest time.
    depth : int
        Layers on the longest path, each of which lags by one timestep.
    phases, other_phases_s :
        How the phases of a core were combined, and the nominal ``per_inference`` under the other reading [s].
    layer, term : str
        What binds the longest timestep; ``term`` is ``synapses``, ``neurons`` or ``barrier``.
    steps : tuple of StepTime
    """

    per_inference: Interval
    first_output: Interval
    throughput: Interval
    depth: int
    phases: str
    other_phases_s: float
    layer: str
    term: str
    steps: tuple[StepTime, ...]
    caveat: str = CAVEAT
    not_modelled: tuple[str, ...] = NOT_MODELLED


def estimate_latency(
    graph: QuantizedGraph, evaluation: Evaluation, profile: ChipProfile, cores: CoreEstimate
) -> LatencyEstimate:
    """Return how long one inference takes on the neurocores of a chip.

    At each timestep, with ``n`` the cores of a layer and ``S``, ``A``, ``I``, ``F`` its synops, active updates,
    inactive updates and spikes: ``synapses = t_synapse S / n``;
    ``neurons = (t_active A + t_inactive I + t_spike F) / n``; a layer takes their sum (phases sequential) or the larger
    (overlapped); the timestep takes the slowest layer plus the barrier.

    Raises
    ------
    ConfigError
        If the times are all 0, so that there is no throughput.
    """
    shares = {layer.name: layer.cores for layer in cores.layers}

    def period(corner: str, phases: str = profile.phases) -> float:
        steps = (_time_step(evaluation, shares, profile, corner, phases, t) for t in range(evaluation.timesteps))
        return sum(step.seconds for step in steps)

    per_inference = over_corners(period).widened(profile.model_error.latency)
    if not per_inference.low > 0:
        raise ConfigError(
            f"{profile.name}: time", "an inference of 0 s at the low end", "times above 0", "raise low of time.synapse"
        )
    depth = network_depth(graph)
    longer = 1 + depth / evaluation.timesteps
    steps = tuple(
        _time_step(evaluation, shares, profile, "nominal", profile.phases, t) for t in range(evaluation.timesteps)
    )
    longest = max(steps, key=lambda step: step.seconds)
    other = "overlapped" if profile.phases == "sequential" else "sequential"
    return LatencyEstimate(
        per_inference=per_inference,
        first_output=over_corners(lambda corner: longer * float(getattr(per_inference, corner))),
        throughput=Interval(nominal=1 / per_inference.nominal, low=1 / per_inference.high, high=1 / per_inference.low),
        depth=depth,
        phases=profile.phases,
        other_phases_s=period("nominal", other),
        layer=longest.layer,
        term=longest.term,
        steps=steps,
    )


def network_depth(graph: QuantizedGraph) -> int:
    """Return the number of populations on the longest path from the input along projections that go forward."""
    depth = {graph.input.name: 0}
    for population in graph.populations:
        known = [depth[p.source] for p in graph.into(population.name) if p.source in depth]
        depth[population.name] = 1 + max(known, default=0)
    return max(depth.values())


def _time_step(
    evaluation: Evaluation, shares: dict[str, int], profile: ChipProfile, corner: str, phases: str, step: int
) -> StepTime:
    barrier = profile.time.barrier.at(corner) * _NANO
    slowest, layer_name, term = 0.0, evaluation.layers[0].name, "barrier"
    for layer in evaluation.layers:
        synapses, neurons = _core_times(layer, shares[layer.name], profile, corner, step)
        seconds = synapses + neurons if phases == "sequential" else max(synapses, neurons)
        if seconds > slowest:
            slowest, layer_name = seconds, layer.name
            term = "synapses" if synapses >= neurons else "neurons"
    return StepTime(seconds=slowest + barrier, layer=layer_name, term="barrier" if barrier > slowest else term)


def _core_times(layer: LayerActivity, cores: int, profile: ChipProfile, corner: str, step: int) -> tuple[float, float]:
    """Return the seconds of the synaptic and of the neuron phase on each core of a layer, evenly shared."""
    time, active = profile.time, layer.active_per_step[step]
    synapses = time.synapse.at(corner) * layer.synops_per_step[step]
    neurons = (
        time.neuron_active.at(corner) * active
        + time.neuron_inactive.at(corner) * (layer.neurons - active)
        + time.spike.at(corner) * layer.spikes_per_step[step]
    )
    return synapses * _NANO / cores, neurons * _NANO / cores
