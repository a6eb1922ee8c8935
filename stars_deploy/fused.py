"""The neuron over all timesteps as one differentiable function: what norse's cells compute, in a third of the time.

norse builds a graph of some ten operations for each timestep; here a timestep is three operations forward and four
backward, and only the potentials are kept. Plain torch, so that it runs wherever torch does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from stars_deploy.errors import ConfigError

#: Membrane potential that a neuron must exceed to fire; any other is a scale of the weights before it.
THRESHOLD = 1.0

#: Neurons a thread runs at a time: with what is computed on the way, some megabytes, which stay in a cache.
CACHED = 2**18

Derivative = Callable[[Tensor, float], Tensor]


def _triangle(distance: Tensor, width: float) -> Tensor:
    rising = torch.rsub(distance.abs(), 1).clamp_(min=0)
    return rising if width == 1 else rising.mul_(width)


def _super(distance: Tensor, width: float) -> Tensor:
    return distance.abs().add_(1).pow_(-2)  # norse 1.1.0 ignores the width


def _tanh(distance: Tensor, width: float) -> Tensor:
    return (distance * width).tanh_().square_().neg_().add_(1)


def _circ(distance: Tensor, width: float) -> Tensor:
    # 2 width (1 / (2 r) - x^2 / (2 r^3)) with r^2 = x^2 + width^2, which is width^3 / r^3
    return distance.square().add_(width**2).pow_(-1.5).mul_(width**3)


def _erfc(distance: Tensor, width: float) -> Tensor:
    return (distance * width).square_().neg_().exp_().mul_(2 / math.sqrt(math.pi))


#: Derivatives that stand for that of the step, by norse's name of the method; of the distance from the threshold.
SURROGATES: Mapping[str, Derivative] = {
    "triangle": _triangle,
    "super": _super,
    "tanh": _tanh,
    "circ": _circ,
    "heavi_erfc": _erfc,
}


def find_surrogate(name: str) -> Derivative:
    """Return the surrogate derivative of that name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if name not in SURROGATES:
        raise ConfigError("student.surrogate", name, ", ".join(SURROGATES))
    return SURROGATES[name]


def fire(current: Tensor, decay: float, surrogate: str, width: float) -> tuple[Tensor, Tensor]:
    """Run leaky integrate-and-fire neurons from rest.

    Each timestep: ``v = decay * v + i``; ``s = v > 1``, strictly; ``v = 0`` where ``s``. The gradient goes through the
    reset as well, as in norse.

    Parameters
    ----------
    current : Tensor, (T, B, ...)
    decay : float
        Share of the potential that is left after a timestep.
    surrogate : str
        One of :data:`SURROGATES`.
    width : float
        Its parameter.

    Returns
    -------
    spikes : Tensor, (T, B, ...)
        0 or 1.
    potentials : Tensor, (T, B, ...)
        Before the reset; differentiable as well.
    """
    spikes, potentials = _Fire.apply(current, decay, find_surrogate(surrogate), width)  # type: ignore[no-untyped-call]
    return spikes, potentials


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: Tensor, decay: float, derivative: Derivative, width: float) -> tuple[Tensor, Tensor]:
        potentials, spikes = torch.empty_like(current), torch.empty_like(current)
        for part in _parts(current):
            _charge(current[:, part], decay, potentials[:, part], spikes[:, part])
        ctx.save_for_backward(potentials)
        ctx.settings = decay, derivative, width
        ctx.set_materialize_grads(False)
        return spikes, potentials

    @staticmethod
    def backward(ctx: Any, spikes: Tensor | None, potentials: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        (values,) = ctx.saved_tensors
        if spikes is None and potentials is None:
            return None, None, None, None
        gradient = torch.empty_like(values)
        for part in _parts(values):
            wanted = None if spikes is None else spikes[:, part]
            more = None if potentials is None else potentials[:, part]
            _credit(values[:, part], wanted, more, ctx.settings, gradient[:, part])
        return gradient, None, None, None


def _parts(values: Tensor) -> list[slice]:
    """Return slices of the batch, (T, B, ...), that a core's cache holds while all timesteps are run."""
    batch = values.shape[1]
    if values.device.type != "cpu":
        return [slice(0, batch)]
    size = max(1, CACHED * torch.get_num_threads() // max(1, values[0, :1].numel()))
    return [slice(begin, begin + size) for begin in range(0, batch, size)]


def _charge(current: Tensor, decay: float, potentials: Tensor, spikes: Tensor) -> None:
    """Write potentials before the reset, and spikes."""
    rest: Tensor | None = None
    last = len(current) - 1
    for step, values in enumerate(current):
        if rest is None:
            potentials[step].copy_(values)
        else:
            torch.add(values, rest, alpha=decay, out=potentials[step])
        torch.gt(potentials[step], THRESHOLD, out=spikes[step])
        if step < last:
            rest = torch.addcmul(potentials[step], potentials[step], spikes[step], value=-1)


def _credit(
    values: Tensor,
    spikes: Tensor | None,
    potentials: Tensor | None,
    settings: tuple[float, Derivative, float],
    out: Tensor,
) -> None:
    """Write the gradient of the currents, from those of the spikes and of the potentials, `values`."""
    decay, derivative, width = settings
    later: Tensor | None = None  # of the loss, with respect to the potential after the reset
    for step in reversed(range(len(values))):
        # With dv'/dv = (1 - s) - v s'(v), the spike and the reset share the surrogate's derivative.
        wanted = torch.zeros_like(values[step]) if spikes is None else spikes[step]
        slope = derivative(values[step] - THRESHOLD, width)
        if later is None:
            torch.mul(wanted, slope, out=out[step])
        else:
            torch.addcmul(wanted, later, values[step], value=-1, out=out[step])
            out[step].mul_(slope).addcmul_(later, values[step] <= THRESHOLD)
        if potentials is not None:
            out[step].add_(potentials[step])
        later = out[step] * decay if step else None
