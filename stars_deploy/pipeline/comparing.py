"""One row a setting: models over timesteps, weight bits and chips.

A setting takes up to three steps: a built directory's float graph is quantised for it, the integers run over the
evaluation set, and what they did is costed on each chip. The first two are expensive, depend on no chip and are tasks
of :mod:`stars_deploy.sweep`: each done once for equal content, kept in a cache, and done here, in processes or on a
cluster. The last is cheap and is done here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stars_deploy.activity import Activity
from stars_deploy.baseline import AnnReference, no_same_chip_tier
from stars_deploy.comparison import ComparisonRow, find_agreement, make_row, mark_pareto
from stars_deploy.cost import single_step_tier
from stars_deploy.errors import ConfigError, DataError
from stars_deploy.graph import SpikingGraph
from stars_deploy.hardware import ChipProfile, load_profile
from stars_deploy.hardware.mapping import check_mapped, map_network
from stars_deploy.pipeline.directory import FLOAT_GRAPH, RunDirectory, as_pixels
from stars_deploy.pipeline.models import Model, evaluation_set, open_model
from stars_deploy.progress import Observer
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.serde import load_spiking
from stars_deploy.sweep.cache import ResultCache
from stars_deploy.sweep.running import Places, opened
from stars_deploy.sweep.settings import Setting, check_once, plan_settings
from stars_deploy.sweep.tasks import Runner, SharedArray, Task, labelled, run_tasks
from stars_deploy.sweep.work import quantization, read_activity, read_graph, simulation

#: How the network at T = 1 came about.
QUANTISED_FOR_ONE = "quantised for T = 1; the student was trained for another number of timesteps"


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A model with what its settings are made from and run on."""

    name: str
    model: Model
    images: SharedArray
    labels: SharedArray | None
    answers: npt.NDArray[np.int64] | None

    @cached_property
    def teacher(self) -> AnnReference | None:
        """What was measured of the teacher, where the model's report tells."""
        return self.model.teacher()

    @cached_property
    def calibration(self) -> SharedArray:
        """The images that a build calibrated on."""
        return SharedArray(array=as_pixels(self._directory.images().calibration))

    @cached_property
    def float_graph(self) -> SpikingGraph:
        """What a build's integers were rounded from."""
        return load_spiking(self._directory.file(FLOAT_GRAPH))

    @property
    def _directory(self) -> RunDirectory:
        if self.model.directory is None:
            raise ConfigError(self.name, "a file of integers", "a built directory: it holds the float weights")
        return self.model.directory

    def label(self, setting: Setting) -> str:
        """Return what a user calls a setting of this model."""
        return ", ".join(
            [self.name, f"T = {setting.timesteps}", *([] if setting.bits is None else [f"{setting.bits} bits"])]
        )


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """What a sweep runs with."""

    runner: Runner
    cache: ResultCache | None
    watch: Observer


def compare_models(
    paths: Sequence[str | Path],
    *,
    timesteps: Sequence[int] = (1, 2, 4, 8),
    bits: Sequence[int] | None = None,
    data: str | None = None,
    root: str | None = None,
    limit: int | None = None,
    hardware: str | Sequence[str] = "loihi2",
    places: Places | None = None,
    cache: ResultCache | None = None,
    observer: Observer | None = None,
) -> list[ComparisonRow]:
    """Compare models over timesteps, weight bits and chips: one row a setting, accuracy beside latency and energy.

    The rows are the same wherever they were computed: by chip, then model, bits and timesteps. The Pareto-best are
    marked among the rows of one chip.

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
    hardware : str or sequence of str
        Names or YAML files of chips. They share one simulation.
    places : Places, optional
        Where to run; by default in this process alone. A script that asks for processes must do so below
        ``if __name__ == "__main__":``.
    cache : ResultCache, optional
        Where results are looked up and kept; by default nowhere.
    observer : Observer, optional

    Raises
    ------
    ConfigError
        If there is nothing to compare, a setting is given twice or is impossible, a network does not fit a chip, or
        `places` cannot be reached.
    DataError
        If a model comes with neither an evaluation set nor synthetic images.
    QuantizationError
        If an accumulator could leave 24 bits at a setting.
    """
    settings = plan_settings(len(paths), timesteps, bits)
    profiles = _load_profiles([hardware] if isinstance(hardware, str) else hardware)
    subjects = [
        _open_subject(path, name, timesteps[0], (data, root, limit))
        for path, name in zip(paths, _names(paths), strict=True)
    ]
    with opened(places or Places(jobs=1)) as runner:
        sweep = _Sweep(runner=runner, cache=cache, watch=observer or Observer())
        graphs = _quantize(subjects, settings, sweep)
        for setting in settings:
            with labelled(subjects[setting.model].label(setting)):
                for profile in profiles:
                    check_mapped(map_network(graphs[setting], profile))  # before anything takes long
        return mark_pareto(_simulate(subjects, graphs, profiles, sweep))


def _load_profiles(hardware: Sequence[str]) -> list[ChipProfile]:
    check_once("--hardware", hardware, "each chip once")
    profiles = [load_profile(name) for name in hardware]
    # Rows are told apart by what a profile calls itself.
    check_once("--hardware", [profile.name for profile in profiles], "profiles whose `name` differs")
    return profiles


def _names(paths: Sequence[str | Path]) -> list[str]:
    """Return what models are called in the table: a folder's or file's own name, the whole path where that is taken."""
    places = [Path(path) for path in paths]
    short = [place.resolve().name if place.is_dir() else place.stem for place in places]
    taken = Counter(short)
    return [name if taken[name] == 1 else str(path) for name, path in zip(short, paths, strict=True)]


def _open_subject(
    path: str | Path, name: str, timesteps: int, evaluated_on: tuple[str | None, str | None, int | None]
) -> _Subject:
    model = open_model(path, timesteps)
    images, labels, answers = _material(model, *evaluated_on)
    return _Subject(
        name=name,
        model=model,
        images=SharedArray(array=images),
        labels=None if labels is None else SharedArray(array=labels),
        answers=answers,
    )


def _material(
    model: Model, data: str | None, root: str | None, limit: int | None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64] | None, npt.NDArray[np.int64] | None]:
    """Return images with their labels, else held-out synthetic images with the teacher's answers."""
    evaluated = evaluation_set(model, data, root, limit)
    if evaluated is not None:
        return evaluated.images, evaluated.labels, None
    if model.directory is None:
        raise DataError("--data", "not given", "an evaluation set", "add --data NAME [--root FOLDER]")
    synthetic = model.directory.images()
    return as_pixels(synthetic.held_out), None, synthetic.teacher_classes


def _quantize(
    subjects: Sequence[_Subject], settings: Sequence[Setting], sweep: _Sweep
) -> dict[Setting, QuantizedGraph]:
    """Return the integers of each setting."""
    graphs: dict[Setting, QuantizedGraph] = {}
    tasks: dict[Setting, Task] = {}
    for setting in settings:
        subject = subjects[setting.model]
        task = _quantization(subject, setting)
        if task is None:
            graphs[setting] = subject.model.at_setting(setting.timesteps, setting.bits)
        else:
            tasks[setting] = task
    if tasks:
        with sweep.watch.stage("quantise"):
            done = run_tasks(list(tasks.values()), sweep.runner, read_graph, cache=sweep.cache, observer=sweep.watch)
            with closing(done):
                by_key = {task.key: graph for task, graph in done}
        graphs.update({setting: by_key[task.key] for setting, task in tasks.items()})
    return {setting: graphs[setting] for setting in settings}


def _quantization(subject: _Subject, setting: Setting) -> Task | None:
    """Return the task of quantising as :meth:`Model.at_setting` does; None where the integers are there."""
    directory, built = subject.model.directory, subject.model.graph
    if directory is None:
        return None
    config = directory.config()
    bits = config.bits if setting.bits is None else setting.bits
    if (setting.timesteps, bits) == (built.timesteps, config.bits):
        return None
    return quantization(
        subject.label(setting),
        replace(subject.float_graph, timesteps=setting.timesteps),
        subject.calibration,
        bits=bits,
        input_bits=config.input_bits,
        built=built,
    )


def _simulate(
    subjects: Sequence[_Subject],
    graphs: dict[Setting, QuantizedGraph],
    profiles: Sequence[ChipProfile],
    sweep: _Sweep,
) -> list[ComparisonRow]:
    """Run each network once and cost it on each chip; return the rows by chip, then by setting."""
    tasks: dict[Setting, Task] = {}
    for setting, graph in graphs.items():
        subject = subjects[setting.model]
        tasks[setting] = simulation(subject.label(setting), graph, subject.images, subject.labels)
    activities: dict[Setting, Activity] = {}
    with sweep.watch.stage("simulate"):
        done = run_tasks(list(tasks.values()), sweep.runner, read_activity, cache=sweep.cache, observer=sweep.watch)
        with closing(done):
            for finished, activity in done:
                activities.update({setting: activity for setting, task in tasks.items() if task.key == finished.key})
    pairs = product(profiles, graphs)
    return [_row(subjects[setting.model], setting, graphs, activities, profile) for profile, setting in pairs]


def _row(
    subject: _Subject,
    setting: Setting,
    graphs: dict[Setting, QuantizedGraph],
    activities: dict[Setting, Activity],
    profile: ChipProfile,
) -> ComparisonRow:
    """Return a row; where the same model and bits are among the settings for one timestep, that one beside it."""
    single = replace(setting, timesteps=1)
    if single not in graphs:
        beside = no_same_chip_tier("T = 1 is not among the settings")
    else:
        made_for = subject.model.graph.timesteps
        note = f"integers made for T = {made_for}, run as is" if subject.model.directory is None else QUANTISED_FOR_ONE
        fidelity = find_agreement(activities[single].evaluation, subject.answers)
        beside = single_step_tier(graphs[single], activities[single], profile, note=note, fidelity=fidelity)
    return make_row(
        graphs[setting], activities[setting], profile, built=subject.model.graph,
        quantized_again=subject.model.directory is not None, teacher_predictions=subject.answers,
        teacher=subject.teacher, same_chip=beside, model=subject.name,
    )  # fmt: skip
