"""A campaign's file, and the runs that it asks for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import Field

from stars_deploy.config import BuildConfig, Section, load_config, load_section
from stars_deploy.config.loading import merged, read_mapping
from stars_deploy.errors import ConfigError

Settings = dict[str, Any]
#: What a name may hold that becomes part of a file's.
NAME = re.compile(r"[\w :+.,-]+")


Some = Union[Annotated[tuple[str, ...], Field(min_length=1)], None]


class EqualTime(Section):
    """As many steps as `arm` had CPU time for with the same seed; `base` says what a step takes."""

    arm: str
    base: str


class Arm(Section):
    """One way to distil.

    ``kind`` is ``distill``; ``real`` (real training images in place of synthetic ones), ``noise``, ``none`` (the
    student as it is made), which know no backbones; or ``ann`` (the student with ReLU for its neurons). ``settings``
    are part of a build's configuration. ``students`` and ``backbones`` limit it to some of the campaign's.
    """

    kind: Literal["distill", "real", "noise", "none", "ann"] = "distill"
    settings: Settings = Field(default_factory=dict)
    students: Some = None
    backbones: Some = None
    equal_time: EqualTime | None = None


class Campaign(Section):
    """What a campaign's YAML holds.

    ``settings`` are part of a build's configuration, over which those of backbone, student and arm are laid, in this
    order; a backbone or a student is the one of its name unless its settings say which. ``evaluate: validation``
    measures on the first ``validation_images`` of the training images instead of the test set: for choosing
    hyper-parameters. ``baseline`` is the arm that others are paired with; ``comparisons`` are further pairs, such as
    ``[stars, placebo]``.
    """

    title: str
    dataset: str
    settings: Settings = Field(default_factory=dict)
    backbones: dict[str, Settings]
    students: dict[str, Settings]
    arms: dict[str, Arm]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    baseline: str
    comparisons: tuple[tuple[str, str], ...] = ()
    evaluate: Literal["test", "validation"] = "test"
    validation_images: Annotated[int, Field(ge=100)] = 5000


class Run(Section):
    """One run: its place in the campaign and its whole configuration."""

    arm: str
    kind: str
    backbone: str
    student: str
    seed: int
    settings: Settings
    equal_time: EqualTime | None = None

    @property
    def name(self) -> str:
        """The name of its files."""
        parts = (self.student, self.backbone, self.arm, f"seed{self.seed}")
        return "_".join(part.replace(":", "-").replace("+", "plus-").replace(" ", "-") for part in parts)

    def sibling(self, arm: str) -> str:
        """Return the name of the run of another arm that is paired with this one."""
        return self.model_copy(update={"arm": arm}).name

    def needs(self) -> list[str]:
        """Return the names of the runs that must be done before this one."""
        equal = self.equal_time
        return [] if equal is None else [self.sibling(equal.arm), self.sibling(equal.base)]

    def config(self) -> BuildConfig:
        """Return the configuration of the build that this run is.

        Raises
        ------
        ConfigError
            If a setting is not allowed.
        """
        return load_config(None, {**self.settings, "seed": self.seed, "threads": 1})


def load_campaign(path: Path) -> Campaign:
    """Return a campaign.

    Raises
    ------
    ConfigError, ArtifactError
        If the file is missing or not understood, or an arm names something that is not there.
    """
    campaign = load_section(Campaign, read_mapping(path, "see benchmarks/campaigns"), str(path))
    for name, arm in campaign.arms.items():
        _check_known(f"{path}: arms.{name}.students", arm.students, campaign.students)
        _check_known(f"{path}: arms.{name}.backbones", arm.backbones, campaign.backbones)
        if arm.equal_time is not None:
            _check_known(f"{path}: arms.{name}.equal_time", (arm.equal_time.arm, arm.equal_time.base), campaign.arms)
    _check_known(f"{path}: baseline", (campaign.baseline,), campaign.arms)
    for pair in campaign.comparisons:
        _check_known(f"{path}: comparisons", pair, campaign.arms)
    _check_runs(path, plan_runs(campaign))
    return campaign


def plan_runs(campaign: Campaign) -> list[Run]:
    """Return every run: seed by seed, so that an unfinished campaign has whole pairs; what depends on others last."""
    runs = []
    for seed in campaign.seeds:
        for student, of_student in campaign.students.items():
            for name, arm in campaign.arms.items():
                if arm.students is not None and student not in arm.students:
                    continue
                without = arm.kind in ("real", "noise", "none")
                for backbone in [""] if without else arm.backbones or campaign.backbones:
                    named: tuple[Settings, ...] = ({"student": {"spec": student}},)
                    named += () if without else ({"synthesis": {"backbone": backbone}},)
                    of_backbone = campaign.backbones.get(backbone, {})
                    layers = (*named, campaign.settings, of_backbone, of_student, arm.settings)
                    place = {"arm": name, "kind": arm.kind, "backbone": backbone, "student": student, "seed": seed}
                    runs.append(Run(**place, settings=_overlaid(layers), equal_time=arm.equal_time))
    return sorted(runs, key=lambda run: run.equal_time is not None)


def settled(run: Run) -> BuildConfig:
    """Return the configuration of a run, with what its kind needs."""
    config = run.config()
    if run.kind == "ann":
        plan = config.distill.model_copy(update={"revive": False})
        return config.model_copy(update={"timesteps": 1, "distill": plan})
    if run.kind in ("real", "noise"):
        synthesis = config.synthesis.model_copy(update={"backbone": run.kind, "options": {}, "objectives": {}})
        return config.model_copy(update={"method": "bn", "synthesis": synthesis})
    return config


def _check_runs(path: Path, runs: list[Run]) -> None:
    """Refuse what would be found out after hours, or never."""
    names = Counter(run.name for run in runs)
    if not runs:
        raise ConfigError(str(path), "no run", "at least one backbone, one student and one arm that goes with them")
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ConfigError(str(path), f"two runs called {', '.join(twice)}", "one run for each name and seed")
    odd = _odd(part for run in runs for part in (run.arm, run.student, run.backbone))
    if odd:
        raise ConfigError(str(path), odd, "names of letters, digits, space and : + . , - _, as they name files")
    waiting = {run.name for run in runs if run.equal_time is not None}
    for run in runs:
        config = run.config()
        if config.distill.budget is not None:
            raise ConfigError(f"{path}: {run.name}", f"distill.budget {config.distill.budget:g} s", "distill.steps")
        if run.kind == "ann" and config.student.spec == "inherit":
            raise ConfigError(f"{path}: {run.name}", "an ANN that inherits", "another student: that is the teacher")
        needed = run.needs()
        if any(name in waiting or name not in names for name in needed):
            raise ConfigError(
                f"{path}: arms.{run.arm}.equal_time", " and ".join(needed), "runs of the campaign, of fixed steps",
                "limit the arm to the students and backbones that both arms have",
            )  # fmt: skip


def _odd(names: Iterable[str]) -> str:
    return ", ".join(sorted({name for name in names if name and not NAME.fullmatch(name)}))


def _overlaid(layers: tuple[Settings, ...]) -> Settings:
    result: Settings = {}
    for layer in layers:
        result = merged(result, layer)
    return result


def _check_known(where: str, names: tuple[str, ...] | None, known: Mapping[str, Any]) -> None:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ConfigError(where, ", ".join(unknown), ", ".join(known))
