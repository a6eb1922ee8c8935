"""What one inference costs on a chip: mapping, latency and energy of an activity, with the ANN beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from stars_deploy.activity import Activity
from stars_deploy.baseline import AnnBaseline, AnnReference, Tier, estimate_baseline, same_chip_tier
from stars_deploy.energy import EnergyEstimate, estimate_energy
from stars_deploy.hardware import ChipProfile
from stars_deploy.hardware.mapping import Core, Mapping, check_mapped, map_network
from stars_deploy.latency import LatencyEstimate, estimate_latency
from stars_deploy.neurobench import neurobench_metrics
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.simulate import Evaluation, LayerActivity
from stars_deploy.traffic import Counter, Traffic, count_sums


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one inference costs on a chip.

    Parameters
    ----------
    mapping : Mapping
    traffic : Traffic
        Summed over all `samples`.
    samples : int
    latency : LatencyEstimate
    energy : EnergyEstimate
    ann : AnnBaseline
        The ANN beside it.
    """

    mapping: Mapping
    traffic: Traffic
    samples: int
    latency: LatencyEstimate
    energy: EnergyEstimate
    ann: AnnBaseline


def estimate_cost(
    graph: QuantizedGraph,
    activity: Activity,
    profile: ChipProfile,
    *,
    teacher: AnnReference | None = None,
    same_chip: Tier | None = None,
) -> Cost:
    """Return what an inference of `graph` costs on the chip of `profile`, from what it did (`activity`).

    Parameters
    ----------
    graph : QuantizedGraph
    activity : Activity
        Of `graph`.
    profile : ChipProfile
    teacher, same_chip
        As for :func:`stars_deploy.baseline.estimate_baseline`.

    Raises
    ------
    ConfigError
        If the network does not fit the chip, naming layer and limit; if all times of the profile are 0.
    """
    counter = Counter(graph, check_mapped(map_network(graph, profile)))
    traffic = count_sums(counter, activity)
    latency = estimate_latency(graph, activity, counter)
    samples = activity.evaluation.samples
    return Cost(
        mapping=counter.mapping,
        traffic=traffic,
        samples=samples,
        latency=latency,
        energy=estimate_energy(traffic, samples, counter.mapping, latency),
        ann=estimate_baseline(graph, activity.evaluation, teacher=teacher, same_chip=same_chip),
    )


def single_step_tier(
    graph: QuantizedGraph, activity: Activity, profile: ChipProfile, *, note: str = "", fidelity: float | None = None
) -> Tier:
    """Return the tier of a network that was run for one timestep.

    `note` says how it was made; `fidelity` is its agreement with the teacher, where that is what is known.

    Raises as :func:`estimate_cost`.
    """
    cost = estimate_cost(graph, activity, profile)
    return same_chip_tier(
        accuracy=activity.evaluation.accuracy,
        energy=cost.energy.total,
        latency=cost.latency.first_output,
        profile=profile.name,
        details={**({"note": note} if note else {}), **({} if fidelity is None else {"fidelity": fidelity})},
    )


def summarize_messages(cost: Cost) -> dict[str, float]:
    """Return messages and hops of one inference, as means."""
    sent = cost.traffic.messages.values()
    return {
        "messages": sum(int(one.sent.sum()) for one in sent) / cost.samples,
        "hops_east_west": sum(int(one.east_west.sum()) for one in sent) / cost.samples,
        "hops_north_south": sum(int(one.north_south.sum()) for one in sent) / cost.samples,
    }


def summarize_cost(graph: QuantizedGraph, evaluation: Evaluation, cost: Cost) -> dict[str, Any]:
    """Return the ``counts``, ``hardware``, ``latency_s``, ``energy_j`` and ``ann`` sections of ``report.json``."""
    latency = {**asdict(cost.latency)}
    latency.pop("core_seconds")
    return {
        "counts": _counts(graph, evaluation, cost),
        "hardware": _hardware(cost),
        "latency_s": latency,
        "energy_j": asdict(cost.energy),
        "ann": asdict(cost.ann),
    }


def _counts(graph: QuantizedGraph, evaluation: Evaluation, cost: Cost) -> dict[str, Any]:
    return {
        "samples": evaluation.samples,
        "timesteps": evaluation.timesteps,
        "per_inference": {**evaluation.totals(), **summarize_messages(cost)},
        "per_layer": [_layer(layer, cost) for layer in evaluation.layers],
        "neurobench": asdict(neurobench_metrics(graph, evaluation)),
    }


def _layer(layer: LayerActivity, cost: Cost) -> dict[str, Any]:
    sent = cost.traffic.messages[layer.name].sent[:, 0] / cost.samples
    return {
        "name": layer.name,
        "neurons": layer.neurons,
        **layer.totals(),
        "messages": float(sent.sum()),
        "firing_rate": layer.firing_rate,
        "synops_per_step": list(layer.synops_per_step),
        "dense_synops_per_step": list(layer.dense_synops_per_step),
        "spikes_per_step": list(layer.spikes_per_step),
        "active_per_step": list(layer.active_per_step),
        "messages_per_step": sent.tolist(),
    }


def _hardware(cost: Cost) -> dict[str, Any]:
    mapping = cost.mapping
    profile = mapping.profile
    return {
        "profile": profile.name,
        "description": profile.description,
        "cores": len(mapping.cores),
        "chips": mapping.chips,
        "mesh": [profile.mesh.columns, profile.mesh.rows],
        "cores_per_tile": profile.mesh.cores_per_tile,
        "utilisation": {name: list(pair) for name, pair in mapping.utilisation().items()},
        "binding": {"layer": mapping.largest.name, "limit": mapping.largest.binding},
        "layers": [asdict(layer) for layer in mapping.layers],
        "notes": list(mapping.notes),
        "core_map": [_core(core, cost) for core in mapping.cores],
        "constants": [{"key": key, **constant.model_dump()} for key, constant in profile.constants()],
    }


def _core(core: Core, cost: Cost) -> dict[str, Any]:
    traffic, index = cost.traffic, core.index
    steps = len(traffic.spikes)
    totals = {
        name: int(getattr(traffic, counts)[:, 0, index].sum()) / cost.samples
        for name, counts in (
            ("synops", "synops"),
            ("dense_synops", "stored_synops"),
            ("active_updates", "active"),
            ("spikes", "spikes"),
            ("messages_in", "messages_in"),
            ("messages_out", "messages_out"),
        )
    }
    return {
        "core": index,
        "layer": core.layer,
        "chip": core.place.chip,
        "x": core.place.x,
        "y": core.place.y,
        "neurons": core.neurons,
        "synaptic_words": core.synaptic_words,
        "axons_in": core.axons_in,
        "axons_out": core.axons_out,
        **totals,
        "inactive_updates": steps * core.neurons - totals["active_updates"],
        "synops_per_step": (traffic.synops[:, 0, index] / cost.samples).tolist(),
        "seconds_per_step": cost.latency.core_seconds[:, index].tolist(),
    }
