"""Which backbones and objectives there are: those that ship, those of installed packages, those registered by a script.

Another package offers its own by entry points of the groups ``stars_deploy.backbones`` and ``stars_deploy.objectives``;
the name of the entry point is what users write.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any, TypeVar

import torch

from stars_deploy.config import SynthesisConfig, load_method, load_section, resolve_objectives
from stars_deploy.errors import ConfigError
from stars_deploy.norms import check_trained, norm_statistics
from stars_deploy.synthesis.backbone import Backbone
from stars_deploy.synthesis.backbones import BACKBONES
from stars_deploy.synthesis.objective import Objective
from stars_deploy.synthesis.objectives import OBJECTIVES
from stars_deploy.synthesis.scoring import Scorer
from stars_deploy.teacher import Teacher

Part = TypeVar("Part", Backbone, Objective)

_backbones: dict[str, type[Backbone]] = {one.name: one for one in BACKBONES}
_objectives: dict[str, type[Objective]] = {one.name: one for one in OBJECTIVES}


def register_backbone(kind: type[Backbone]) -> None:
    """Offer a backbone under its name, in this process."""
    _backbones[kind.name] = kind


def register_objective(kind: type[Objective]) -> None:
    """Offer an objective under its name, in this process."""
    _objectives[kind.name] = kind


def find_backbone(name: str) -> type[Backbone]:
    """Return the backbone of that name.

    Raises
    ------
    ConfigError
        If there is none, or the package that offers it fails.
    """
    return _find(name, _backbones, Backbone, "synthesis.backbone", "stars_deploy.backbones")


def find_objective(name: str) -> type[Objective]:
    """Return the objective of that name.

    Raises
    ------
    ConfigError
        If there is none, or the package that offers it fails.
    """
    return _find(name, _objectives, Objective, "synthesis.objectives", "stars_deploy.objectives")


def backbone_names() -> list[str]:
    """Return the names of all backbones that can be had here."""
    return _names(_backbones, "stars_deploy.backbones")


def objective_names() -> list[str]:
    """Return the names of all objectives that can be had here."""
    return _names(_objectives, "stars_deploy.objectives")


def build_backbone(teacher: Teacher, config: SynthesisConfig, method: str, draws: torch.Generator) -> Backbone:
    """Build the backbone that a configuration asks for, with its objectives.

    Raises
    ------
    ConfigError
        If a name or an option is unknown, or the teacher's classes cannot be balanced in a batch.
    TeacherError
        If the teacher's batch norms remember nothing of any data.
    """
    kind = find_backbone(config.backbone)
    if config.batch < teacher.classes:
        raise ConfigError(
            "synthesis.batch", f"{config.batch} images for {teacher.classes} classes",
            f"at least {teacher.classes}: every class in every batch",
            "a batch with a part of the classes cannot have the statistics of all; raise synthesis.batch",
        )  # fmt: skip
    check_trained(norm_statistics(teacher.module, teacher.norms))
    settings = resolve_objectives(kind.base_weights, load_method(method), config)
    objectives = {}
    for name, setting in settings.items():
        found = find_objective(name)
        options = load_section(found.Options, setting.options(), f"synthesis.objectives.{name}")
        objectives[name] = found(teacher, options).to(teacher.device)
    scorer = Scorer(
        teacher, objectives, settings, shift=view_shift(teacher, config), flip=config.flip,
        student_samples=config.student_samples,
    )  # fmt: skip
    options = load_section(kind.Options, config.options, "synthesis.options")
    return kind(teacher, scorer, options, batch=config.batch, ambiguous=config.ambiguous, draws=draws)


def view_shift(teacher: Teacher, config: SynthesisConfig) -> int:
    """Return the largest move of the views [pixels]: as configured, else a fourteenth of the image's height."""
    return max(1, teacher.input.shape[1] // 14) if config.shift is None else config.shift


def _find(name: str, known: dict[str, type[Part]], kind: type[Part], where: str, group: str) -> type[Part]:
    if name in known:
        return known[name]
    offers = [one for one in metadata.entry_points(group=group) if one.name == name]
    if not offers:
        raise ConfigError(
            where, name, ", ".join(_names(known, group)), f"or install a package that offers it ({group})"
        )
    try:
        found: Any = offers[0].load()
    except Exception as error:  # whatever another package's import may raise
        raise ConfigError(
            where, f"{name}, offered by {offers[0].value}, fails ({error})", "a package that loads"
        ) from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigError(
            where, f"{name} is {offers[0].value}, a {type(found).__name__}", f"a class of {kind.__name__}"
        )
    return found


def _names(known: dict[str, type[Part]], group: str) -> list[str]:
    return sorted({*known, *(one.name for one in metadata.entry_points(group=group))})
