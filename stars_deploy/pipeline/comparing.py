"""One row a setting: models over timesteps and weight bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stars_deploy.activity import measure_activity
from stars_deploy.comparison import ComparisonRow, make_row, mark_pareto
from stars_deploy.errors import ConfigError, DataError
from stars_deploy.hardware import load_profile
from stars_deploy.pipeline.directory import as_pixels
from stars_deploy.pipeline.models import Model, evaluation_set, open_model
from stars_deploy.progress import Observer


@dataclass(frozen=True, kw_only=True)
class _Material:
    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    answers: npt.NDArray[np.int64] | None


def _compared_on(model: Model, data: str | None, root: str | None, limit: int | None) -> _Material:
    """Return the evaluation set, else held-out synthetic images with the teacher's answers."""
    evaluated = evaluation_set(model, data, root, limit)
    if evaluated is not None:
        return _Material(images=evaluated.images, labels=evaluated.labels, answers=None)
    if model.directory is None:
        raise DataError("--data", "not given", "an evaluation set", "add --data NAME [--root FOLDER]")
    synthetic = model.directory.images()
    return _Material(images=as_pixels(synthetic.held_out), labels=None, answers=synthetic.teacher_classes)


def compare_models(
    paths: Sequence[str | Path],
    *,
    timesteps: Sequence[int] = (1, 2, 4, 8),
    bits: Sequence[int] | None = None,
    data: str | None = None,
    root: str | None = None,
    limit: int | None = None,
    hardware: str = "loihi2",
    observer: Observer | None = None,
) -> list[ComparisonRow]:
    """Compare models over timesteps and weight bits: one row a setting, accuracy beside latency and energy.

    Parameters
    ----------
    paths : sequence of path
        Built directories or ``.net`` files.
    timesteps : sequence of int
    bits : sequence of int, optional
        Weight bits, for built directories; by default those that each was built with.
    data, root, limit
        Evaluation set; by default that of each build. Without one, the fidelity to the teacher on held-out synthetic
        images stands in for the accuracy.
    hardware : str
    observer : Observer, optional

    Raises
    ------
    ConfigError
        If there is nothing to compare, or a setting is given twice or is impossible.
    DataError
        If a model comes with neither an evaluation set nor synthetic images.
    """
    if not paths:
        raise ConfigError("MODEL", "none given", "at least one built directory or .net file")
    _check_settings("--timesteps", timesteps, 1, None)
    if bits is not None:
        _check_settings("--bits", bits, 2, 8)
    watch = observer or Observer()
    profile = load_profile(hardware)
    rows: list[ComparisonRow] = []
    with watch.stage("compare"):
        for path in paths:
            model = open_model(path, timesteps[0] if timesteps else None)
            material = _compared_on(model, data, root, limit)
            for width in bits or (None,):
                for steps in timesteps:
                    graph = model.at_setting(steps, width)
                    activity = measure_activity(graph, material.images, material.labels, progress=watch.advanced)
                    rows.append(
                        make_row(
                            graph, activity, profile, built=model.graph, quantized_again=model.directory is not None,
                            teacher_predictions=material.answers, teacher_macs=model.teacher_macs, model=model.name,
                        )
                    )  # fmt: skip
    # Best among all of them, not only among the settings of one model.
    return mark_pareto(rows)


def _check_settings(option: str, values: Sequence[int], low: int, high: int | None) -> None:
    if not values or len(set(values)) != len(values) or min(values) < low or (high is not None and max(values) > high):
        allowed = f"at least {low}" if high is None else f"{low} to {high}"
        raise ConfigError(option, list(values), f"whole numbers, {allowed}, each once")
