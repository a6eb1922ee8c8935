"""Named methods for ``--method``: sets of objectives that any backbone takes, each a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

from pydantic import Field

from stars_deploy.config.loading import load_section, read_mapping
from stars_deploy.config.sections import ObjectiveSetting, Section, SynthesisConfig, Weight
from stars_deploy.errors import ConfigError

METHODS = Path(__file__).parents[1] / "presets" / "methods"


class Method(Section):
    """A set of objectives: what it is, where it comes from, and what it adds to a backbone's own objectives."""

    title: str
    origin: str
    objectives: dict[str, Union[Weight, dict[str, Any]]] = Field(default_factory=dict)


def method_names() -> list[str]:
    """Return the names of the methods that ship."""
    return sorted(file.stem for file in METHODS.glob("*.yaml"))


def load_method(name: str) -> Method:
    """Return the method of that name, or of the YAML file of that path.

    Raises
    ------
    ConfigError
        If there is none, or it is not understood.
    """
    named = name in method_names()
    if not named and not name.endswith((".yaml", ".yml")):
        raise ConfigError("--method", name, f"{', '.join(method_names())}, or a YAML file", "stars-deploy build --help")
    path = METHODS / f"{name}.yaml" if named else Path(name)
    return load_section(Method, read_mapping(path, "see stars_deploy/presets/methods"), str(path))


def resolve_objectives(
    base: Mapping[str, float], method: Method, config: SynthesisConfig
) -> dict[str, ObjectiveSetting]:
    """Return the objectives in force: a backbone's own weights, the method's over them, the configuration's over both.

    Options and schedules of one objective are merged key by key. What weighs 0 is left out.

    Raises
    ------
    ConfigError
        If a setting is not allowed, or nothing is left.
    """
    merged: dict[str, dict[str, Any]] = {name: {"weight": weight} for name, weight in base.items()}
    for given in (method.objectives, config.objectives):
        for name, setting in given.items():
            known = merged.setdefault(name, {})
            known.update(setting if isinstance(setting, Mapping) else {"weight": setting})
    settings = {
        name: load_section(ObjectiveSetting, values, f"synthesis.objectives.{name}") for name, values in merged.items()
    }
    used = {name: setting for name, setting in settings.items() if setting.weight}
    if not used:
        raise ConfigError("synthesis.objectives", "every weight is 0", "at least one weight greater than 0")
    return used
