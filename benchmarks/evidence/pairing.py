"""Means, paired differences and their t intervals: small samples, every one of them shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as student_t

#: Coverage of every interval.
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Differences of an arm from a baseline over the seeds that both have.

    ``low`` and ``high`` are the t interval of their mean, which takes the differences for normal; with fewer than two
    seeds there is none (NaN).
    """

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    low: float
    high: float

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def pair(arm: Mapping[int, float], baseline: Mapping[int, float]) -> Paired | None:
    """Return the paired differences of two arms, by seed; None if they share no seed."""
    seeds = tuple(sorted(arm.keys() & baseline.keys()))
    if not seeds:
        return None
    differences = tuple(arm[seed] - baseline[seed] for seed in seeds)
    low, high = t_interval(differences)
    return Paired(seeds=seeds, differences=differences, mean=fmean(differences), low=low, high=high)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the t interval of the mean of `values`; NaN for fewer than two."""
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, count - 1)) * stdev(values) / math.sqrt(count)
    return fmean(values) - half, fmean(values) + half


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; NaN for fewer than two."""
    return stdev(values) if len(values) > 1 else math.nan


def share_of_way(value: float, start: float, end: float) -> float:
    """Return how far `value` is from `start` to `end`: 0 at the start, 1 at the end; NaN without a way."""
    return math.nan if start == end else (value - start) / (end - start)
