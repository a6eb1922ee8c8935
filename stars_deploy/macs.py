"""The layers of a teacher: their multiply-accumulates, and how many of them meet a zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from stars_deploy.baseline.layers import AnnLayer
from stars_deploy.teacher import Teacher

#: Images that run at a time: their activations are what takes the memory.
_TOGETHER = 32


def describe_teacher(teacher: Teacher, images: Tensor | None = None) -> tuple[AnnLayer, ...]:
    """Return the convolutions and linear layers of a teacher, in order of execution.

    ``macs`` is the usual count of one inference: every kernel position of every output, also where it meets padding;
    batch norms, biases and activations are left out. A layer that runs several times in one inference counts so often.

    ``zero_share`` is the mean over `images` of the share of ``macs`` whose input is exactly 0, so that
    ``(1 - zero_share) * macs`` is the number of multiply-accumulates that meet something. It is counted and not
    estimated from a mean sparsity: an input counts as often as outputs read it, which is less at the borders. Padding
    of zeros is 0; so is a black pixel, for the normalisation can be folded into the layer that reads the image, as it
    is in the student.

    Parameters
    ----------
    teacher : Teacher
    images : Tensor, (N, C, H, W) in [0, 1], optional
        Without them no zeros are counted.

    Returns
    -------
    tuple of AnnLayer
        Whatever calls ``conv2d`` or ``linear``, as a module or as a function, by the name of its weights. Products of
        other kinds (attention, 1-d and transposed convolutions) are not seen.
    """
    if images is None or not len(images):
        layers = _run(teacher, torch.zeros(1, *teacher.input.shape))
        return tuple(layer.described(name, 1, zeros=False) for name, layer in layers.items())
    first, *others = torch.split(images, _TOGETHER)
    layers = _run(teacher, first)
    for part in others:
        for name, layer in _run(teacher, part).items():
            layers[name].add(layer)
    return tuple(layer.described(name, len(images), zeros=True) for name, layer in layers.items())


def count_macs(teacher: Teacher) -> int:
    """Return the multiply-accumulates of one inference: convolutions and linear layers, padding included."""
    return sum(layer.macs for layer in describe_teacher(teacher))


@dataclass(kw_only=True)
class _Call:
    """One call of a layer.

    Parameters
    ----------
    fan_out : callable
        Makes, of the shape of one image's inputs, how many products each enters.
    filled : Tensor
        How many images had something else than 0 at each input.
    """

    fan_out: Callable[[torch.Size], Tensor]
    filled: Tensor

    def effective(self) -> int:
        """Return the multiply-accumulates that met something."""
        return int((self.filled * self.fan_out(self.filled.shape)).sum())


@dataclass(kw_only=True)
class _Layer:
    """What the layer of one weight did, over all images and calls."""

    weight: Tensor
    reads_image: bool
    inputs: int = 0
    outputs: int = 0
    calls: list[_Call] = field(default_factory=list)

    def add(self, other: _Layer) -> None:
        """Add what the layer did with further images."""
        self.inputs += other.inputs
        self.outputs += other.outputs
        for ours, theirs in zip(self.calls, other.calls, strict=True):
            ours.filled = ours.filled + theirs.filled

    def described(self, name: str, samples: int, *, zeros: bool) -> AnnLayer:
        """Return the layer's part in one inference, as a mean over `samples`."""
        macs = self.outputs * self.weight[0].numel()
        met = sum(call.effective() for call in self.calls) if zeros else 0
        return AnnLayer(
            name=name,
            macs=macs // samples,
            weights=self.weight.numel(),
            inputs=self.inputs // samples,
            outputs=self.outputs // samples,
            zero_share=1 - met / macs if zeros else None,
            reads_image=self.reads_image,
        )


class _Watch(TorchFunctionMode):
    """Sees every ``conv2d`` and ``linear`` while it is entered; `normalized` is what the module gets of `images`."""

    def __init__(self, module: nn.Module, images: Tensor, normalized: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: dict[str, _Layer] = {}
        self._names = {id(value): name.rpartition(".weight")[0] or name for name, value in module.named_parameters()}
        self._images = images
        # Flattening, dropout and the like pass on the memory that they are given.
        self._memory = normalized.untyped_storage().data_ptr()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is functional.conv2d:
            self._keep(output, *_convolution(*args, **(kwargs or {})))
        elif func is functional.linear:
            self._keep(output, *_linear(*args, **(kwargs or {})))
        return output

    def _keep(self, output: Tensor, given: Tensor, weight: Tensor, fan_out: Callable[[torch.Size], Tensor]) -> None:
        # A weight that is no parameter itself was made of some, as weight normalisation does.
        name = self._names.get(id(weight), f"layer {len(self.layers)}")
        is_image = given.untyped_storage().data_ptr() == self._memory and given.numel() == self._images.numel()
        layer = self.layers.setdefault(name, _Layer(weight=weight, reads_image=is_image))
        layer.inputs += given.numel()
        layer.outputs += output.numel()
        values = self._images.reshape(given.shape) if is_image else given
        layer.calls.append(_Call(fan_out=fan_out, filled=(values != 0).sum(dim=0)))


def _run(teacher: Teacher, images: Tensor) -> dict[str, _Layer]:
    """Return what each layer did with `images`, by name, in order of execution."""
    normalized = teacher.normalized(images)
    watch = _Watch(teacher.module, images, normalized)
    with torch.no_grad(), watch:
        teacher.module(normalized)
    return watch.layers


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Callable[[torch.Size], Tensor]]:
    """Take the arguments of ``conv2d``; return input, weight and how often each input is read."""
    ones = torch.ones(groups, *weight.shape[1:], dtype=torch.float64)

    def fan_out(shape: torch.Size) -> Tensor:
        # The gradient of a convolution with ones, of one output channel for each group.
        with torch.enable_grad():  # type: ignore[no-untyped-call]
            inputs = torch.zeros(1, *shape, dtype=torch.float64, requires_grad=True)
            total = functional.conv2d(inputs, ones, None, stride, padding, dilation, groups).sum()
            (reads,) = torch.autograd.grad(total, inputs)
        return reads[0].round().long() * (len(weight) // groups)

    return input, weight, fan_out


def _linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Callable[[torch.Size], Tensor]]:
    """Take the arguments of ``linear``; return input, weight and how often each input is read."""
    return input, weight, lambda shape: torch.full(shape, len(weight))
