"""A comparison as a picture: score over timesteps, and for each chip energy over timesteps and the Pareto front.

What is drawn is what :func:`stars_deploy.comparison.tabulate_rows` tells; nothing is computed anew but the sampling
interval of an accuracy.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stars_deploy.artifacts import written_whole
from stars_deploy.comparison import scored_by
from stars_deploy.errors import ConfigError
from stars_deploy.latency import CAVEAT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

#: Told apart with any colour vision (M. Okabe, K. Ito, "Color Universal Design", 2008), yellow left out on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
#: And without colour: a shape each, in another rhythm than the colours, so that 35 series differ.
MARKERS = ("o", "s", "^", "D", "v")
#: Where a number may stand beside its point [1/72 inch], the best place first: above and to the left of a point of the
#: front there is, by its meaning, no other point.
_OFFSETS = ((-8, 8), (0, 11), (-13, 3), (8, -9), (0, -12), (13, -3), (-16, 13), (13, -14), (-8, 20), (8, -21))
#: Most series whose bands can be told apart; more of them get bars.
_MOST_BANDS = 3
#: From one series to the next on the axis of timesteps, where their bars would cover each other.
_ASIDE = 1.025
_CAPTION = (
    f"Energy is estimated, not measured: {CAVEAT}; bands and bars from the low to the high end of every constant."
)

#: What the axes call the scores.
_NAMES = {"accuracy": "accuracy", "fidelity": "fidelity (agreement with the teacher)"}

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Series:
    """The rows of one model and width on all chips, and how they are drawn."""

    label: str
    rows: tuple[Row, ...]
    colour: str
    marker: str

    def on(self, hardware: str) -> list[Row]:
        """Return the rows of one chip, by timesteps."""
        rows = [row for row in self.rows if row["hardware"] == hardware]
        return sorted(rows, key=lambda row: int(row["timesteps"]))


def draw_comparison(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Write the picture of `rows` to `path` as PNG, whole or not at all.

    Parameters
    ----------
    rows : sequence of mapping
        See :func:`stars_deploy.comparison.tabulate_rows`.
    path : path

    Raises
    ------
    ConfigError
        If there are no rows.
    ArtifactError
        If the file cannot be written.
    """
    if not rows:
        raise ConfigError("rows", "none", "at least one setting")
    figure = make_figure(rows)
    with written_whole(path) as draft:
        figure.savefig(draft, format="png", dpi=150)


def make_figure(rows: Sequence[Row]) -> Figure:
    """Return the picture of `rows`: the score to the left, and a line of two panels for each chip."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chips = list(dict.fromkeys(str(row["hardware"]) for row in rows))
    series, score = _series(rows), scored_by(rows)
    figure = Figure(figsize=(15, 1.2 + 4.3 * len(chips)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(chips), 3)
    scores = figure.add_subplot(grid[0, 0])  # one for all chips: it does not depend on them
    _draw_scores(scores, series, chips[0], score)
    fronts = []
    for index, chip in enumerate(chips):
        _draw_energies(figure.add_subplot(grid[index, 1]), series, chip)
        fronts.append(figure.add_subplot(grid[index, 2]))
        _draw_front(fronts[-1], series, chip, score)
    handles, labels = scores.get_legend_handles_labels()
    if len(chips) == 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(series)), frameon=False)
    else:
        below = figure.add_subplot(grid[1:, 0])
        below.set_axis_off()
        below.legend(handles, labels, loc="upper left", frameon=False)
    figure.suptitle(_CAPTION, fontsize=9, color="0.25")
    figure.draw_without_rendering()  # settles where everything is
    for axes, chip in zip(fronts, chips, strict=True):
        _label_front(axes, series, chip, score)
    return figure


def _draw_scores(axes: Axes, series: Sequence[_Series], chip: str, score: str) -> None:
    """Draw accuracy or fidelity over timesteps, with the interval that so few images leave open."""
    samples = set()
    for index, one in enumerate(series):
        rows = [row for row in one.on(chip) if row[score] is not None]
        steps = _aside([row["timesteps"] for row in rows], index, len(series))
        shares = [row[score] for row in rows]
        below = [row[score] - row[f"{score}_low"] for row in rows]
        above = [row[f"{score}_high"] - row[score] for row in rows]
        axes.errorbar(
            steps, shares, yerr=(below, above), label=one.label, color=one.colour, marker=one.marker, markersize=6,
            linewidth=1.8, elinewidth=0.8, capsize=3,
        )  # fmt: skip
        samples |= {row["samples"] for row in rows}
    images = " or ".join(f"{count:,}" for count in sorted(samples))
    axes.set_title(f"{score} on {images} images (bars: 95 % sampling interval)", fontsize=10)
    axes.set_ylabel(_NAMES[score])
    _dress(axes, [row for one in series for row in one.on(chip)])
    axes.yaxis.set_major_formatter(_percent())


def _draw_energies(axes: Axes, series: Sequence[_Series], chip: str) -> None:
    """Draw the total energy over timesteps, nominal with its band."""
    for index, one in enumerate(series):
        rows = one.on(chip)
        steps = [row["timesteps"] for row in rows]
        low, nominal, high = (
            [row[f"energy_total_j_{corner}"] for row in rows] for corner in ("low", "nominal", "high")
        )
        if len(series) <= _MOST_BANDS and len(rows) > 1:  # a band of one point has no width
            axes.fill_between(steps, low, high, color=one.colour, alpha=0.13, linewidth=0)
            for edge in (low, high):
                axes.plot(steps, edge, color=one.colour, alpha=0.45, linewidth=0.8)
        else:
            steps = _aside(steps, index, len(series))
            axes.vlines(steps, low, high, color=one.colour, alpha=0.6, linewidth=0.8)
        axes.plot(steps, nominal, color=one.colour, marker=one.marker, markersize=6, linewidth=1.8)
    axes.set_title(f"energy estimated for {chip}", fontsize=10)
    axes.set_ylabel("total energy for one inference")
    rows = [row for one in series for row in one.on(chip)]
    _dress(axes, rows)
    _scale_joules(axes, "y", rows)


def _draw_front(axes: Axes, series: Sequence[_Series], chip: str, score: str) -> None:
    """Draw score against energy: filled and named where no other setting of this chip is at least as good in both."""
    axes.set_title(f"Pareto-best: filled, with T; estimated for {chip}", fontsize=10)
    known = [(one, row) for one in series for row in one.on(chip) if row[score] is not None]
    if not known:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "neither accuracy nor fidelity is known", transform=axes.transAxes, ha="center")
        return
    for one, row in known:
        energy, low, high = (row[f"energy_total_j_{corner}"] for corner in ("nominal", "low", "high"))
        axes.errorbar(
            energy, row[score], xerr=[[energy - low], [high - energy]], color=one.colour, marker=one.marker,
            markersize=8 if row["pareto"] else 5, markerfacecolor=one.colour if row["pareto"] else "white",
            elinewidth=0.8, alpha=1.0 if row["pareto"] else 0.5, capsize=2, zorder=3 if row["pareto"] else 2,
        )  # fmt: skip
    best = sorted((row["energy_total_j_nominal"], row[score]) for _, row in known if row["pareto"])
    axes.step([point[0] for point in best], [point[1] for point in best], where="post", color="0.6", linewidth=1)
    axes.margins(0.08, 0.12)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))  # an automatic range goes beyond what a share can be
    axes.set_ylabel(_NAMES[score])
    axes.set_xlabel("total energy for one inference")
    axes.grid(alpha=0.25)
    axes.yaxis.set_major_formatter(_percent())
    _scale_joules(axes, "x", [row for _, row in known])


def _label_front(axes: Axes, series: Sequence[_Series], chip: str, score: str) -> None:
    """Write T beside each Pareto-best point, where it covers neither a point nor another number if there is a place."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    known = [(one, row) for one in series for row in one.on(chip) if row[score] is not None]
    places = axes.transData.transform([(row["energy_total_j_nominal"], row[score]) for _, row in known] or [(1, 1)])
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    for (one, row), (x, y) in zip(known, places, strict=False):
        if not row["pareto"]:
            continue
        label = axes.annotate(
            str(row["timesteps"]), (row["energy_total_j_nominal"], row[score]), textcoords="offset points",
            xytext=_OFFSETS[0], fontsize=9, color=one.colour, ha="center", va="center", annotation_clip=True,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip
        size = label.get_window_extent()
        scale = axes.figure.dpi / 72  # type: ignore[union-attr]  # it has a figure: it was drawn
        for right, up in _OFFSETS:
            centre_x, centre_y = x + right * scale, y + up * scale
            box = Bbox.from_bounds(centre_x - size.width / 2, centre_y - size.height / 2, size.width, size.height)
            if not any(box.overlaps(other) for other in taken):
                label.set_position((right, up))
                taken.append(box)
                break
        else:
            taken.append(size)


def _aside(steps: Sequence[int], index: int, series: int) -> list[float]:
    """Return timesteps moved a little, so that the bars of several series at one T stand beside each other."""
    return [number * _ASIDE ** (index - (series - 1) / 2) for number in steps]


def _dress(axes: Axes, rows: Sequence[Row]) -> None:
    """Give the axis of timesteps a tick for each, at equal ratios."""
    steps = sorted({int(row["timesteps"]) for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(number) for number in steps])
    axes.minorticks_off()
    axes.set_xlabel("timesteps T")
    axes.grid(alpha=0.25)


def _scale_joules(axes: Axes, direction: Literal["x", "y"], rows: Sequence[Row]) -> None:
    """Give the axis of energies equal ratios, unless a profile makes one zero."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator

    axis = axes.xaxis if direction == "x" else axes.yaxis
    if min(row["energy_total_j_low"] for row in rows) > 0:
        axes.set(**{f"{direction}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(EngFormatter(unit="J"))


def _percent() -> Formatter:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, symbol=" %")


def _series(rows: Sequence[Row]) -> list[_Series]:
    several = len({row["weight_bits"] for row in rows}) > 1
    groups: dict[str, list[Row]] = {}
    for row in rows:
        label = f"{row['model']}, {row['weight_bits']} bits" if several else str(row["model"])
        groups.setdefault(label, []).append(row)
    return [
        _Series(
            label=textwrap.fill(label, 44),
            rows=tuple(group),
            colour=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
        )
        for index, (label, group) in enumerate(groups.items())
    ]
