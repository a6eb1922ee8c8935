"""Inputs and populations of the integer graph, and the constants of Loihi's state variables.

Arrays are read-only and range-checked when an object is made, so that an object that exists is one that the chip can
hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import numpy as np
import numpy.typing as npt

from stars_deploy.errors import QuantizationError
from stars_deploy.graph import frozen_array
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
#: Most bits of a graded spike's payload (Loihi 2, Lava's ``PyInPort``: 24).
PAYLOAD_BITS = 24
#: Bits of a signed bias mantissa.
BIAS_BITS = 16


def decayed(state: IntArray, decay: Union[int, IntArray]) -> IntArray:
    """Return ``trunc(state * (4096 - decay) / 4096)``, rounded toward zero: what a timestep leaves of a state [LSB]."""
    kept: IntArray = np.abs(state) * (DECAY_ONE - np.asarray(decay, np.int64))
    result: IntArray = np.sign(state) * (kept >> DECAY_BITS)
    return result


def whole_numbers(values: npt.ArrayLike, where: str) -> IntArray:
    """Return a read-only copy of an array of integers; refuse other types."""
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise QuantizationError(where, f"dtype {array.dtype}", "integers")
    int64 = np.iinfo(np.int64)
    check_range(array, int64.min, int64.max, where)  # NumPy would wrap larger uint64 in silence
    return frozen_array(array, np.int64)  # type: ignore[return-value]


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
    if not shape or min(shape) < 1:
        raise QuantizationError(name, f"shape {shape}", "at least one axis and one neuron")


@dataclass(frozen=True, kw_only=True)
class QuantizedInput:
    """What enters a network: an image in graded spikes, spikes over time, or the bias of the first population.

    Parameters
    ----------
    name : str
    shape : tuple of int
        (C, H, W) or (N,).
    precision : Precision
        Of the payload: at most 24 bits for spikes, exactly 16 signed bits for a bias.
    scale : float
        Steps [LSB] for one unit of the float pixel value.
    offset : float
        Steps [LSB] added to every pixel after scaling.
    biases : str
        Name of the population whose bias mantissa each pixel is, in place of spikes (NetX: an input layer with
        neurons); empty where the pixels are spikes.
    """

    name: str
    shape: tuple[int, ...]
    precision: Precision = Precision(bits=8, signed=False)
    scale: float = 255.0
    offset: float = 0.0
    biases: str = ""

    def __post_init__(self) -> None:
        _check_shape(self.name, self.shape)
        if self.biases and (self.precision.bits, self.precision.signed) != (BIAS_BITS, True):
            raise QuantizationError(f"{self.name}.precision", self.precision, f"signed, {BIAS_BITS} bits, for a bias")
        if self.precision.bits > PAYLOAD_BITS:
            raise QuantizationError(f"{self.name}.precision", self.precision, f"1 to {PAYLOAD_BITS} bits")

    def quantize(self, images: npt.ArrayLike) -> IntArray:
        """Return `images` of floats as integers, ``rint(image * scale + offset)``, range-checked.

        Parameters
        ----------
        images : array, (B, *shape), or (T, B, *shape) for one frame a timestep

        Raises
        ------
        QuantizationError
            If an image has another shape, or a pixel is not finite or leaves the range (nothing is clipped).
        """
        array = np.asarray(images, dtype=np.float64)
        if not self.fits(array.shape):
            raise QuantizationError(self.name, f"images of shape {array.shape}", f"(samples, {self.shape})")
        if not np.isfinite(array).all():
            raise QuantizationError(self.name, "pixels that are NaN or infinite", "finite pixels")
        steps: IntArray = np.rint(array * self.scale + self.offset).astype(np.int64)
        self.precision.check(steps, self.name)
        return steps

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether `shape` is (B, *shape of the input) or (T, B, *shape of the input)."""
        axes = len(self.shape)
        return len(shape) in (axes + 1, axes + 2) and tuple(shape[-axes:]) == tuple(self.shape)

    def over_time(self, images: npt.NDArray[np.generic]) -> bool:
        """Whether `images` has a frame for each timestep, (T, B, *shape), rather than one for all, (B, *shape)."""
        return images.ndim == len(self.shape) + 2


@dataclass(frozen=True, kw_only=True)
class Population:
    """Neurons of one kind: a layer.

    Parameters
    ----------
    name : str
    shape : tuple of int
        (C, H, W) or (N,).
    decay_u, decay_v : int, or array of int of ``shape``
        Current and membrane decay, 0 (keep all) to 4096 (keep nothing), in units of 1/4096; one for the population or
        one for each neuron. An array of equal values is kept as that value.
    vth : int, or array of int of ``shape``
        Threshold mantissa, 0 to 2**17; the last never fires. Compared as ``v > vth << 6``. One or many, as decays.
    bias : array of int, of ``shape``
        Added (``<< 6``) to the membrane at every timestep; signed 16-bit.
    reset_interval, reset_offset : int
        At each timestep t = 1, 2, ... with ``t % reset_interval == reset_offset % reset_interval`` current and membrane
        start from 0; an interval of 0 never resets within a sample.
    scale : float
        Membrane steps [LSB] for one unit of the student's float potential (information, not used in execution).
    """

    name: str
    shape: tuple[int, ...]
    decay_u: Union[int, IntArray] = DECAY_ONE
    decay_v: Union[int, IntArray] = 0
    vth: Union[int, IntArray] = VTH_NEVER
    bias: IntArray
    reset_interval: int = 0
    reset_offset: int = 0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_shape(self.name, self.shape)
        for name, high in (("decay_u", DECAY_ONE), ("decay_v", DECAY_ONE), ("vth", VTH_NEVER)):
            object.__setattr__(self, name, self._one_or_many(name, high))
        bias = whole_numbers(self.bias, f"{self.name}.bias")
        if bias.shape != tuple(self.shape):
            raise QuantizationError(f"{self.name}.bias", f"shape {bias.shape}", f"{self.shape}")
        check_range(bias, -BIAS_LIMIT, BIAS_LIMIT - 1, f"{self.name}.bias")
        object.__setattr__(self, "bias", bias)
        if self.reset_interval < 0 or self.reset_offset < 0:
            got = f"reset_interval {self.reset_interval}, reset_offset {self.reset_offset}"
            raise QuantizationError(self.name, got, "0 or more timesteps")

    def _one_or_many(self, name: str, high: int) -> Union[int, IntArray]:
        where = f"{self.name}.{name}"
        values = whole_numbers(getattr(self, name), where)
        check_range(values, 0, high, where)
        if values.ndim and values.shape != tuple(self.shape):
            raise QuantizationError(where, f"shape {values.shape}", f"one value, or {self.shape}")
        return values if values.size > 1 and values.min() != values.max() else int(values.flat[0])

    @property
    def size(self) -> int:
        """Number of neurons."""
        return int(np.prod(self.shape))

    @property
    def fires(self) -> bool:
        """Whether any membrane potential can exceed the threshold."""
        return bool(np.min(self.vth) < VTH_NEVER)

    @property
    def leaks_current(self) -> bool:
        """Whether a current outlasts its timestep."""
        return bool(np.min(self.decay_u) < DECAY_ONE)

    def resets_at(self, timestep: int) -> bool:
        """Whether the state starts from 0 at `timestep` (1, 2, ...)."""
        return self.reset_interval > 0 and (timestep - self.reset_offset) % self.reset_interval == 0
