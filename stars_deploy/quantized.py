"""``QuantizedGraph``: the integer network, in the chip's words.

What it means is defined by :mod:`stars_deploy.targets.reference`. Arrays are read-only and range-checked when an
object is made, so that an object that exists is one that the chip can hold. Time is layer-synchronous: at timestep t a
population sees what its sources emitted at timestep t - delay; all state starts at 0 for every sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Union

import numpy as np
import numpy.typing as npt

from stars_deploy.errors import GraphError, QuantizationError
from stars_deploy.graph import convolved_shape, frozen_array
from stars_deploy.precision import Precision, check_range

IntArray = npt.NDArray[np.int64]

#: Bits of the fraction of a decay factor: a state is multiplied by (4096 - decay) / 4096 (Lava ``LIF``, fixed point).
DECAY_BITS = 12
DECAY_ONE = 1 << DECAY_BITS
#: Activations, biases and thresholds are shifted left by this many bits on their way to a state variable.
STATE_EXP = 6
#: State variables are signed 24-bit: |u|, |v| < 2**23.
STATE_LIMIT = 1 << 23
#: A threshold that no membrane potential can exceed (2**17 << 6 = 2**23): a population that never fires.
VTH_NEVER = 1 << 17
#: Bias mantissas are signed 16-bit; Lava wraps larger ones in silence.
BIAS_LIMIT = 1 << 15


def decayed(state: IntArray, decay: int) -> IntArray:
    """Return ``trunc(state * (4096 - decay) / 4096)``, rounded toward zero: what a timestep leaves of a state [LSB]."""
    result: IntArray = np.sign(state) * ((np.abs(state) * (DECAY_ONE - decay)) >> DECAY_BITS)
    return result


def _whole_numbers(values: npt.ArrayLike, where: str) -> IntArray:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise QuantizationError(where, f"dtype {array.dtype}", "integers")
    return frozen_array(array, np.int64)  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class QuantizedInput:
    """An image in graded spikes, the same at every timestep.

    Parameters
    ----------
    name : str
    shape : tuple of int
        (C, H, W).
    precision : Precision
        Unsigned payload; at most 8 bits.
    scale : float
        Steps [LSB] for one unit of the float pixel value.
    """

    name: str
    shape: tuple[int, ...]
    precision: Precision = Precision(bits=8, signed=False)
    scale: float = 255.0

    def __post_init__(self) -> None:
        if self.precision.signed or self.precision.bits > 8:
            raise QuantizationError(f"{self.name}.precision", self.precision, "unsigned, 1 to 8 bits")

    def quantize(self, images: npt.ArrayLike) -> IntArray:
        """Return `images` (B, C, H, W) of floats as integers, rounded to nearest and checked.

        Raises
        ------
        QuantizationError
            If an image has another shape, or a pixel is not finite or leaves the range (nothing is clipped).
        """
        array = np.asarray(images, dtype=np.float64)
        if array.ndim != len(self.shape) + 1 or array.shape[1:] != self.shape:
            raise QuantizationError(self.name, f"images of shape {array.shape}", f"(samples, {self.shape})")
        if not np.isfinite(array).all():
            raise QuantizationError(self.name, "pixels that are NaN or infinite", "finite pixels")
        steps: IntArray = np.rint(array * self.scale).astype(np.int64)
        self.precision.check(steps, self.name)
        return steps


@dataclass(frozen=True, kw_only=True)
class Population:
    """Neurons that share threshold and decays.

    Parameters
    ----------
    name : str
    shape : tuple of int
        (C, H, W) or (N,).
    decay_u, decay_v : int
        Current and membrane decay, 0 (keep all) to 4096 (keep nothing), in units of 1/4096.
    vth : int
        Threshold mantissa, 0 to 2**17; the last never fires. Compared as ``v > vth << 6``.
    bias : array of int, of ``shape``
        Added (``<< 6``) to the membrane at every timestep; signed 16-bit.
    scale : float
        Membrane steps [LSB] for one unit of the student's float potential (information, not used in execution).
    """

    name: str
    shape: tuple[int, ...]
    decay_u: int = DECAY_ONE
    decay_v: int = 0
    vth: int = VTH_NEVER
    bias: IntArray
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_range(self.decay_u, 0, DECAY_ONE, f"{self.name}.decay_u")
        check_range(self.decay_v, 0, DECAY_ONE, f"{self.name}.decay_v")
        check_range(self.vth, 0, VTH_NEVER, f"{self.name}.vth")
        bias = _whole_numbers(self.bias, f"{self.name}.bias")
        if bias.shape != tuple(self.shape):
            raise QuantizationError(f"{self.name}.bias", f"shape {bias.shape}", f"{self.shape}")
        check_range(bias, -BIAS_LIMIT, BIAS_LIMIT - 1, f"{self.name}.bias")
        object.__setattr__(self, "bias", bias)

    @property
    def size(self) -> int:
        """Number of neurons."""
        return int(np.prod(self.shape))

    @property
    def fires(self) -> bool:
        """Whether any membrane potential can exceed the threshold."""
        return self.vth < VTH_NEVER


@dataclass(frozen=True, kw_only=True)
class DenseProjection:
    """All-to-all synapses over the source flattened in C order.

    ``weight`` is (out, in), within ``precision``; ``delay`` in timesteps.
    """

    name: str
    source: str
    target: str
    weight: IntArray
    precision: Precision = Precision(bits=8, signed=True)
    delay: int = 0

    def __post_init__(self) -> None:
        _check_projection(self, axes=2)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the activation made from a source of `shape`."""
        if int(np.prod(shape)) != self.weight.shape[1]:
            raise GraphError(self.name, f"weight {self.weight.shape}", f"(out, {int(np.prod(shape))})")
        return (self.weight.shape[0],)


@dataclass(frozen=True, kw_only=True)
class ConvProjection:
    """Convolutional synapses (a cross-correlation), shared over space.

    ``weight`` is (out, in/groups, kh, kw), within ``precision``; stride, padding and dilation are (y, x); ``delay`` in
    timesteps.
    """

    name: str
    source: str
    target: str
    weight: IntArray
    precision: Precision = Precision(bits=8, signed=True)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    delay: int = 0

    def __post_init__(self) -> None:
        _check_projection(self, axes=4)
        if min(self.stride) < 1 or min(self.dilation) < 1 or min(self.padding) < 0:
            raise GraphError(
                self.name,
                f"stride {self.stride}, dilation {self.dilation}, padding {self.padding}",
                "stride and dilation of at least 1, padding of at least 0",
            )

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the (C, H, W) of the activation made from a source of `shape`."""
        return convolved_shape(
            shape, self.weight.shape, self.stride, self.padding, self.dilation, self.groups, self.name
        )


Projection = Union[DenseProjection, ConvProjection]


def _check_projection(projection: Projection, axes: int) -> None:
    weight = _whole_numbers(projection.weight, f"{projection.name}.weight")
    if weight.ndim != axes or weight.size == 0:
        raise QuantizationError(f"{projection.name}.weight", f"shape {weight.shape}", f"{axes} axes, not empty")
    projection.precision.check(weight, f"{projection.name}.weight")
    if projection.delay < 0:
        raise GraphError(f"{projection.name}.delay", projection.delay, "0 or more timesteps")
    object.__setattr__(projection, "weight", weight)


@dataclass(frozen=True, kw_only=True)
class QuantizedGraph:
    """An integer spiking network.

    Parameters
    ----------
    input : QuantizedInput
    populations : tuple of Population
        Each after the sources of its undelayed projections.
    projections : tuple of Projection
        Several may enter one population; their activations add up (a residual sum).
    timesteps : int
        Timesteps for one inference (T).
    labels : tuple of str
        Class names in the order of the last population; may be empty.

    Raises
    ------
    GraphError
        Duplicate or unknown names, shapes that do not fit, or an undelayed cycle.
    """

    input: QuantizedInput
    populations: tuple[Population, ...]
    projections: tuple[Projection, ...]
    timesteps: int
    labels: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.timesteps < 1:
            raise GraphError("timesteps", self.timesteps, "at least 1")
        if not self.populations:
            raise GraphError("populations", "none", "at least one population")
        names = [self.input.name, *(population.name for population in self.populations)]
        if len(set(names)) != len(names):
            raise GraphError("populations", f"names {names}", "unique names")
        self._check_projections(names)
        for population in self.populations:
            if not self.into(population.name):
                raise GraphError(population.name, "no projection enters it", "at least one")

    def _check_projections(self, names: list[str]) -> None:
        position = {name: index for index, name in enumerate(names)}
        for projection in self.projections:
            if projection.source not in position or projection.target not in names[1:]:
                raise GraphError(projection.name, f"{projection.source} -> {projection.target}", f"one of {names}")
            if projection.delay == 0 and position[projection.source] >= position[projection.target]:
                raise GraphError(
                    projection.name,
                    f"{projection.source} -> {projection.target} goes back without a delay",
                    "sources before targets, or a delay of at least 1 timestep",
                )
            shape = projection.output_shape(self.shape_of(projection.source))
            if shape != self.shape_of(projection.target):
                raise GraphError(projection.name, f"makes {shape}", f"{self.shape_of(projection.target)}")

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of the input or population called `name`."""
        return self.input.shape if name == self.input.name else self.population(name).shape

    def population(self, name: str) -> Population:
        """Return the population called `name`."""
        for candidate in self.populations:
            if candidate.name == name:
                return candidate
        raise GraphError("population", name, f"{[candidate.name for candidate in self.populations]}")

    def into(self, name: str) -> tuple[Projection, ...]:
        """Return the projections that enter population `name`."""
        return tuple(projection for projection in self.projections if projection.target == name)

    @property
    def output(self) -> Population:
        """The last population, whose membrane potential after T timesteps holds the logits."""
        return self.populations[-1]

    def with_timesteps(self, timesteps: int) -> QuantizedGraph:
        """Return the same network with another number of timesteps (prove its bounds again before use)."""
        return replace(self, timesteps=timesteps)


def find_difference(one: QuantizedGraph, other: QuantizedGraph) -> str:
    """Return the path of the first difference between two graphs, or an empty string if they are equal.

    Compares everything that execution depends on, names included, not ``scale`` or ``labels``.
    """
    if one.timesteps != other.timesteps:
        return "timesteps"
    if (one.input.name, one.input.shape, one.input.precision) != (
        other.input.name,
        other.input.shape,
        other.input.precision,
    ):
        return one.input.name
    if (len(one.populations), len(one.projections)) != (len(other.populations), len(other.projections)):
        return "number of layers"
    pairs: list[tuple[object, object]] = [
        *zip(one.populations, other.populations, strict=True),
        *zip(one.projections, other.projections, strict=True),
    ]
    for left, right in pairs:
        difference = _first_difference(left, right)
        if difference:
            return difference
    return ""


def _first_difference(left: object, right: object) -> str:
    if type(left) is not type(right):
        return str(getattr(left, "name", left))
    for name in getattr(left, "__dataclass_fields__", {}):
        if name != "scale" and not np.array_equal(getattr(left, name), getattr(right, name)):
            return f"{getattr(left, 'name', '')}.{name}"
    return ""
