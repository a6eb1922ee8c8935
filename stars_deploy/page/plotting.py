"""What all plots of a page share: colours, and how a plot is put together for plotly.js."""

from __future__ import annotations

from typing import Any

#: Okabe and Ito's colours, which those who see colours otherwise can tell apart.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8a8a8a", "#B8A800")

#: Traces or a layout, or both.
Figure = dict[str, Any]


def figure_of(traces: list[Figure], x: str, y: str, **layout: Any) -> Figure:
    """Return a plot of `traces` with the titles of its axes; `layout` adds to both."""
    axes: dict[str, Figure] = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, "rangemode": "tozero"}}
    for axis in ("xaxis", "yaxis"):
        axes[axis].update(layout.pop(axis, {}))
    return {"data": traces, "layout": {**axes, **layout}}
