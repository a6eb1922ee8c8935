"""The sections of a build's configuration, each a pydantic model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stars_deploy.config.durations import Seconds

Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Part of the settings: unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TeacherConfig(Section):
    """Which network to distil, and what it expects (see :func:`stars_deploy.teacher.load_teacher`)."""

    spec: str = "digits"
    weights: str | None = None
    input_shape: tuple[Count, Count, Count] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: Count | None = None
    trust_weights: bool = False


class DataConfig(Section):
    """What to measure accuracy on; never read while distilling. ``name`` None: no evaluation set."""

    name: str | None = None
    root: str | None = None
    limit: Count | None = None


class ObjectiveSetting(Section):
    """How much an objective of synthesis counts, and when; what else is given are the objective's own options.

    Its weight is 0 before ``begin`` and after ``until``, and rises linearly over ``ramp``; all three are shares of the
    distillation.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    weight: Weight
    begin: Share = 0.0
    ramp: Share = 0.0
    until: Share = 1.0

    @model_validator(mode="after")
    def _counts_at_some_time(self) -> ObjectiveSetting:
        if self.begin >= self.until:
            raise ValueError(f"begin {self.begin:g} is not before until {self.until:g}: it would never count")
        return self

    def options(self) -> dict[str, Any]:
        """Return the objective's own options, as given."""
        return dict(self.model_extra or {})

    def at(self, progress: float) -> float:
        """Return the weight when `progress`, in [0, 1], of the distillation is done."""
        if not self.begin <= progress <= self.until:
            return 0.0
        return self.weight * min(1.0, (progress - self.begin) / self.ramp) if self.ramp else self.weight


class SynthesisConfig(Section):
    """How training images are made from the teacher.

    ``batch`` images are made in a round; the newest ``pool`` images are kept. ``shift`` [pixels] and ``flip`` are the
    views that teacher and student are shown. ``options`` are those of the ``backbone``. ``objectives`` (a weight, or a
    mapping with ``weight``, a schedule and options, see :class:`ObjectiveSetting`) win over those of the method, which
    win over the backbone's. ``ambiguous`` is the share of images that are made to be between two classes. The student
    is run on the first ``student_samples`` of a batch: it costs several times the teacher.
    """

    backbone: str = "fast"
    options: dict[str, Any] = Field(default_factory=dict)
    objectives: dict[str, Union[Weight, dict[str, Any]]] = Field(default_factory=dict)
    batch: Annotated[int, Field(ge=2)] = 128
    pool: Count = 8192
    shift: Annotated[int, Field(ge=0)] | None = None
    flip: bool = False
    ambiguous: Share = 0.5
    student_samples: Annotated[int, Field(ge=2)] = 64


class StudentConfig(Section):
    """Which student, and how its neurons run (see :mod:`stars_deploy.student`)."""

    spec: str = "inherit"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    surrogate: str = "triangle"
    surrogate_width: Annotated[float, Field(gt=0)] = 1.0
    balance: Annotated[float, Field(gt=0)] = 2.0


class DistillConfig(Section):
    """How the student follows the teacher (see :mod:`stars_deploy.distill`).

    ``kl``, ``per_timestep``, ``rate_matching`` and ``relations`` weigh the terms of its loss. ``mixing`` is how images
    of the pool are combined before they are shown. ``budget`` [s] plans ``steps`` by what a step takes here.
    ``revive`` brings dead and saturated channels back. Every ``inspect_every`` rounds the gradient of each objective is
    measured and a sheet of synthetic images is drawn.
    """

    steps: Count = 400
    budget: Seconds | None = None
    batch: Annotated[int, Field(ge=2)] = 64
    steps_per_round: Count = 10
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    temperature: Annotated[float, Field(gt=0)] = 4.0
    kl: Weight = 1.0
    per_timestep: Weight = 0.2
    rate_matching: Weight = 1.0
    relations: Weight = 0.0
    mixing: tuple[Literal["mixup", "cutmix", "affine"], ...] = ()
    revive: bool = True
    checkpoint_every: Count = 100
    inspect_every: Count = 50
    tensorboard: bool = False


class OnnxConfig(Section):
    """How a network is written as ONNX.

    ``mode`` is ``sequence`` (one call, all timesteps inside) or ``step`` (one call a timestep, state in and out);
    ``input`` is ``image`` (float pixels, quantised inside), ``payloads`` (integers, a frame for each timestep), or
    ``auto``: payloads where the input is spikes, else image.
    """

    mode: Literal["sequence", "step"] = "sequence"
    input: Literal["auto", "image", "payloads"] = "auto"


class BuildConfig(Section):
    """Everything that a build depends on.

    ``input_bits`` is the most that calibration may choose; ``calibration_images`` synthetic images are what it looks
    at, ``held_out_images`` fresh ones are for the fidelity; ``verify_samples`` distinct images are run by each target;
    ``measure_cpu`` times the teacher on this machine's processor, about three seconds; ``sweep`` lists the timesteps
    that the report compares, beside those built. ``method`` is the name of a preset
    (:mod:`stars_deploy.config.methods`) or a YAML file of one; ``device`` is torch's name of where to distil.
    """

    teacher: TeacherConfig = TeacherConfig()
    data: DataConfig = DataConfig()
    student: StudentConfig = StudentConfig()
    method: str = "stars"
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
    device: str = "cpu"
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
