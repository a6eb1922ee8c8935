"""The spiking student: built for a teacher, written to a file, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stars_deploy.architectures import conv_norm_layers, feature_count, parse_stages
from stars_deploy.errors import ConfigError, FormatError, TeacherError
from stars_deploy.inheritance import inherited_layers
from stars_deploy.norms import BATCH_NORMS
from stars_deploy.spiking import DT, THRESHOLD, NeuronModel, SpikingLayer, Student, StudentOutput
from stars_deploy.teacher import InputFormat, Teacher
from stars_deploy.weights import check_finite, read_tensors, write_tensors

__all__ = [
    "DT",
    "THRESHOLD",
    "NeuronModel",
    "SpikingLayer",
    "Student",
    "StudentOutput",
    "StudentPlan",
    "build_student",
    "describe_student",
    "load_student",
    "save_student",
]

ALLOWED = "inherit (the teacher's own topology) or vgg:C1-C2-..."
#: Longest inference that a file may ask for [timesteps]; also the limit of the configuration.
LONGEST = 1024
#: Largest feature map that a file may ask for [neurons]: far above anything that fits a chip.
LARGEST_MAP = 1 << 26


@dataclass(frozen=True, kw_only=True)
class StudentPlan:
    """How a student was made: enough to build it again before its weights are loaded."""

    spec: str
    input: InputFormat
    labels: tuple[str, ...]
    timesteps: int
    neuron: NeuronModel
    layers: tuple[dict[str, Any], ...]


def build_student(
    teacher: Teacher, spec: str, timesteps: int, neuron: NeuronModel, balance: float = 2.0
) -> tuple[Student, list[float]]:
    """Build a student for a teacher; what is random comes from torch's global generator.

    Parameters
    ----------
    teacher : Teacher
    spec : str
        ``inherit`` or ``vgg:16-32-64``.
    timesteps : int
    neuron : NeuronModel
    balance : float
        For ``inherit``: the layer scale is the mean over channels of ``beta + balance * |gamma|``.

    Returns
    -------
    Student
    list of float
        For ``inherit``, the teacher activation that a firing rate of 1 stands for, for each spiking layer
        (``activation ~ scale * rate``); empty otherwise.

    Raises
    ------
    ConfigError
        If `spec` is unknown or `timesteps` is not positive.
    TeacherError
        If the teacher's topology cannot be inherited.
    """
    if timesteps < 1:
        raise ConfigError("--timesteps", timesteps, "1 or more")
    if spec == "inherit":
        layers, scales = inherited_layers(teacher, neuron, balance)
    else:
        layers, scales = _plain(teacher, spec, neuron), []
    return Student(layers, teacher.input, timesteps), scales


def _plain(teacher: Teacher, spec: str, neuron: NeuronModel) -> list[nn.Module]:
    if not spec.startswith("vgg:"):
        raise ConfigError("--student", spec, ALLOWED)
    stages = parse_stages(spec, "--student")
    layers: list[nn.Module] = []
    for conv, norm in conv_norm_layers(stages, teacher.input.shape[0]):
        # A LIF neuron with threshold 1 starts to fire when its normalised current is of that order.
        nn.init.constant_(norm.weight, THRESHOLD)
        layers += [conv, norm, SpikingLayer(neuron)]
    features = feature_count(stages, teacher.input.shape)
    return [*layers, nn.Flatten(), nn.Linear(features, teacher.classes)]


def describe_student(student: Student, spec: str, labels: tuple[str, ...], neuron: NeuronModel) -> StudentPlan:
    """Return what is needed, beside its weights, to build `student` again."""
    layers = tuple(layer_description(layer) for layer in student.layers)
    return StudentPlan(
        spec=spec, input=student.form, labels=labels, timesteps=student.timesteps, neuron=neuron, layers=layers
    )


def layer_description(layer: nn.Module) -> dict[str, Any]:
    """Describe a layer of a student so that :func:`load_student` can make it again without any pickle."""
    if isinstance(layer, nn.Conv2d):
        return {
            "kind": "conv",
            "in_channels": layer.in_channels,
            "out_channels": layer.out_channels,
            "kernel_size": list(layer.kernel_size),
            "stride": list(layer.stride),
            "padding": list(layer.padding),
            "dilation": list(layer.dilation),
            "groups": layer.groups,
            "bias": layer.bias is not None,
        }
    if isinstance(layer, nn.Linear):
        return {
            "kind": "linear",
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": layer.bias is not None,
        }
    if isinstance(layer, BATCH_NORMS):
        kind = "norm2d" if isinstance(layer, nn.BatchNorm2d) else "norm1d"
        return {"kind": kind, "num_features": layer.num_features, "eps": layer.eps, "affine": layer.affine}
    return {"kind": "flatten" if isinstance(layer, nn.Flatten) else "lif"}


def save_student(student: Student, plan: StudentPlan, path: str | Path) -> None:
    """Write a student as safetensors, its description in the metadata; whole or not at all."""
    write_tensors(student.state_dict(), {"student": asdict(plan)}, path)


def load_student(path: str | Path) -> tuple[Student, StudentPlan]:
    """Read a student that :func:`save_student` wrote, in eval mode.

    Raises
    ------
    ArtifactError
        If the file is missing.
    FormatError
        If it is damaged, has no student's description, or its weights do not fit it.
    """
    state, description = read_tensors(path)
    stated = description.get("student")
    if not isinstance(stated, dict):
        raise FormatError(str(path), "holds no student", "the student.safetensors of a run directory")
    try:
        check_finite(state, str(path))
        plan = StudentPlan(
            spec=str(stated["spec"]),
            input=InputFormat(**{name: tuple(value) for name, value in stated["input"].items()}),
            labels=tuple(str(label) for label in stated["labels"]),
            timesteps=stated["timesteps"],
            neuron=NeuronModel(**stated["neuron"]),
            layers=tuple(stated["layers"]),
        )
        if not isinstance(plan.timesteps, int) or not 1 <= plan.timesteps <= LONGEST:
            raise ConfigError("timesteps", plan.timesteps, f"1 to {LONGEST}")
        _check_outline(plan, state)
        student = Student([_blank(layer, plan.neuron) for layer in plan.layers], plan.input, plan.timesteps)
        student.load_state_dict(state)
    except (ConfigError, TeacherError) as error:
        raise FormatError(str(path), f"holds an impossible student ({error})", remedy="build it again") from error
    except Exception as error:  # whatever a hostile description makes of a layer's constructor
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise FormatError(
            str(path), f"does not fit its own description ({first_line})", remedy="build it again"
        ) from error
    return student.eval(), plan


def _check_outline(plan: StudentPlan, state: Mapping[str, Tensor]) -> None:
    """Refuse a description that is not of these weights, before any memory is taken for it."""
    expected: dict[str, Tensor] = {}
    with torch.device("meta"):
        values = torch.zeros(1, *plan.input.shape)
        for index, description in enumerate(plan.layers):
            if description["kind"] == "lif":  # passes shapes on, and has no weights
                continue
            layer = _blank(description, plan.neuron).eval()
            if layer_description(layer) != description:
                raise ConfigError(f"layers.{index}", description, f"{layer_description(layer)}")
            expected.update({f"layers.{index}.{name}": value for name, value in layer.state_dict().items()})
            values = layer(values)
            if values.numel() > LARGEST_MAP:
                raise ConfigError(f"layers.{index}", f"{values.numel()} neurons", f"at most {LARGEST_MAP}")
    wrong = sorted(expected.keys() ^ state.keys()) or [
        name
        for name, value in state.items()
        if (value.shape, value.dtype) != (expected[name].shape, expected[name].dtype)
    ]
    if wrong:
        raise ConfigError(wrong[0], "not as described", "the weights of the described layers")
    if tuple(values.shape) != (1, len(plan.labels)):
        raise ConfigError("labels", f"{len(plan.labels)} for outputs {tuple(values.shape[1:])}", "one for each output")


def _blank(description: Mapping[str, Any], neuron: NeuronModel) -> nn.Module:
    kinds: dict[str, Any] = {
        "conv": nn.Conv2d,
        "linear": nn.Linear,
        "norm2d": nn.BatchNorm2d,
        "norm1d": nn.BatchNorm1d,
        "flatten": nn.Flatten,
        "lif": lambda: SpikingLayer(neuron),
    }
    arguments = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in description.items()
        if name != "kind"
    }
    built: nn.Module = kinds[description["kind"]](**arguments)
    return built
