"""Projections of the integer graph: the synapses between two populations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Union

import numpy as np

from stars_deploy.errors import GraphError, QuantizationError
from stars_deploy.graph import convolved_shape
from stars_deploy.populations import IntArray, whole_numbers
from stars_deploy.precision import Precision


@dataclass(frozen=True, kw_only=True)
class DenseProjection:
    """All-to-all synapses over the source flattened in C order.

    Parameters
    ----------
    name, source, target : str
    weight : array of int, (out, in)
        Within ``precision``.
    precision : Precision
    delay : int, or array of int, (in,) or (out, in) [timesteps]
        One for all synapses, one for each source neuron (axonal), or one for each synapse. Kept as (out, in), or as
        one number where all are equal.
    """

    name: str
    source: str
    target: str
    weight: IntArray
    precision: Precision = Precision(bits=8, signed=True)
    delay: Union[int, IntArray] = 0

    def __post_init__(self) -> None:
        _check_weight(self, axes=2)
        delay = whole_numbers(self.delay, f"{self.name}.delay")
        if delay.ndim and delay.shape not in (self.weight.shape, self.weight.shape[1:]):
            raise GraphError(f"{self.name}.delay", f"shape {delay.shape}", f"one value, (in,) or {self.weight.shape}")
        if delay.min() < 0:
            raise GraphError(f"{self.name}.delay", int(delay.min()), "0 or more timesteps")
        if delay.min() == delay.max():
            object.__setattr__(self, "delay", int(delay.flat[0]))
        else:
            full = np.broadcast_to(delay, self.weight.shape)
            object.__setattr__(self, "delay", whole_numbers(full, f"{self.name}.delay"))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the activation made from a source of `shape`."""
        if int(np.prod(shape)) != self.weight.shape[1]:
            raise GraphError(self.name, f"weight {self.weight.shape}", f"(out, {int(np.prod(shape))})")
        return (self.weight.shape[0],)

    def by_delay(self) -> tuple[tuple[int, DenseProjection], ...]:
        """Return each delay [timesteps] with the synapses that have it, the others set to 0, shortest first."""
        if isinstance(self.delay, int):
            return ((self.delay, self),)
        return tuple(
            (int(delay), replace(self, weight=np.where(self.delay == delay, self.weight, 0), delay=int(delay)))
            for delay in np.unique(self.delay)
        )


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
        _check_weight(self, axes=4)
        if self.delay < 0:
            raise GraphError(f"{self.name}.delay", self.delay, "0 or more timesteps")
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

    def by_delay(self) -> tuple[tuple[int, ConvProjection], ...]:
        """Return the one delay [timesteps] with these synapses."""
        return ((self.delay, self),)


Projection = Union[DenseProjection, ConvProjection]


def _check_weight(projection: Projection, axes: int) -> None:
    weight = whole_numbers(projection.weight, f"{projection.name}.weight")
    if weight.ndim != axes or weight.size == 0:
        raise QuantizationError(f"{projection.name}.weight", f"shape {weight.shape}", f"{axes} axes, not empty")
    projection.precision.check(weight, f"{projection.name}.weight")
    object.__setattr__(projection, "weight", weight)
