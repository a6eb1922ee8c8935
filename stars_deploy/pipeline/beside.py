"""What stands beside a network: itself at one timestep, and over other numbers of timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from stars_deploy.activity import measure_activity
from stars_deploy.baseline import Tier, no_same_chip_tier
from stars_deploy.comparison import find_agreement, tabulate_rows
from stars_deploy.config import BuildConfig
from stars_deploy.cost import single_step_tier
from stars_deploy.engines import Engine
from stars_deploy.errors import QuantizationError, StarsDeployError
from stars_deploy.hardware import ChipProfile
from stars_deploy.pipeline.comparing import QUANTISED_FOR_ONE, compare_models
from stars_deploy.pipeline.directory import RunDirectory
from stars_deploy.pipeline.models import Model


def single_step_beside(
    model: Model,
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any] | None,
    profile: ChipProfile,
    engine: Engine | None = None,
    teacher_classes: npt.NDArray[Any] | None = None,
) -> Tier:
    """Return the same network at T = 1 on the same chip, run on the same images; a tier says why there is none.

    Only what was built here can be quantised for another number of timesteps.
    """
    if model.directory is None:
        return no_same_chip_tier("only for a built directory, whose float weights can be quantised for T = 1")
    if not model.graph.input.fits(images.shape) or model.graph.input.over_time(images):
        return no_same_chip_tier("the input has a frame for each timestep")
    try:
        graph = model.at_setting(1)
    except QuantizationError as error:
        return no_same_chip_tier(f"cannot be quantised for T = 1: {error}")
    activity = measure_activity(graph, images, labels, engine=engine)
    fidelity = find_agreement(activity.evaluation, teacher_classes)
    note = QUANTISED_FOR_ONE if graph is not model.graph else ""
    return single_step_tier(graph, activity, profile, note=note, fidelity=fidelity)


def sweep_beside(directory: RunDirectory, config: BuildConfig) -> dict[str, Any]:
    """Return the ``sweep`` of a report: the rows of ``compare`` for the timesteps of ``config.sweep`` and those built.

    Where an accumulator could overflow in a longer run, the longer ones are left out; ``reason`` says so.
    """
    asked = sorted({*config.sweep, config.timesteps})
    if not config.sweep:
        return {"rows": [], "reason": "not asked for (sweep: [])"}
    try:
        return {"rows": _rows(directory, config, asked), "reason": None}
    except QuantizationError as error:
        shorter, reason = [steps for steps in asked if steps <= config.timesteps], str(error)
    try:
        return {"rows": _rows(directory, config, shorter), "reason": reason}
    except StarsDeployError as error:
        return {"rows": [], "reason": str(error)}


def _rows(directory: RunDirectory, config: BuildConfig, timesteps: Sequence[int]) -> list[dict[str, Any]]:
    return tabulate_rows(compare_models([directory.path], timesteps=timesteps, hardware=config.hardware))
