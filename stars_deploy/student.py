"""The spiking student: norse neurons between the convolutions of a plain topology.

Direct encoding (the same image at every timestep), conv - batch norm - LIF, hard reset to zero, and a linear readout
averaged over time. Convolutions and batch norm run once over the folded time and batch axes; only the neuron is
scanned over time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from norse.torch import LIFBoxCell, LIFBoxParameters
from torch import Tensor, nn
from torch.nn import functional

from stars_deploy.architectures import conv_norm_layers, feature_count, parse_stages
from stars_deploy.artifacts import written_whole
from stars_deploy.errors import ConfigError, TeacherError
from stars_deploy.teacher import InputFormat, Teacher
from stars_deploy.weights import check_finite, read_metadata, read_weights

#: Length of a timestep [s]: norse's default. Only its ratio to the membrane time constant matters.
DT = 1e-3
THRESHOLD = 1.0
#: Layers that do nothing at inference.
IGNORED = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity)
ALLOWED = "inherit (the teacher's own topology) or vgg:C1-C2-..."


@dataclass(frozen=True, kw_only=True)
class NeuronModel:
    """How the student's neurons run.

    Parameters
    ----------
    decay : float
        Share of the membrane potential that is left after a timestep, in [0, 1).
    surrogate_width : float
        Slope of norse's triangular surrogate gradient.
    """

    decay: float = 0.9
    surrogate_width: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or self.surrogate_width <= 0:
            raise ConfigError(
                "student.decay", f"{self.decay}, surrogate {self.surrogate_width}", "0 <= decay < 1, surrogate > 0"
            )


class SpikingLayer(nn.Module):
    """A norse ``LIFBoxCell`` stepped over the first axis.

    Each timestep: ``v = decay * v + i`` (norse adds ``(1 - decay) * (i' - v)``; the gain is folded into ``i'``);
    ``s = v > 1``, strictly; ``v = 0`` where ``s``.
    """

    def __init__(self, model: NeuronModel) -> None:
        super().__init__()
        self.gain = 1 - model.decay
        self.cell = LIFBoxCell(
            LIFBoxParameters(
                tau_mem_inv=torch.as_tensor(self.gain / DT),
                v_th=torch.as_tensor(THRESHOLD),
                method="triangle",
                alpha=torch.as_tensor(model.surrogate_width),
            ),
            dt=DT,
        )

    def forward(self, current: Tensor) -> Tensor:
        """Return the spikes, (T, B, ...), that input currents of that shape cause, from rest."""
        state = None
        spikes = []
        for step in current / self.gain:
            spike, state = self.cell(step, state)
            spikes.append(spike)
        return torch.stack(spikes)


@dataclass(frozen=True, kw_only=True)
class StudentOutput:
    """What a student returns: ``logits`` (T, B, K) for each timestep, and each layer's ``spikes`` (T, B, ...)."""

    logits: Tensor
    spikes: tuple[Tensor, ...]

    def mean_logits(self) -> Tensor:
        """Return the logits averaged over time, (B, K)."""
        return self.logits.mean(0)

    def rates(self) -> list[Tensor]:
        """Return each layer's firing rates [spikes/timestep], (B, ...)."""
        return [spikes.mean(0) for spikes in self.spikes]


class Student(nn.Module):
    """A spiking network over a chain of layers.

    Parameters
    ----------
    layers : list of torch.nn.Module
        Conv2d, Linear, BatchNorm, Flatten and :class:`SpikingLayer`; the last one is the linear readout.
    form : InputFormat
    timesteps : int
    """

    def __init__(self, layers: list[nn.Module], form: InputFormat, timesteps: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.form = form
        self.timesteps = timesteps
        self.register_buffer("mean", torch.tensor(form.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(form.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor, timesteps: int | None = None) -> StudentOutput:
        """Run images (B, C, H, W) in [0, 1] for `timesteps` (the student's own, unless given)."""
        steps = timesteps or self.timesteps
        values = (images - self.mean) / self.std
        spikes: list[Tensor] = []
        layers = iter(self.layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d) and self._is_frozen(layer):
                values = _convolved_and_normalized(layer, next(layers), values)
            elif isinstance(layer, SpikingLayer):
                # Until the first neuron nothing depends on time, so those layers ran on one copy only.
                current = values.unflatten(0, (steps, -1)) if spikes else values.expand(steps, *values.shape)
                spikes.append(layer(current))
                values = spikes[-1].flatten(0, 1)
            else:
                values = layer(values)
        return StudentOutput(logits=values.unflatten(0, (steps, -1)), spikes=tuple(spikes))

    def _is_frozen(self, conv: nn.Conv2d) -> bool:
        """Whether a batch norm in eval mode follows `conv`."""
        following = list(self.layers)[list(self.layers).index(conv) + 1]
        return isinstance(following, nn.BatchNorm2d) and not following.training

    def norms(self) -> Iterator[nn.Module]:
        """Yield the batch normalisations."""
        return (layer for layer in self.layers if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)))


def _convolved_and_normalized(conv: nn.Conv2d, norm: nn.Module, values: Tensor) -> Tensor:
    """Apply a convolution and the frozen batch norm after it as one convolution with scaled weights.

    The same function of the same parameters, gradients included, at three quarters of the time of a training step.
    """
    factor = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight
    bias = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    bias = bias * factor
    if norm.bias is not None:
        bias = bias + norm.bias
    weight = conv.weight * factor.view(-1, 1, 1, 1)
    return functional.conv2d(values, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


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
    """Build a student for a teacher.

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
        layers, scales = _inherited(teacher, neuron, balance)
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


def chain_of(module: nn.Module, where: str) -> list[tuple[str, nn.Module]]:
    """Return the named layers of a module that is a chain, in order of execution.

    Raises
    ------
    TeacherError
        If anything in it is not a plain sequence of layers that a spiking chain can inherit.
    """
    if not isinstance(module, nn.Sequential):
        raise TeacherError(
            where,
            f"a {type(module).__name__}, whose order of execution is not known",
            "torch.nn.Sequential (also nested)",
            "write the teacher as a Sequential, or distil into a student of its own topology: --student vgg:16-32-64",
        )
    layers: list[tuple[str, nn.Module]] = []
    for name, layer in module.named_children():
        path = f"{where}.{name}"
        if isinstance(layer, nn.Sequential):
            layers += chain_of(layer, path)
        elif isinstance(layer, (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.Flatten)):
            layers.append((path, layer))
        elif not isinstance(layer, IGNORED):
            raise TeacherError(
                path,
                type(layer).__name__,
                "Conv2d, Linear, BatchNorm, ReLU, Flatten, Dropout",
                "use stride 2 for pooling and ReLU for activations, or --student vgg:16-32-64",
            )
    return layers


def _inherited(teacher: Teacher, neuron: NeuronModel, balance: float) -> tuple[list[nn.Module], list[float]]:
    """Copy the teacher's layers with LIF for ReLU, weights rescaled so that a rate of 1 means a large activation."""
    chain = chain_of(teacher.module, "teacher")
    if not chain or not isinstance(chain[-1][1], nn.Linear):
        raise TeacherError("teacher", "does not end in a Linear layer", "... Flatten, Linear", "use --student vgg:...")
    layers: list[nn.Module] = []
    scales: list[float] = []
    incoming = 1.0
    for name, layer in chain:
        if isinstance(layer, nn.ReLU):
            norm = layers[-1] if layers else None
            if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) or norm.weight is None:
                raise TeacherError(name, "a ReLU without BatchNorm before it", "conv - BatchNorm - ReLU",
                                   "put a BatchNorm (affine) before it, or use --student vgg:...")  # fmt: skip
            incoming = _balance(norm, balance)
            scales.append(incoming)
            layers.append(SpikingLayer(neuron))
        else:
            layers.append(_copied(layer, incoming))
    return layers, scales


def _copied(layer: nn.Module, incoming: float) -> nn.Module:
    if isinstance(layer, nn.Flatten):
        return nn.Flatten()
    twin: nn.Module = _blank(layer_description(layer))
    twin.load_state_dict({name: value.clone() for name, value in layer.state_dict().items()})
    if isinstance(twin, (nn.Conv2d, nn.Linear)):
        with torch.no_grad():
            twin.weight.mul_(incoming)
    return twin


def _balance(norm: nn.Module, balance: float) -> float:
    scale = float((norm.bias + balance * norm.weight.abs()).detach().clamp_min(0).mean())
    scale = max(scale, 1e-3)
    with torch.no_grad():
        norm.weight.div_(scale)
        norm.bias.div_(scale)
    return scale


def layer_description(layer: nn.Module) -> dict[str, Any]:
    """Describe a layer of a student so that :func:`load_student` can make it again without any pickle."""
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise TeacherError("Conv2d", f"padding {layer.padding!r}, {layer.padding_mode}", "zero padding as numbers")
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
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        kind = "norm2d" if isinstance(layer, nn.BatchNorm2d) else "norm1d"
        return {"kind": kind, "num_features": layer.num_features, "eps": layer.eps, "affine": layer.affine}
    return {"kind": "flatten" if isinstance(layer, nn.Flatten) else "lif"}


def _blank(description: dict[str, Any], neuron: NeuronModel | None = None) -> nn.Module:
    kinds: dict[str, Any] = {
        "conv": nn.Conv2d,
        "linear": nn.Linear,
        "norm2d": nn.BatchNorm2d,
        "norm1d": nn.BatchNorm1d,
        "flatten": nn.Flatten,
        "lif": lambda: SpikingLayer(neuron or NeuronModel()),
    }
    arguments = {
        name: tuple(value) if isinstance(value, list) else value for name, value in description.items() if name != "kind"
    }
    built: nn.Module = kinds[description["kind"]](**arguments)
    return built


def describe_student(student: Student, spec: str, labels: tuple[str, ...], neuron: NeuronModel) -> StudentPlan:
    """Return what is needed, beside its weights, to build `student` again."""
    layers = tuple(layer_description(layer) for layer in student.layers)
    return StudentPlan(
        spec=spec, input=student.form, labels=labels, timesteps=student.timesteps, neuron=neuron, layers=layers
    )


def save_student(student: Student, plan: StudentPlan, path: str | Path) -> None:
    """Write a student as safetensors, its description in the metadata; whole or not at all."""
    from safetensors.torch import save_file

    state = {name: value.detach().contiguous() for name, value in student.state_dict().items()}
    with written_whole(path) as draft:
        save_file(state, str(draft), metadata={"stars_deploy": json.dumps({"student": asdict(plan)})})


def load_student(path: str | Path) -> tuple[Student, StudentPlan]:
    """Read a student that :func:`save_student` wrote, in eval mode.

    Raises
    ------
    TeacherError
        If the file is damaged, has no student's description, or its weights do not fit it.
    """
    stated = read_metadata(path).get("student")
    if not isinstance(stated, dict):
        raise TeacherError(str(path), "holds no student", "the student.safetensors of a run directory")
    state = read_weights(path)
    check_finite(state, str(path))
    try:
        plan = StudentPlan(
            spec=stated["spec"],
            input=InputFormat(**{name: tuple(value) for name, value in stated["input"].items()}),
            labels=tuple(stated["labels"]),
            timesteps=int(stated["timesteps"]),
            neuron=NeuronModel(**stated["neuron"]),
            layers=tuple(stated["layers"]),
        )
        layers = [_blank(description, plan.neuron) for description in plan.layers]
        student = Student(layers, plan.input, plan.timesteps)
        student.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        raise TeacherError(str(path), f"does not fit its own description ({first_line})", remedy="build it again") from error
    return student.eval(), plan
