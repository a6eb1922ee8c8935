"""A node of a NIR file: its fields, each checked against the shape that enters the node.

Shapes are NIR's, without a batch: (N,), (C, L) or (C, H, W). The float graph holds (C, L) as (C, 1, L).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stars_deploy.graph import FloatArray
from stars_deploy.targets.hdf5_guard import GuardedGroup

Shape = tuple[int, ...]

#: Most values of one node, and most neurons of all populations together.
MAX_NEURONS = 1 << 24
#: Most weights of one node; the largest dense layer of VGG-16 has 1.03e8.
MAX_WEIGHTS = 1 << 27
#: ``tau >= dt`` is checked up to the rounding of float32.
ROUNDING = 1e-6
_SHAPES = "(N,), (C, L) or (C, H, W)"


@dataclass(frozen=True, kw_only=True)
class Element:
    """A node of the file.

    Parameters
    ----------
    name, kind : str
    group : GuardedGroup
        Its fields.
    shape : tuple of int
        What enters it.
    trusted : bool
        Whether shapes that the file states beside its arrays count: not behind a kernel that is not square, for which
        nir 1.0.8 infers (and writes) wrong ones.
    dt : float
        The file's timestep [s].
    """

    name: str
    kind: str
    group: GuardedGroup
    shape: Shape
    trusted: bool
    dt: float

    def check_stated(self, field: str, expected: Shape) -> None:
        """Refuse a shape stated in `field` that is not `expected`, leading ones (a batch) aside."""
        if self.trusted and field in self.group:
            stated = tuple(int(size) for size in self.group.numbers(field, 8).reshape(-1))
            if _unbatched(stated) != _unbatched(expected):
                raise self.group.error(field, f"states {stated}", f"{expected}, which is what enters {self.name}")

    def rank(self, rank: int, allowed: str) -> None:
        """Refuse an input that has not `rank` axes."""
        if len(self.shape) != rank:
            raise self.group.error("", f"a {self.kind} of an input of shape {self.shape}", allowed)

    def sizes(self, field: str, axes: int, least: int) -> tuple[int, ...]:
        """Return one whole number for each of `axes`, of at least `least`; the file may have one for all."""
        values = self.group.numbers(field, axes).reshape(-1)
        if values.size not in (1, axes) or values.min() < least:
            raise self.group.error(field, values.tolist(), f"1 or {axes} whole numbers of at least {least}")
        return tuple(int(size) for size in np.broadcast_to(values, axes))

    def one(self, field: str, least: int) -> int:
        """Return a whole number of at least `least`."""
        return self.sizes(field, 1, least)[0]

    def weight(self, axes: int) -> FloatArray:
        """Return the weight, of as many `axes`."""
        stated = self.group.shape("weight")
        if len(stated) != axes:
            raise self.group.error("weight", f"shape {stated}", f"{axes} axes")
        return self.group.floats("weight", MAX_WEIGHTS)

    def bias(self, outputs: int) -> FloatArray:
        """Return the bias, one for each of `outputs`."""
        values = self.group.floats("bias", outputs)
        if values.size != 1 and values.reshape(-1).shape != (outputs,):
            raise self.group.error("bias", f"shape {values.shape}", f"({outputs},)")
        return np.array(np.broadcast_to(values.reshape(-1), (outputs,)))

    def elementwise(self, field: str, default: float | None = None) -> FloatArray:
        """Return one number, or one for each element of the input, in the float graph's shape."""
        if default is not None and field not in self.group:
            return np.array(default)
        values = self.group.floats(field, math.prod(self.shape))
        if values.size == 1:
            return values.reshape(())
        while values.ndim > len(self.shape) and values.shape[0] == 1:
            values = values[0]
        try:
            spread = np.broadcast_to(values, self.shape)
        except ValueError:
            raise self.group.error(
                field, f"shape {values.shape}", f"one number, or what spreads to {self.shape}, which enters {self.name}"
            ) from None
        return np.array(spread).reshape(graph_shape(self.shape))

    def time(self, field: str) -> FloatArray:
        """Return a time constant [s], at least a timestep."""
        values = self.elementwise(field)
        if values.min() < self.dt * (1 - ROUNDING):
            raise self.group.error(
                field,
                f"{values.min():g} s",
                f"at least a timestep, {self.dt:g} s: a potential cannot lose more than all of it",
                "give the dt of the tool that wrote the file with --dt; norse 1.1 writes times multiplied by its dt "
                "(--dt 1e-6 for its 1e-3), sinabs in timesteps (--dt 1)",
            )
        return values


def graph_shape(shape: Shape) -> Shape:
    """Return the shape in the float graph of what has `shape` in NIR."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def read_shape(group: GuardedGroup, field: str = "shape") -> Shape:
    """Return the shape that an Input states, without a leading batch of 1.

    Raises
    ------
    FormatError
        If it is not one of (N,), (C, L) and (C, H, W), or too large.
    """
    shape = tuple(int(size) for size in group.numbers(field, 8).reshape(-1))
    if len(shape) == 4 and shape[0] == 1:
        shape = shape[1:]
    if not 1 <= len(shape) <= 3 or min(shape) < 1 or math.prod(shape) > MAX_NEURONS:
        raise group.error(
            field,
            shape,
            f"{_SHAPES}, of at most {MAX_NEURONS} values",
            "export it without time and batch (ignore_dims in snnTorch)",
        )
    return shape


def _unbatched(shape: Shape) -> Shape:
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
