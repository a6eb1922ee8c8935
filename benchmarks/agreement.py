"""Whether systems computed the same, before any speed is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Float peers sum in different orders, so that a potential just at the threshold may fall on either side: share of
#: spikes that may differ, and largest difference of a logit, relative to the largest logit.
SPIKE_TOLERANCE = 1e-3
LOGIT_TOLERANCE = 0.02
#: For networks without neurons, where nothing amplifies the order of a sum.
ANN_TOLERANCE = 1e-3


def find_disagreement(expected: Mapping[str, str], got: Mapping[str, str]) -> str:
    """Return the first layer whose digests differ, or an empty string where all agree."""
    for name in [*expected, *(name for name in got if name not in expected)]:
        if expected.get(name) != got.get(name):
            return name
    return ""


def compare_spiking(expected: Mapping[str, Any], got: Mapping[str, Any]) -> str:
    """Return how two float runs of one student differ beyond rounding, or an empty string."""
    for layer, (one, other) in enumerate(zip(expected["spikes"], got["spikes"], strict=True), 1):
        if abs(one - other) > SPIKE_TOLERANCE * max(one, 1.0):
            return f"layer {layer} fired {other:g} times, not {one:g}"
    return compare_logits(expected["logits"], got["logits"], LOGIT_TOLERANCE)


def compare_logits(expected: Sequence[Sequence[float]], got: Sequence[Sequence[float]], tolerance: float) -> str:
    """Return how two sets of logits, (B, K), differ by more than `tolerance`, or an empty string."""
    if [len(row) for row in expected] != [len(row) for row in got]:
        return "logits of another shape"
    pairs = [pair for rows in zip(expected, got, strict=True) for pair in zip(*rows, strict=True)]
    largest = max(abs(one) for one, _ in pairs)
    difference = max(abs(one - other) for one, other in pairs)
    if not difference <= tolerance * largest:  # NaN is not <= anything
        return f"logits differ by up to {difference:.2g}, of at most {largest:.2g}"
    return ""
