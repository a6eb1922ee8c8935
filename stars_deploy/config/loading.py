"""Settings from YAML files and options, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from stars_deploy.artifacts import existing_file, written_whole
from stars_deploy.config.sections import BuildConfig
from stars_deploy.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def load_config(path: str | Path | None, overrides: Mapping[str, Any]) -> BuildConfig:
    """Return the configuration of a YAML file with `overrides` on top.

    Parameters
    ----------
    path : path or None
    overrides : mapping
        Nested like the file; None values are ignored.

    Raises
    ------
    ConfigError
        If the file is not YAML or a value is not allowed, naming each key.
    """
    content = {} if path is None else read_mapping(path, "see the config.yaml of a build")
    try:
        return BuildConfig.model_validate(merged(content, overrides))
    except ValidationError as error:
        raise ConfigError(
            str(path or "options"), _problems(error), remedy="correct or remove these settings"
        ) from error


def load_section(kind: type[Model], values: Mapping[str, Any], where: str = "options") -> Model:
    """Return one section of the settings from `values`, of which None are ignored; `where` is named in an error.

    Raises
    ------
    ConfigError
        If a value is not allowed, naming it.
    """
    try:
        return kind.model_validate(merged({}, values))
    except ValidationError as error:
        raise ConfigError(where, _problems(error), remedy="correct or remove these options") from error


def read_mapping(path: str | Path, hint: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; empty for an empty file.

    Raises
    ------
    ConfigError
        If it is not YAML or no mapping; `hint` tells where to see how it should be.
    ArtifactError
        If it is missing.
    """
    existing_file(path)
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"not YAML ({error})", f"a YAML file, {hint}") from error
    if not isinstance(content, dict):
        raise ConfigError(str(path), f"a {type(content).__name__}", "a mapping of settings")
    return content


def save_config(config: BuildConfig, path: str | Path) -> None:
    """Write a configuration, with every default resolved, as YAML that ``--config`` takes."""
    with written_whole(path) as draft:
        draft.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with others over them, mapping by mapping; None leaves what is there."""
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping):
            inner = result.get(key)
            result[key] = merged(inner if isinstance(inner, Mapping) else {}, value)
        elif value is not None:
            result[key] = value
    return result


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc'])} = {item.get('input')!r}: {item['msg']}"
        for item in error.errors()
    )
