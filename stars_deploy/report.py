"""``report.json``: everything that a build measured, and under which assumptions."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stars_deploy.bounds import prove_bounds
from stars_deploy.config import BuildConfig
from stars_deploy.cost import Cost, summarize_cost
from stars_deploy.export.calibration import Calibration, LayerReport
from stars_deploy.provenance import versions
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.simulate import Evaluation
from stars_deploy.verification import Verification

SCHEMA_VERSION = 2
RECONSTRUCTED = (
    "RCA and TAR are reconstructed from the abstract of STARS (arXiv 2605.27409): the formulas are ours, and no number "
    "here confirms or refutes the paper."
)
INHERITED = "The student inherits the teacher's topology and weights: a method of ours, not part of STARS."


def compose_report(
    *,
    config: BuildConfig,
    objectives: Mapping[str, Any],
    graph: QuantizedGraph,
    teacher: Mapping[str, Any],
    accuracy: Mapping[str, float | None],
    sample_labels: npt.NDArray[np.int64] | None,
    sample_source: str,
    fidelity: Mapping[str, Any],
    verifications: Sequence[Verification],
    evaluation: Evaluation,
    evaluated_on: str | None,
    cost: Cost,
    calibration: Calibration,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return the content of ``report.json``; what is not known is null.

    Accuracies are shares of right answers on the test part of ``evaluation.data``, read once. A target's accuracy
    counts the verification samples that it ran on.
    """
    return {
        "schema": SCHEMA_VERSION,
        "teacher": dict(teacher),
        "student": {
            "spec": config.student.spec,
            "timesteps": config.timesteps,
            "decay": config.student.decay,
            "method": config.method,
            "backbone": config.synthesis.backbone,
            "objectives": dict(objectives),
            "notes": [RECONSTRUCTED, *([INHERITED] if config.student.spec == "inherit" else [])],
        },
        "accuracy": {
            **accuracy,
            "targets": {item.target: summarize_accuracy(item, sample_labels) for item in verifications},
        },
        "evaluation": {"data": evaluated_on, "samples": evaluation.samples},
        "fidelity": dict(fidelity),
        "verification": {item.target: summarize_verification(item, sample_source) for item in verifications},
        "quantization": _quantization(config, graph, calibration),
        **summarize_cost(graph, evaluation, cost),
        "provenance": {
            "seed": config.seed,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "seconds": dict(seconds),
            "versions": versions(),
        },
    }


def summarize_export(
    files: Sequence[Path],
    calibrated_on: str,
    layers: Sequence[LayerReport],
    warnings: Sequence[str],
    verifications: Sequence[Verification],
) -> dict[str, Any]:
    """Return what an export wrote, what quantisation did to each layer, and what verification found, as JSON."""
    return {
        "files": [str(path) for path in files],
        "calibrated_on": calibrated_on,
        "quantization": {"layers": [asdict(layer) for layer in layers], "warnings": list(warnings)},
        "verification": {item.target: summarize_verification(item, "noise") for item in verifications},
    }


def summarize_verification(verification: Verification, source: str) -> dict[str, Any]:
    """Return one verification as JSON: ``passed`` is null where the target could not run, with the reason."""
    return {
        "ran": verification.ran,
        "passed": verification.passed if verification.ran else None,
        "reason": verification.reason or None,
        "samples": verification.samples,
        "images": source,
        "compared_spikes": verification.compared_spikes,
        "mismatches": verification.mismatches,
        "altered": verification.altered or None,
        "first": None if verification.first is None else str(verification.first),
        "seconds": round(verification.seconds, 3),
    }


def summarize_accuracy(verification: Verification, labels: npt.NDArray[np.int64] | None) -> dict[str, Any] | None:
    """Return how often a target was right on the verification samples; None where it did not run or labels lack."""
    if not verification.ran or labels is None:
        return None
    right = np.asarray(verification.classes) == labels
    return {"accuracy": float(right.mean()), "samples": len(right)}


def _quantization(config: BuildConfig, graph: QuantizedGraph, calibration: Calibration) -> dict[str, Any]:
    bounds = prove_bounds(graph)
    return {
        "weight_bits": config.bits,
        "input_bits": calibration.input_bits,
        "warnings": list(calibration.warnings),
        "layers": [
            {
                **asdict(layer),
                "vth": np.asarray(graph.population(layer.name).vth).tolist(),
                "decay_v": np.asarray(graph.population(layer.name).decay_v).tolist(),
                "accumulator_utilization": bounds[layer.name].utilization,
            }
            for layer in calibration.layers
        ],
    }
