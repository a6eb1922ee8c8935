"""Configuration of a build: one pydantic model, from YAML and flags, written resolved into every run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stars_deploy.artifacts import existing_file, written_whole
from stars_deploy.errors import ConfigError

Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Section = TypeVar("Section", bound=_Section)


class TeacherConfig(_Section):
    """Which network to distil, and what it expects (see :func:`stars_deploy.teacher.load_teacher`)."""

    spec: str = "digits"
    weights: str | None = None
    input_shape: tuple[Count, Count, Count] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: Count | None = None
    trust_weights: bool = False


class DataConfig(_Section):
    """What to measure accuracy on; never read while distilling. ``name`` None: no evaluation set."""

    name: str | None = None
    root: str | None = None
    limit: Count | None = None


class ObjectiveWeights(_Section):
    """Weight of each synthesis objective; 0 switches it off (formulas: :mod:`stars_deploy.synthesis.objectives`).

    RCA and TAR are reconstructed from the abstract of STARS; the formulas are ours.
    """

    bn: Weight = 5.0
    onehot: Weight = 1.0
    adversarial: Weight = 0.5
    diversity: Weight = 2.0
    rca: Weight = 0.0
    tar: Weight = 0.0


#: Named sets of objectives for ``--method``.
METHODS: Mapping[str, ObjectiveWeights] = {
    "bn": ObjectiveWeights(),
    "stars": ObjectiveWeights(rca=1.0, tar=0.5),
}


class SynthesisConfig(_Section):
    """How training images are made from the teacher.

    ``inner_steps`` optimisation steps of generator and latents make ``batch`` images a round; the newest ``pool``
    images are kept. ``shift`` [pixels] and ``flip`` are the views that teacher and student are shown.
    ``tar_thresholds`` is ``gaussian`` (mean + kappa sigma) or ``boundary`` (the teacher's own ReLU boundary).
    """

    objectives: ObjectiveWeights | None = None
    batch: Count = 128
    inner_steps: Count = 5
    warmup_steps: Count = 100
    pool: Count = 8192
    latent: Count = 64
    width: Count = 16
    generator_rate: Annotated[float, Field(gt=0)] = 3e-3
    latent_rate: Annotated[float, Field(gt=0)] = 1e-2
    shift: Annotated[int, Field(ge=0)] | None = None
    flip: bool = False
    tar_thresholds: Literal["gaussian", "boundary"] = "boundary"
    tar_kappas: tuple[float, ...] = (1.0, 2.0)


class StudentConfig(_Section):
    """Which student, and how its neurons run (see :mod:`stars_deploy.student`)."""

    spec: str = "inherit"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    surrogate_width: Annotated[float, Field(gt=0)] = 1.0
    balance: Annotated[float, Field(gt=0)] = 2.0


class DistillConfig(_Section):
    """How the student follows the teacher (see :mod:`stars_deploy.distill`)."""

    steps: Count = 400
    batch: Count = 64
    steps_per_round: Count = 10
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    temperature: Annotated[float, Field(gt=0)] = 4.0
    per_timestep: Weight = 0.2
    rate_matching: Weight = 1.0
    checkpoint_every: Count = 100


class OnnxConfig(_Section):
    """How a network is written as ONNX.

    ``mode`` is ``sequence`` (one call, all timesteps inside) or ``step`` (one call a timestep, state in and out);
    ``input`` is ``image`` (float pixels, quantised inside), ``payloads`` (integers, a frame for each timestep), or
    ``auto``: payloads where the input is spikes, else image.
    """

    mode: Literal["sequence", "step"] = "sequence"
    input: Literal["auto", "image", "payloads"] = "auto"


class BuildConfig(_Section):
    """Everything that a build depends on.

    ``input_bits`` is the most that calibration may choose; ``calibration_images`` synthetic images are what it looks
    at, ``held_out_images`` fresh ones are for the fidelity; ``verify_samples`` distinct images are run by each target;
    ``measure_cpu`` times the teacher on this machine's processor, about three seconds; ``sweep`` lists the timesteps
    that the report compares, beside those built.
    """

    teacher: TeacherConfig = TeacherConfig()
    data: DataConfig = DataConfig()
    student: StudentConfig = StudentConfig()
    method: Literal["bn", "stars"] = "stars"
    synthesis: SynthesisConfig = SynthesisConfig()
    distill: DistillConfig = DistillConfig()
    timesteps: Annotated[int, Field(ge=1, le=1024)] = 4
    bits: Annotated[int, Field(ge=2, le=8)] = 8
    input_bits: Annotated[int, Field(ge=1, le=8)] = 8
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("lava",)
    onnx: OnnxConfig = OnnxConfig()
    hardware: str = "loihi2"
    verify_samples: Annotated[int, Field(ge=2)] = 16
    calibration_images: Count = 32
    held_out_images: Annotated[int, Field(ge=16)] = 512
    measure_cpu: bool = True
    sweep: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (1, 2, 4, 8)
    threads: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="before")
    @classmethod
    def _measure_the_default_on_its_own_data(cls, given: Any) -> Any:
        """Unless something else is said, the embedded teacher is measured on the digits that ship with it."""
        if not isinstance(given, Mapping):
            return given
        teacher, data = given.get("teacher", {}), given.get("data", {})
        embedded = isinstance(teacher, Mapping) and teacher.get("spec", "digits") == "digits"
        if embedded and isinstance(data, Mapping) and "name" not in data:
            return {**given, "data": {**data, "name": "digits"}}
        return given

    def objectives(self) -> ObjectiveWeights:
        """Return the weights in force: those given, else those of the method."""
        return self.synthesis.objectives or METHODS[self.method]


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
    content: Any = {}
    if path is not None:
        existing_file(path)
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(
                str(path), f"not YAML ({error})", "a YAML file, see the config.yaml of a build"
            ) from error
        if not isinstance(content, dict):
            raise ConfigError(str(path), f"a {type(content).__name__}", "a mapping of settings")
    try:
        return BuildConfig.model_validate(_merged(content, overrides))
    except ValidationError as error:
        raise ConfigError(
            str(path or "options"), _problems(error), remedy="correct or remove these settings"
        ) from error


def load_section(kind: type[Section], values: Mapping[str, Any]) -> Section:
    """Return one section of the settings from `values`, of which None are ignored.

    Raises
    ------
    ConfigError
        If a value is not allowed, naming it.
    """
    try:
        return kind.model_validate(_merged({}, values))
    except ValidationError as error:
        raise ConfigError("options", _problems(error), remedy="correct or remove these options") from error


def save_config(config: BuildConfig, path: str | Path) -> None:
    """Write a configuration, with every default resolved, as YAML that ``--config`` takes."""
    with written_whole(path) as draft:
        draft.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping):
            inner = result.get(key)
            result[key] = _merged(inner if isinstance(inner, Mapping) else {}, value)
        elif value is not None:
            result[key] = value
    return result


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc'])} = {item.get('input')!r}: {item['msg']}"
        for item in error.errors()
    )
