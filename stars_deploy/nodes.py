"""Nodes of the float graph: each a frozen dataclass that says what it computes and refuses what it cannot.

Their words are NIR's (``tau_mem``, ``r``, ``v_leak``, ``v_threshold``, ``v_reset``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import numpy as np
import numpy.typing as npt

from stars_deploy.errors import GraphError

FloatArray = npt.NDArray[np.float64]
#: One value for a whole population, or an array of its shape.
Parameter = Union[float, FloatArray]
#: Most places of a pool's window, 256 x 256: it is a number in a file, and work for whoever pools.
LARGEST_WINDOW = 1 << 16


def frozen_array(values: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
    """Return `values` as a read-only, C-ordered array of `dtype`: a copy, unless it is such an array with its own data.

    Nodes are copied often, with other names or edges; their weights need not be.
    """
    if isinstance(values, np.ndarray) and values.dtype == dtype and values.base is None:
        flags = values.flags
        if flags.c_contiguous and not flags.writeable:
            return values
    array = np.array(values, dtype=dtype, order="C")
    array.setflags(write=False)
    return array


def convolved_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return the output length of a convolution along one axis [neurons]."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def convolved_shape(
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    where: str,
) -> tuple[int, int, int]:
    """Return the (C, H, W) that a convolution makes of `shape`, or refuse the combination.

    Raises
    ------
    GraphError
        If the channels do not fit the kernel and the groups, or the output is empty.
    """
    if len(shape) != 3 or len(weight_shape) != 4:
        raise GraphError(where, f"input {shape}, kernel {weight_shape}", "(C, H, W) and (out, in/groups, kh, kw)")
    if groups < 1 or shape[0] != weight_shape[1] * groups or weight_shape[0] % groups:
        raise GraphError(
            where,
            f"{shape[0]} input channels, kernel {weight_shape}, groups {groups}",
            "input channels = kernel channels x groups, and output channels a multiple of groups",
        )
    height, width = (
        convolved_size(shape[axis + 1], weight_shape[axis + 2], stride[axis], padding[axis], dilation[axis])
        for axis in (0, 1)
    )
    if height < 1 or width < 1:
        raise GraphError(where, f"kernel {weight_shape[2:]} leaves nothing of {shape[1:]}", "an output of at least 1x1")
    return weight_shape[0], height, width


def _float_field(instance: object, name: str, where: str, ndim: int | None = None) -> None:
    values = frozen_array(getattr(instance, name), np.float64)
    if not np.isfinite(values).all():
        raise GraphError(
            f"{where}.{name}",
            f"{np.size(values) - np.isfinite(values).sum()} of {values.size} values are NaN or infinite",
            "finite numbers",
            "check the weights that this layer was loaded from",
        )
    if ndim is not None and values.ndim != ndim:
        raise GraphError(f"{where}.{name}", f"{values.ndim} axes", f"{ndim} axes")
    object.__setattr__(instance, name, values)


@dataclass(frozen=True, kw_only=True)
class Input:
    """The image, presented unchanged at every timestep (direct encoding).

    ``shape`` is (C, H, W); pixel values lie in [``low``, ``high``] before any normalisation.
    """

    name: str
    shape: tuple[int, ...]
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise GraphError(f"{self.name}.shape", self.shape, "at least one axis, each of at least 1")
        if not (np.isfinite([self.low, self.high]).all() and self.low <= self.high):
            raise GraphError(self.name, f"pixels from {self.low} to {self.high}", "finite numbers, the lower one first")


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """``y = (x - mean) / std`` for each channel: the teacher's input normalisation. ``mean``, ``std``: (C,)."""

    name: str
    mean: FloatArray
    std: FloatArray

    def __post_init__(self) -> None:
        _float_field(self, "mean", self.name, 1)
        _float_field(self, "std", self.name, 1)
        if (self.std <= 0).any() or self.mean.shape != self.std.shape:
            raise GraphError(self.name, f"mean {self.mean}, std {self.std}", "one positive std for each mean")


@dataclass(frozen=True, kw_only=True)
class Conv2d:
    """``y = w * x + b``, a cross-correlation.

    ``weight`` is (out, in/groups, kh, kw); ``bias`` is (out,), or (out, H, W) where it differs at padded borders.
    """

    name: str
    weight: FloatArray
    bias: FloatArray
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        _float_field(self, "weight", self.name, 4)
        _float_field(self, "bias", self.name)
        if min(*self.stride, *self.dilation, self.groups) < 1 or min(self.padding) < 0:
            got = f"stride {self.stride}, padding {self.padding}, dilation {self.dilation}, groups {self.groups}"
            raise GraphError(self.name, got, "stride, dilation and groups of at least 1, padding of at least 0")


@dataclass(frozen=True, kw_only=True)
class Linear:
    """``y = W x + b`` over the input flattened in C order. ``weight`` is (out, in), ``bias`` is (out,)."""

    name: str
    weight: FloatArray
    bias: FloatArray

    def __post_init__(self) -> None:
        _float_field(self, "weight", self.name, 2)
        _float_field(self, "bias", self.name, 1)


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """``y = gamma (x - mean) / sqrt(var + eps) + beta`` for each channel; all arrays are (C,)."""

    name: str
    gamma: FloatArray
    beta: FloatArray
    mean: FloatArray
    var: FloatArray
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("gamma", "beta", "mean", "var"):
            _float_field(self, name, self.name, 1)
        if (self.var < 0).any():
            raise GraphError(f"{self.name}.var", f"minimum {self.var.min()}", "variances of at least 0")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """``y = scale * x`` for each element; ``scale`` is one number, or has the shape of the input."""

    name: str
    scale: FloatArray

    def __post_init__(self) -> None:
        _float_field(self, "scale", self.name)


@dataclass(frozen=True, kw_only=True)
class Pool2d:
    """Sum of the window at each place, over the window's size where ``average``; zero padding counts as values."""

    name: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    average: bool = False

    def __post_init__(self) -> None:
        if min(self.kernel) < 1 or min(self.stride) < 1 or min(self.padding) < 0:
            got = f"kernel {self.kernel}, stride {self.stride}, padding {self.padding}"
            raise GraphError(self.name, got, "kernel and stride of at least 1, padding of at least 0")
        if self.kernel[0] * self.kernel[1] > LARGEST_WINDOW:
            raise GraphError(f"{self.name}.kernel", self.kernel, f"at most {LARGEST_WINDOW} places")


@dataclass(frozen=True, kw_only=True)
class Flatten:
    """``(C, H, W)`` to ``(C H W,)`` in C order."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Delay:
    """``y(t) = x(t - delay)``, 0 before: one delay, or one for each element of the input [s].

    Rounded to whole timesteps by the graph (:meth:`SpikingGraph.delay_steps`). A loop must pass one of at least a
    timestep.
    """

    name: str
    delay: FloatArray

    def __post_init__(self) -> None:
        _float_field(self, "delay", self.name)
        if (self.delay < 0).any():
            raise GraphError(f"{self.name}.delay", f"{self.delay.min()} s", "0 s or more")


@dataclass(frozen=True, kw_only=True)
class LIF:
    """Leaky integrate-and-fire without a synaptic current (NIR ``LIF``, norse ``LIFBox``), hard reset.

    In order, each timestep: ``v += dt / tau_mem * (v_leak - v + r * i)``; ``s = v > v_threshold`` (strict);
    ``v = v_reset`` where ``s``. Starts at ``v_reset``, as after a spike. Times in [s], potentials in the student's own
    unit. Each parameter is one number, or an array of the population's shape; the same holds for the other populations.
    """

    name: str
    tau_mem: Parameter
    r: Parameter = 1.0
    v_leak: Parameter = 0.0
    v_threshold: Parameter = 1.0
    v_reset: Parameter = 0.0

    def __post_init__(self) -> None:
        _parameters(self, "tau_mem", "r", "v_leak", "v_threshold", "v_reset")
        _check_positive(self, "tau_mem")
        _check_threshold(self)


@dataclass(frozen=True, kw_only=True)
class CubaLIF:
    """Leaky integrate-and-fire with a synaptic current (NIR ``CubaLIF``), hard reset.

    In order, each timestep: ``u += dt / tau_syn * (w_in * i - u)``; ``v += dt / tau_mem * (v_leak - v + r * u)``;
    ``s = v > v_threshold`` (strict); ``v = v_reset`` where ``s``. A spike leaves ``u`` as it is. Starts at ``u = 0``,
    ``v = v_reset``.
    """

    name: str
    tau_syn: Parameter
    tau_mem: Parameter
    r: Parameter = 1.0
    w_in: Parameter = 1.0
    v_leak: Parameter = 0.0
    v_threshold: Parameter = 1.0
    v_reset: Parameter = 0.0

    def __post_init__(self) -> None:
        _parameters(self, "tau_syn", "tau_mem", "r", "w_in", "v_leak", "v_threshold", "v_reset")
        _check_positive(self, "tau_syn")
        _check_positive(self, "tau_mem")
        _check_threshold(self)


@dataclass(frozen=True, kw_only=True)
class IF:
    """Integrate-and-fire without a leak (NIR ``IF``): ``v += dt * r * i``; then as :class:`LIF`, start included."""

    name: str
    r: Parameter = 1.0
    v_threshold: Parameter = 1.0
    v_reset: Parameter = 0.0

    def __post_init__(self) -> None:
        _parameters(self, "r", "v_threshold", "v_reset")
        _check_threshold(self)


@dataclass(frozen=True, kw_only=True)
class LI:
    """A leaky integrator that never fires (NIR ``LI``): ``v += dt / tau_mem * (v_leak - v + r * i)``, from 0.

    It passes ``v`` on.
    """

    name: str
    tau_mem: Parameter
    r: Parameter = 1.0
    v_leak: Parameter = 0.0

    def __post_init__(self) -> None:
        _parameters(self, "tau_mem", "r", "v_leak")
        _check_positive(self, "tau_mem")


@dataclass(frozen=True, kw_only=True)
class Integrator:
    """A population that never fires (NIR ``I``): ``v += dt * r * i``, from 0; it passes ``v`` on."""

    name: str
    r: Parameter = 1.0

    def __post_init__(self) -> None:
        _parameters(self, "r")


def _parameters(node: object, *names: str) -> None:
    """Check parameters; an array of equal values is kept as that value."""
    for name in names:
        where = str(getattr(node, "name", ""))
        _float_field(node, name, where)
        values = getattr(node, name)
        if not values.size:
            raise GraphError(f"{where}.{name}", "no values", "one number, or one for each neuron")
        if values.min() == values.max():
            object.__setattr__(node, name, float(values.flat[0]))


def _check_positive(node: object, name: str) -> None:
    if np.min(getattr(node, name)) <= 0:
        raise GraphError(f"{node.name}.{name}", f"{np.min(getattr(node, name))} s", "more than 0 s")  # type: ignore[attr-defined]


def _check_threshold(node: LIF | CubaLIF | IF) -> None:
    if np.any(np.asarray(node.v_threshold) <= node.v_reset):
        raise GraphError(node.name, f"v_threshold {node.v_threshold}, v_reset {node.v_reset}", "v_threshold > v_reset")


Node = Union[
    Input, Normalize, Conv2d, Linear, BatchNorm, Scale, Pool2d, Flatten, Delay, LIF, CubaLIF, IF, LI, Integrator
]
#: Populations: nodes with a state of their own.
Neuron = Union[LIF, CubaLIF, IF, LI, Integrator]
NEURONS = (LIF, CubaLIF, IF, LI, Integrator)
#: Populations that fire.
SPIKING = (LIF, CubaLIF, IF)
