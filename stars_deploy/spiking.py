"""The spiking network: norse neurons between the convolutions of a chain of layers.

Direct encoding (the same image at every timestep), conv - batch norm - LIF, hard reset to zero, and a linear readout
averaged over time. Convolutions and batch norm run once over the folded time and batch axes; only the neuron is
scanned over time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from stars_deploy.errors import ConfigError
from stars_deploy.fused import THRESHOLD, find_surrogate, fire
from stars_deploy.norms import BATCH_NORMS, BatchNorm
from stars_deploy.teacher import InputFormat

with warnings.catch_warnings():
    # norse 1.1 scripts functions that nothing here calls, and torch 2.14 has something to say about that to our users.
    warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)
    from norse.torch import LIFBoxCell, LIFBoxParameters

__all__ = ["DT", "THRESHOLD", "NeuronModel", "SpikingLayer", "Student", "StudentOutput"]

#: Length of a timestep [s]: norse's default. Only its ratio to the membrane time constant matters.
DT = 1e-3


@dataclass(frozen=True, kw_only=True)
class NeuronModel:
    """How the student's neurons run.

    Parameters
    ----------
    decay : float
        Share of the membrane potential that is left after a timestep, in [0, 1).
    surrogate_width : float
        Parameter (alpha) of the surrogate gradient: the slope of a triangle.
    surrogate : str
        norse's name of the surrogate gradient: triangle, super, tanh, circ or heavi_erfc.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    decay: float = 0.9
    surrogate_width: float = 1.0
    surrogate: str = "triangle"

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError("student.decay", self.decay, "at least 0, less than 1")
        if not 0 < self.surrogate_width < math.inf:
            raise ConfigError("student.surrogate_width", self.surrogate_width, "a finite number greater than 0")
        find_surrogate(self.surrogate)


class SpikingLayer(nn.Module):
    """norse's ``LIFBoxCell`` over the first axis, all timesteps in one function.

    Each timestep: ``v = decay * v + i`` (norse adds ``(1 - decay) * (i' - v)``; the gain is folded into ``i'``);
    ``s = v > 1``, strictly; ``v = 0`` where ``s``.

    Attributes
    ----------
    cell : norse.torch.LIFBoxCell
        The neuron as norse has it; :meth:`stepped` runs it.
    """

    def __init__(self, model: NeuronModel) -> None:
        super().__init__()
        self.model = model
        self.gain = 1 - model.decay
        self.cell = LIFBoxCell(
            LIFBoxParameters(
                tau_mem_inv=torch.as_tensor(self.gain / DT),
                v_th=torch.as_tensor(THRESHOLD),
                method=model.surrogate,
                alpha=torch.as_tensor(model.surrogate_width),
            ),
            dt=DT,
        )

    def forward(self, current: Tensor) -> Tensor:
        """Return the spikes, (T, B, ...), that input currents of that shape cause, from rest."""
        return self.run(current)[0]

    def run(self, current: Tensor) -> tuple[Tensor, Tensor]:
        """Return the spikes and the membrane potentials before the reset, both (T, B, ...)."""
        return fire(current, self.model.decay, self.model.surrogate, self.model.surrogate_width)

    def stepped(self, current: Tensor) -> Tensor:
        """Return the spikes as norse's own cell makes them, a timestep at a time: the reference of :meth:`forward`."""
        state = None
        spikes = []
        for step in current / self.gain:
            spike, state = self.cell(step, state)
            spikes.append(spike)
        return torch.stack(spikes)


@dataclass(frozen=True, kw_only=True)
class StudentOutput:
    """What a student returns: ``logits`` (T, B, K) for each timestep, and each layer's ``spikes`` (T, B, ...).

    ``potentials`` (T, B, ...) before the reset are there if they were asked for.
    """

    logits: Tensor
    spikes: tuple[Tensor, ...]
    potentials: tuple[Tensor, ...] = ()

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

    Raises
    ------
    ConfigError
        If no layer spikes, or `timesteps` is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers: list[nn.Module], form: InputFormat, timesteps: int) -> None:
        super().__init__()
        if timesteps < 1:
            raise ConfigError("--timesteps", timesteps, "1 or more")
        if not any(isinstance(layer, SpikingLayer) for layer in layers):
            raise ConfigError("--student", "no layer that spikes", "at least one convolution with neurons")
        self.layers = nn.ModuleList(layers)
        self.form = form
        self.timesteps = timesteps
        self.register_buffer("mean", torch.tensor(form.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(form.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor, timesteps: int | None = None, potentials: bool = False) -> StudentOutput:
        """Run images (B, C, H, W) in [0, 1] for `timesteps` (the student's own, unless given)."""
        steps = self.timesteps if timesteps is None else timesteps
        values = (images - self.mean) / self.std
        spikes: list[Tensor] = []
        kept: list[Tensor] = []
        for stage in self._stages():
            if not isinstance(stage, SpikingLayer):
                values = stage(values)
                continue
            if spikes:
                current = torch.unflatten(values, 0, (steps, -1))
            else:
                # Until the first neuron nothing depends on time, so those layers ran on one copy only.
                current = _channels_last(values).expand(steps, *values.shape)
            if potentials:
                fired, charged = stage.run(current)
                kept.append(charged)
            else:
                fired = stage(current)
            spikes.append(fired)
            values = fired.flatten(0, 1)
        logits = torch.unflatten(values, 0, (steps, -1))
        return StudentOutput(logits=logits, spikes=tuple(spikes), potentials=tuple(kept))

    def norms(self) -> list[BatchNorm]:
        """Return the batch normalisations, in order of execution."""
        return [layer for layer in self.layers if isinstance(layer, BATCH_NORMS)]

    def _stages(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield the layers in order, two as one function where that is the same in less time."""
        layers = list(self.layers)
        while layers:
            layer = layers.pop(0)
            after = layers[0] if layers else None
            if isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d) and not after.training:
                yield partial(_convolved_and_normalized, layer, after)
                layers.pop(0)
            elif isinstance(layer, nn.Flatten) and isinstance(after, nn.Linear):
                yield partial(_flattened_and_weighted, layer, after)
                layers.pop(0)
            else:
                yield layer


def _channels_last(values: Tensor) -> Tensor:
    """Return maps (B, C, H, W) with their channels next to each other on a CPU, where convolutions then copy nothing.

    Everything that follows keeps the layout: a training step takes a tenth less.
    """
    if values.dim() != 4 or values.device.type != "cpu":
        return values
    return values.contiguous(memory_format=torch.channels_last)


def _flattened_and_weighted(flatten: nn.Flatten, linear: nn.Linear, values: Tensor) -> Tensor:
    """Apply a linear layer to flattened maps; its few weights are brought into the order of the many values."""
    maps = values.dim() == 4 and (flatten.start_dim, flatten.end_dim) == (1, -1)
    if not maps or values.is_contiguous() or not values.is_contiguous(memory_format=torch.channels_last):
        result: Tensor = linear(flatten(values))
        return result
    weight = linear.weight.view(-1, *values.shape[1:]).permute(0, 2, 3, 1).flatten(1)
    return functional.linear(values.permute(0, 2, 3, 1).flatten(1), weight, linear.bias)


def _convolved_and_normalized(conv: nn.Conv2d, norm: nn.BatchNorm2d, values: Tensor) -> Tensor:
    """Apply a convolution and the frozen batch norm after it as one convolution with scaled weights.

    The same function of the same parameters, gradients included, at three quarters of the time of a training step.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ConfigError("student", "a BatchNorm without running statistics", "BatchNorm with running statistics")
    factor = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight
    bias = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    bias = bias * factor
    if norm.bias is not None:
        bias = bias + norm.bias
    weight = conv.weight * factor.view(-1, 1, 1, 1)
    return functional.conv2d(values, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
