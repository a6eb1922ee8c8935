"""Accuracy beside latency and energy over settings: one row a setting, the Pareto-best marked."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stars_deploy.activity import Activity
from stars_deploy.artifacts import written_whole
from stars_deploy.baseline import TIER_NAMES, AnnBaseline, AnnReference, Tier
from stars_deploy.bounds import find_overflow
from stars_deploy.cost import Cost, estimate_cost, summarize_messages
from stars_deploy.errors import ConfigError, DataError
from stars_deploy.hardware import CORNERS, ChipProfile
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.simulate import Evaluation

#: Of the standard normal distribution, for an interval of 95 %.
_Z95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One setting: a network at one number of timesteps on one chip.

    Parameters
    ----------
    model : str
    weight_bits : int
        Of the widest projection.
    evaluation : Evaluation
    fidelity : float or None
        Share of images with the teacher's answer; None where the teacher's answers were not given.
    cost : Cost
    note : str
        What a reader must know about this setting.
    pareto : bool or None
        Whether no other row is at least as good in both accuracy and nominal total energy and better in one; None
        where neither accuracy nor fidelity is known.
    reason : str
        Why ``pareto`` is what it is.
    """

    model: str
    weight_bits: int
    evaluation: Evaluation
    fidelity: float | None
    cost: Cost
    note: str
    pareto: bool | None = None
    reason: str = ""


def make_row(
    graph: QuantizedGraph,
    activity: Activity,
    profile: ChipProfile,
    *,
    built: QuantizedGraph | None = None,
    quantized_again: bool = False,
    teacher_predictions: npt.ArrayLike | None = None,
    teacher: AnnReference | None = None,
    same_chip: Tier | None = None,
    model: str = "",
) -> ComparisonRow:
    """Return the row of one setting, not yet judged: see :func:`mark_pareto`.

    If accumulators could leave 24 bits the note says so.

    Parameters
    ----------
    graph, activity, profile
        As for :func:`stars_deploy.cost.estimate_cost`.
    built : QuantizedGraph, optional
        The network as it was built; a row at other timesteps or weight bits says so.
    quantized_again : bool
        Whether the integers of other settings were made for them, or are those of `built`.
    teacher_predictions : array of int, (samples,), optional
        The teacher's answers to the same images, for the fidelity.
    teacher, same_chip
        As for :func:`stars_deploy.baseline.estimate_baseline`.
    model : str
        A name for the row.

    Raises
    ------
    ConfigError
        If the network does not fit the chip.
    DataError
        If the teacher's answers do not fit.
    """
    return ComparisonRow(
        model=model,
        weight_bits=_weight_bits(graph),
        evaluation=activity.evaluation,
        fidelity=find_agreement(activity.evaluation, teacher_predictions),
        cost=estimate_cost(graph, activity, profile, teacher=teacher, same_chip=same_chip),
        note="; ".join(filter(None, (_origin(graph, built, quantized_again), find_overflow(graph)))),
    )


def mark_pareto(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Return `rows`, of one evaluation set, with ``pareto`` and ``reason`` filled in.

    Accuracy against nominal total energy, among the rows of one chip; fidelity in place of accuracy where not every row
    has an accuracy.
    """
    for measure in ("accuracy", "fidelity"):
        scores = [row.evaluation.accuracy if measure == "accuracy" else row.fidelity for row in rows]
        known = [score for score in scores if score is not None]
        if len(known) == len(rows):
            return [_judged(rows, known, index, measure) for index in range(len(rows))]
    return [replace(row, pareto=None, reason="neither accuracy nor fidelity is known") for row in rows]


def scored_by(table: Sequence[Mapping[str, Any]]) -> str:
    """Return which score rows of :func:`tabulate_rows` are compared by, as :func:`mark_pareto` chooses it.

    The accuracy where every row has one, else the fidelity where every row has one; else, where nothing can be
    compared, the one that some row has.
    """
    scores = ("accuracy", "fidelity")
    for enough in (all, any):
        for score in scores:
            if enough(row[score] is not None for row in table):
                return score
    return "accuracy"


def sampling_interval(share: float, samples: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was counted on `samples` images.

    The score interval of E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22,
    1927: it stays in [0, 1], also at the ends.
    """
    weight = _Z95**2 / samples
    centre = (share + weight / 2) / (1 + weight)
    half = _Z95 / (1 + weight) * math.sqrt(share * (1 - share) / samples + weight / (4 * samples))
    return max(0.0, centre - half), min(1.0, centre + half)


def tabulate_rows(rows: Sequence[ComparisonRow]) -> list[dict[str, Any]]:
    """Return one flat dict a row, ready for JSON and CSV: counts per inference, times in [s], energies in [J]."""
    return [_flat(row) for row in rows]


def write_csv(rows: Sequence[ComparisonRow], path: str | os.PathLike[str]) -> None:
    """Write the table of :func:`tabulate_rows` to `path`, whole or not at all; what is unknown stays empty.

    Raises
    ------
    ConfigError
        If there are no rows.
    ArtifactError
        If the file cannot be written.
    """
    table = tabulate_rows(rows)
    if not table:
        raise ConfigError("rows", "none", "at least one setting")
    with written_whole(path) as draft, open(draft, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def _weight_bits(graph: QuantizedGraph) -> int:
    return max(projection.precision.bits for projection in graph.projections)


def _origin(graph: QuantizedGraph, built: QuantizedGraph | None, quantized_again: bool) -> str:
    if built is None or (graph.timesteps, _weight_bits(graph)) == (built.timesteps, _weight_bits(built)):
        return "as built"
    if quantized_again:
        return (
            f"quantised again for T = {graph.timesteps} and {_weight_bits(graph)} bits; "
            f"the student was trained for T = {built.timesteps}"
        )
    return f"integers made for T = {built.timesteps}, run as is"


def find_agreement(evaluation: Evaluation, teacher_predictions: npt.ArrayLike | None) -> float | None:
    """Return the share of images with the teacher's answer; None where its answers are not given.

    Raises
    ------
    DataError
        If they are not one integer an image.
    """
    if teacher_predictions is None:
        return None
    answers = np.asarray(teacher_predictions)
    if answers.shape != (evaluation.samples,) or not np.issubdtype(answers.dtype, np.integer):
        raise DataError(
            "teacher_predictions",
            f"shape {answers.shape}, dtype {answers.dtype}",
            f"({evaluation.samples},) integers, one an image",
        )
    return float((evaluation.predictions == answers).mean())


def _judged(rows: Sequence[ComparisonRow], scores: list[float], index: int, measure: str) -> ComparisonRow:
    energies = [row.cost.energy.total.nominal for row in rows]
    chip, score, energy = rows[index].cost.energy.profile, scores[index], energies[index]
    better = [
        other
        for other in range(len(rows))
        if rows[other].cost.energy.profile == chip
        and (scores[other] >= score and energies[other] <= energy)
        and (scores[other] > score or energies[other] < energy)
    ]
    if not better:
        return replace(rows[index], pareto=True, reason=_merit(rows, scores, index, measure))
    # Of all that dominate it, name one that is itself on the front.
    best = min(better, key=lambda other: (energies[other], -scores[other]))
    reason = (
        f"{_named(rows[best])} has {measure} {scores[best]:.4f} against {score:.4f} "
        f"for {_joules(energies[best])} against {_joules(energy)}"
    )
    return replace(rows[index], pareto=False, reason=reason)


def _merit(rows: Sequence[ComparisonRow], scores: list[float], index: int, measure: str) -> str:
    """Return what a Pareto-best setting has over those of its chip that need less energy: a better score, always."""
    energies = [row.cost.energy.total.nominal for row in rows]
    chip, energy = rows[index].cost.energy.profile, energies[index]
    cheaper = [
        other for other in range(len(rows)) if rows[other].cost.energy.profile == chip and energies[other] < energy
    ]
    if not cheaper:
        return f"no setting needs less energy; {measure} {scores[index]:.4f} for {_joules(energy)}"
    rival = max(cheaper, key=lambda other: (scores[other], -energies[other]))
    return (
        f"{measure} {scores[index]:.4f} for {_joules(energy)}; the best of what needs less energy, "
        f"{_named(rows[rival])}, has {scores[rival]:.4f} for {_joules(energies[rival])}"
    )


def _joules(energy: float) -> str:
    for factor, unit in ((1.0, "J"), (1e-3, "mJ"), (1e-6, "uJ")):
        if energy >= factor:
            return f"{energy / factor:.3g} {unit}"
    return f"{energy / 1e-9:.3g} nJ"


def _named(row: ComparisonRow) -> str:
    return " ".join(filter(None, [row.model, f"T = {row.evaluation.timesteps}, {row.weight_bits} bits"]))


def _score_columns(name: str, share: float | None, samples: int) -> dict[str, float | None]:
    """Return a share with the 95 % interval that so many samples leave open."""
    low, high = (None, None) if share is None else sampling_interval(share, samples)
    return {name: share, f"{name}_low": low, f"{name}_high": high}


def _tier_columns(ann: AnnBaseline) -> dict[str, float | None]:
    """Return energy [J] and latency [s] of each tier of the ANN; what is not known, or not said by a tier, is None."""
    known = {tier.name: tier for tier in ann.tiers}
    columns: dict[str, float | None] = {}
    for name in TIER_NAMES:
        tier = known.get(name)
        for what in ("energy_j", "latency_s"):
            found = None if tier is None else getattr(tier, what)
            for corner in CORNERS:
                columns[f"ann_{name}_{what}_{corner}"] = None if found is None else getattr(found, corner)
        if name == "cpu_best_batch":  # its latency is that of a whole call
            columns[f"ann_{name}_size"] = None if tier is None else tier.details.get("batch")
    return columns


def _flat(row: ComparisonRow) -> dict[str, Any]:
    cost = row.cost
    counts = {**row.evaluation.totals(), **summarize_messages(cost)}
    intervals = {
        "latency_first_output_s": cost.latency.first_output,
        "latency_per_inference_s": cost.latency.per_inference,
        "energy_dynamic_j": cost.energy.dynamic,
        "energy_static_j": cost.energy.static,
        "energy_total_j": cost.energy.total,
    }
    counted = ("spikes", "messages", "synops", "spike_synops", "input_synops", "dense_synops", "neuron_updates")
    flat: dict[str, Any] = {
        "model": row.model,
        "timesteps": row.evaluation.timesteps,
        "weight_bits": row.weight_bits,
        "hardware": cost.energy.profile,
        "samples": row.evaluation.samples,
        **_score_columns("accuracy", row.evaluation.accuracy, row.evaluation.samples),
        **_score_columns("fidelity", row.fidelity, row.evaluation.samples),
        "firing_rate": cost.ann.spike_rate,
        **{name: counts[name] for name in counted},
    }
    for name, interval in intervals.items():
        flat.update({f"{name}_{corner}": value for corner, value in asdict(interval).items()})
    return {
        **flat,
        "latency_layer": cost.latency.binding.layer,
        "latency_term": cost.latency.binding.term,
        "cores": len(cost.mapping.cores),
        "chips": cost.mapping.chips,
        "ann_macs": cost.ann.macs,
        **_tier_columns(cost.ann),
        "spikes_per_synapse": cost.ann.spikes_per_synapse,
        "pareto": row.pareto,
        "reason": row.reason,
        "note": "; ".join(filter(None, (row.note, *cost.mapping.notes))),
    }
