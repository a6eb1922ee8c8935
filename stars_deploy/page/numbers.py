"""Numbers of a report as marked-up text: each says where in ``report.json`` it is from, and its full value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))
#: What stands where a report has no number.
UNKNOWN = "-"


def find(report: Mapping[str, Any], path: str) -> Any:
    r"""Return what lies at a path such as ``counts.per_layer.0.synops``; None where there is nothing.

    A name that holds a dot is written with ``\.``.
    """
    place: Any = report
    for part in path.replace("\\.", "\0").split("."):
        name = part.replace("\0", ".")
        if isinstance(place, Mapping) and name in place:
            place = place[name]
        elif isinstance(place, (list, tuple)) and name.isdigit() and int(name) < len(place):
            place = place[int(name)]
        else:
            return None
    return place


def escaped(name: str) -> str:
    """Return a key as one part of a path."""
    return name.replace(".", "\\.")


def display(value: float, style: str) -> str:
    """Return a number as text.

    Parameters
    ----------
    value : float
    style : str
        ``percent``, ``count``, ``plain``, or a unit, which gets an SI prefix.
    """
    if style == "percent":
        return f"{100 * value:.2f} %"
    if style == "count":
        return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    if style == "plain":
        return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"
    value = float(f"{value:.3g}")  # before a prefix is chosen: 999.9 µs is 1 ms
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{style}"
    return f"{value:.3g} {style}" if value else f"0 {style}"


@dataclass(frozen=True)
class Numbers:
    """Marks up numbers of one report."""

    report: Mapping[str, Any]

    def number(self, path: str, style: str = "plain") -> Markup:
        """Return the number at `path` as an element with its path and full value, a dash where there is none."""
        value = find(self.report, path)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return Markup(UNKNOWN)
        return Markup('<span class="n" data-path="{}" data-value="{}">{}</span>').format(
            path, json.dumps(value), display(value, style)
        )

    def interval(self, path: str, style: str = "plain") -> Markup:
        """Return nominal with low and high, or a dash."""
        if find(self.report, f"{path}.nominal") is None:
            return Markup(UNKNOWN)
        nominal, low, high = (self.number(f"{path}.{end}", style) for end in ("nominal", "low", "high"))
        return Markup('{} <span class="range">({} .. {})</span>').format(nominal, low, high)

    def corners(self, prefix: str, style: str = "plain") -> Markup:
        """Return an interval of a flat row, whose ends are ``PREFIX_nominal``, ``PREFIX_low`` and ``PREFIX_high``."""
        if find(self.report, f"{prefix}_nominal") is None:
            return Markup(UNKNOWN)
        nominal, low, high = (self.number(f"{prefix}_{end}", style) for end in ("nominal", "low", "high"))
        return Markup('{} <span class="range">({} .. {})</span>').format(nominal, low, high)
