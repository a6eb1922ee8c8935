"""Configuration of a build: one pydantic model, from YAML and flags, written into every run directory."""

from stars_deploy.config.loading import load_config, load_section, save_config
from stars_deploy.config.methods import Method, load_method, method_names, resolve_objectives
from stars_deploy.config.sections import (
    BuildConfig,
    DataConfig,
    DistillConfig,
    ObjectiveSetting,
    OnnxConfig,
    Section,
    StudentConfig,
    SynthesisConfig,
    TeacherConfig,
)

__all__ = [
    "BuildConfig",
    "DataConfig",
    "DistillConfig",
    "Method",
    "ObjectiveSetting",
    "OnnxConfig",
    "Section",
    "StudentConfig",
    "SynthesisConfig",
    "TeacherConfig",
    "load_config",
    "load_method",
    "load_section",
    "method_names",
    "resolve_objectives",
    "save_config",
]
