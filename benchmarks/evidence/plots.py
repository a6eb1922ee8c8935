"""The pictures of a campaign."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from evidence.summary import NOTE
from stars_deploy.artifacts import written_whole

INCHES_A_ROW = 0.32
TITLE_COLUMNS = 110
COLOURS = ("#1f4e79", "#c55a11", "#548235", "#7f6000", "#7030a0")


def draw(summary: Mapping[str, Any], results: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write the plots that the results allow, and return their files."""
    files = [_accuracies(summary, folder / "accuracy.png")]
    compared = _compared(summary)
    if compared:
        files.append(_differences(summary, compared, folder / "differences.png"))
    if any("tail_error" in result["mechanism"] for result in results):
        files.append(_tails(summary, results, folder / "tails.png"))
    return files


def _accuracies(summary: Mapping[str, Any], file: Path) -> Path:
    """Every seed a point, the mean a line."""
    rows = summary["rows"][::-1]
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + INCHES_A_ROW * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        values = [100 * value for value in row["accuracy"].values()]
        axes.plot(values, [place] * len(values), "o", color=_colour(summary, row), alpha=0.75, markersize=5)
        axes.plot([100 * row["mean"]] * 2, [place - 0.35, place + 0.35], color=_colour(summary, row), linewidth=2)
    return _finished(figure, axes, rows, f"accuracy [%] on the {summary['evaluated_on']} images", summary, file)


def _compared(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what has an interval, from below; an ANN is further from the baseline than any arm from another."""
    rows = [row for row in summary["rows"] if row["kind"] != "ann"]
    rows += [{**row, "arm": f"{row['arm']} against {row['against']}"} for row in summary["comparisons"]]
    return [row for row in rows[::-1] if row["paired"] and row["paired"]["low"] is not None]


def _differences(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], file: Path) -> Path:
    """Paired differences, from the baseline or as compared, with their 95 % t intervals."""
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + INCHES_A_ROW * len(rows)), layout="constrained")
    axes.axvline(0, color="gray", linewidth=1)
    for place, row in enumerate(rows):
        paired = row["paired"]
        colour = _colour(summary, row)
        axes.plot([100 * paired["low"], 100 * paired["high"]], [place] * 2, color=colour, linewidth=2)
        axes.plot([100 * value for value in paired["differences"]], [place] * len(paired["differences"]), "o",
                  color=colour, alpha=0.6, markersize=5)  # fmt: skip
        axes.plot(100 * paired["mean"], place, "|", color=colour, markersize=14, markeredgewidth=2)
    label = f"paired difference [points] from `{summary['baseline']}`, or as named; line: 95 % t interval"
    return _finished(figure, axes, rows, label, summary, file)


def _tails(summary: Mapping[str, Any], results: Sequence[Mapping[str, Any]], file: Path) -> Path:
    """How far the tails of synthetic images are from those of real ones, by arm and layer."""
    found: dict[tuple[str, str, str], list[list[float]]] = {}
    for result in results:
        if "tail_error" in result["mechanism"]:
            place = (result["student"], result["backbone"], result["arm"])
            found.setdefault(place, []).append(result["mechanism"]["tail_error"]["boundary"])
    rows = [row for row in summary["rows"][::-1] if (row["student"], row["backbone"], row["arm"]) in found]
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + INCHES_A_ROW * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        layers = list(zip(*found[row["student"], row["backbone"], row["arm"]], strict=True))
        for layer, values in enumerate(layers):
            axes.plot(
                fmean(values), place, marker=f"${layer + 1}$", color=_colour(summary, row), markersize=7, linestyle=""
            )
    label = "error of the shares beyond the ReLU boundaries, synthetic against real, by layer"
    return _finished(figure, axes, rows, label, summary, file)


def _finished(figure: Any, axes: Any, rows: Sequence[Any], label: str, summary: Mapping[str, Any], file: Path) -> Path:
    several = len({row["student"] for row in rows}) > 1
    names = [" ".join(filter(None, [row["student"] if several else "", row["backbone"], row["arm"]])) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="x", alpha=0.3)
    # Of the whole figure: the axes are narrower by the longest name.
    figure.supxlabel(label, fontsize=10)
    figure.suptitle("\n".join([*textwrap.wrap(summary["title"], TITLE_COLUMNS), NOTE]), fontsize=9)
    with written_whole(file) as draft:
        figure.savefig(draft, format="png", dpi=110)
    pyplot.close(figure)
    return file


def _colour(summary: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    groups = list(dict.fromkeys((one["student"], one["backbone"]) for one in summary["rows"]))
    return COLOURS[groups.index((row["student"], row["backbone"])) % len(COLOURS)]
