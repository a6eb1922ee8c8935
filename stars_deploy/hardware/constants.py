"""Numbers with a range, a unit and a source, and what is computed from them: intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

#: Which end of each constant's range is taken.
CORNERS = ("nominal", "low", "high")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A quantity with every constant at its nominal value, at its low and at its high end."""

    nominal: float
    low: float
    high: float

    def widened(self, factor: Constant) -> Interval:
        """Return the interval made to hold ``nominal * factor.low`` and ``nominal * factor.high``."""
        return Interval(
            nominal=self.nominal,
            low=min(self.low, self.nominal * factor.low),
            high=max(self.high, self.nominal * factor.high),
        )


def over_corners(value: Callable[[str], float]) -> Interval:
    """Return the interval of ``value(corner)`` over :data:`CORNERS`."""
    return Interval(nominal=value("nominal"), low=value("low"), high=value("high"))


def total_of(*intervals: Interval) -> Interval:
    """Return the sum of `intervals`, corner by corner."""
    return over_corners(lambda corner: sum(float(getattr(interval, corner)) for interval in intervals))


class Frozen(BaseModel):
    """Base of everything that a profile holds: no unknown key, no other type, no change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Constant(Frozen):
    """One number with its range, its unit and where it comes from."""

    nominal: float = Field(ge=0, allow_inf_nan=False)
    low: float = Field(ge=0, allow_inf_nan=False)
    high: float = Field(ge=0, allow_inf_nan=False)
    unit: str
    source: str = Field(min_length=1)
    evidence: Literal["measured", "fitted", "published", "estimate"]

    @model_validator(mode="after")
    def _ordered(self) -> Constant:
        if not self.low <= self.nominal <= self.high:
            raise ValueError(
                f"low <= nominal <= high, not low {self.low:g}, nominal {self.nominal:g}, high {self.high:g}"
            )
        return self

    def at(self, corner: str) -> float:
        """Return the value at ``nominal``, ``low`` or ``high``."""
        return float(getattr(self, corner))


def in_unit(unit: str) -> AfterValidator:
    """Return a check that a constant is in `unit`; values are not converted."""

    def check(constant: Constant) -> Constant:
        if constant.unit != unit:
            raise ValueError(f"unit {unit!r}, not {constant.unit!r} (values are not converted)")
        return constant

    return AfterValidator(check)


def check_count(constant: Constant) -> Constant:
    """Return `constant` if all of it is whole numbers of at least 1."""
    if constant.low < 1 or any(constant.at(corner) % 1 for corner in CORNERS):
        raise ValueError("whole numbers of at least 1")
    return constant


def check_factor(constant: Constant) -> Constant:
    """Return `constant` if it is a factor around 1."""
    if constant.nominal != 1 or constant.low <= 0:
        raise ValueError("a factor with nominal 1, around which the error lies, and a low end above 0")
    return constant


Nanoseconds = Annotated[Constant, in_unit("ns")]
Picojoules = Annotated[Constant, in_unit("pJ")]
Watts = Annotated[Constant, in_unit("W")]
Bits = Annotated[Constant, in_unit("bits")]
Factor = Annotated[Constant, in_unit("1"), AfterValidator(check_factor)]
