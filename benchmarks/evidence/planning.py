"""A campaign's file, and the runs that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from stars_deploy.config import BuildConfig, Section, load_config, load_section
from stars_deploy.config.loading import merged, read_mapping
from stars_deploy.errors import ConfigError

Settings = dict[str, Any]


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
    students: tuple[str, ...] | None = None
    backbones: tuple[str, ...] | None = None
    equal_time: EqualTime | None = None


class Campaign(Section):
    """What a campaign's YAML holds.

    ``settings`` are part of a build's configuration, over which those of backbone, student and arm are laid, in this
    order. ``evaluate: validation`` measures on the first ``validation_images`` of the training images instead of the
    test set: for choosing hyper-parameters. ``baseline`` is the arm that others are paired with.
    """

    title: str
    dataset: str
    settings: Settings = Field(default_factory=dict)
    backbones: dict[str, Settings]
    students: dict[str, Settings]
    arms: dict[str, Arm]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    baseline: str
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
    for run in plan_runs(campaign):
        run.config()
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
                    layers = (campaign.settings, campaign.backbones.get(backbone, {}), of_student, arm.settings)
                    place = {"arm": name, "kind": arm.kind, "backbone": backbone, "student": student, "seed": seed}
                    runs.append(Run(**place, settings=_overlaid(layers), equal_time=arm.equal_time))
    return sorted(runs, key=lambda run: run.equal_time is not None)


def _overlaid(layers: tuple[Settings, ...]) -> Settings:
    result: Settings = {}
    for layer in layers:
        result = merged(result, layer)
    return result


def _check_known(where: str, names: tuple[str, ...] | None, known: Mapping[str, Any]) -> None:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ConfigError(where, ", ".join(unknown), ", ".join(known))
