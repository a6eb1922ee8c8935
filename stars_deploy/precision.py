"""Integer types: how many bits, signed or not, what one step is worth, and how floats were brought to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stars_deploy.errors import QuantizationError


@dataclass(frozen=True, kw_only=True)
class Precision:
    """An integer type: ``bits`` wide, signed or not, one step worth ``2**exponent``.

    ``rounding`` says how floats were brought to it: ``nearest`` (ties to even) or ``truncate`` (toward zero).
    """

    bits: int
    signed: bool
    exponent: int = 0
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 32 or self.rounding not in ("nearest", "truncate"):
            raise QuantizationError("precision", self, "1 to 32 bits, rounding nearest or truncate")

    @property
    def low(self) -> int:
        """Smallest value."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Largest value."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    def check(self, values: npt.NDArray[np.generic], where: str) -> None:
        """Refuse `values` that leave the range.

        Raises
        ------
        QuantizationError
            With the smallest and largest value found.
        """
        check_range(values, self.low, self.high, where)


def check_range(values: npt.ArrayLike, low: int, high: int, where: str) -> None:
    """Refuse integers outside [`low`, `high`] with a :class:`~stars_deploy.errors.QuantizationError`."""
    array = np.asarray(values)
    if array.size and (array.min() < low or array.max() > high):
        raise QuantizationError(where, f"values from {array.min()} to {array.max()}", f"{low} to {high}")
