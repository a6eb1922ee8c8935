"""What a population or the input sends, as tensors inside a model: channels last, flat, in whole numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from stars_deploy.populations import IntArray, QuantizedInput
from stars_deploy.targets.onnx_model.drawing import Drawing


def channels_last(values: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return `values` (..., *shape) as (..., N): a population's neurons in the order that models keep them in.

    (C, H, W) becomes (H, W, C); other shapes stay in C order.
    """
    lead = values.shape[: values.ndim - len(shape)]
    moved = np.moveaxis(values, -3, -1) if len(shape) == 3 else values
    return np.ascontiguousarray(moved).reshape(*lead, -1)


def channels_first(values: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Undo :func:`channels_last`: return `values` (..., N) as (..., *shape)."""
    lead = values.shape[:-1]
    if len(shape) != 3:
        return values.reshape(*lead, *shape)
    channels, height, width = shape
    return np.moveaxis(values.reshape(*lead, height, width, channels), -1, -3)


@dataclass
class Frames:
    """The values of one source.

    Parameters
    ----------
    shape : tuple of int
        Of the source, (C, H, W) or (N,).
    low, high : int
        Range of the values [LSB]; 0 is always among them.
    tensor : str
        (B, N), or (T, B, N) where `steps`.
    kind : dtype
        Of `tensor`.
    steps : int
        Timesteps that there is a frame for; 0 where there is one frame.
    """

    shape: tuple[int, ...]
    low: int
    high: int
    tensor: str
    kind: np.dtype[Any]
    steps: int = 0
    _cast: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of neurons."""
        return int(np.prod(self.shape))

    def in_kind(self, draw: Drawing, kind: npt.DTypeLike) -> str:
        """Return the tensor in another type, drawn once."""
        wanted = np.dtype(kind)
        if wanted == self.kind:
            return self.tensor
        if wanted.str not in self._cast:
            self._cast[wanted.str] = draw.cast(self.tensor, wanted)
        return self._cast[wanted.str]


def payload_kind(source: QuantizedInput) -> np.dtype[Any]:
    """Return the type in which a model takes payloads: uint8 where they fit, else int32."""
    return np.dtype(np.uint8 if source.precision.low >= 0 and source.precision.high <= 255 else np.int32)


def draw_layout(draw: Drawing, value: str, shape: tuple[int, ...], leading: int) -> str:
    """Draw (..., *shape) as (..., N), channels last; `leading` axes (1 or 2) stand before."""
    if len(shape) == 3 and shape[0] > 1 and shape[1] * shape[2] > 1:
        order = (1, 2, 0)
        value = draw.add("Transpose", value, perm=[*range(leading), *(leading + axis for axis in order)])
    size = int(np.prod(shape))
    return draw.reshape(value, [0] * leading + [size])


def draw_restored(draw: Drawing, value: str, shape: tuple[int, ...], to: str) -> str:
    """Draw (B, N), channels last, as (B, *shape) under the name `to`."""
    if len(shape) == 3 and shape[0] > 1 and shape[1] * shape[2] > 1:
        channels, height, width = shape
        planes = draw.reshape(value, [0, height, width, channels])
        return draw.add("Transpose", planes, perm=[0, 3, 1, 2], to=to)
    return draw.add("Reshape", value, draw.constant([0, *shape], np.int64), to=to)


def draw_payloads(draw: Drawing, pixels: str, source: QuantizedInput) -> str:
    """Draw the quantisation of float32 pixels in double, ``clip(rint(pixel * scale + offset))``; double again.

    In float32 the product would round to halves that are none: ``rint`` must see what NumPy's sees.
    """
    wide = draw.cast(pixels, np.float64)
    scaled = draw.add("Mul", wide, draw.constant(source.scale, np.float64))
    moved = draw.add("Add", scaled, draw.constant(source.offset, np.float64))
    limits = [draw.constant(value, np.float64) for value in (source.precision.low, source.precision.high)]
    return draw.add("Clip", draw.add("Round", moved), *limits)


def stored_kind(values: Union[IntArray, npt.NDArray[Any]]) -> np.dtype[Any]:
    """Return the narrowest type that holds `values`, signed if it can be."""
    low, high = int(values.min()), int(values.max())
    for kind in (np.int8, np.uint8, np.int16, np.uint16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.int64)
