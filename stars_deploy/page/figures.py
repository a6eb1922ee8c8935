"""The plots of a page, as what plotly.js takes: traces and layouts, from the numbers of a report alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stars_deploy.comparison import scored_by
from stars_deploy.page.core_map import draw_cores
from stars_deploy.page.plotting import PALETTE, Figure, figure_of

PARTS = ("synapses", "neurons_active", "neurons_inactive", "spikes", "messages", "hops")

#: Ticks of a logarithmic axis at every doubling.
_OCTAVE = 0.30102999566
Rows = Sequence[Mapping[str, Any]]


def make_figures(report: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the plots that a report has numbers for, by the id of their place on the page."""
    report = as_words(report)
    rows = report.get("sweep", {}).get("rows", [])
    swept = {"score": _score(rows), "energy": _energy(rows), "pareto": _pareto(rows)} if rows else {}
    return {
        **swept,
        "parts": _parts(report["energy_j"]),
        "layers": _layers(report["energy_j"]),
        "rates": _rates(report["counts"]["per_layer"]),
        "activity": _activity(report["counts"]["per_layer"]),
        "latency": _latency(report["latency_s"]),
        "cores": draw_cores(report["hardware"]),
    }


def as_words(content: Any) -> Any:
    """Return `content` with every text in it escaped: plotly.js takes names for HTML, links included."""
    if isinstance(content, str):
        return content.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if isinstance(content, Mapping):
        return {key: as_words(value) for key, value in content.items()}
    return [as_words(value) for value in content] if isinstance(content, (list, tuple)) else content


def _whole_steps(count: int) -> Figure:
    """Return an axis of timesteps 1 to `count`."""
    return {"tick0": 1, "dtick": max(1, count // 8), "tickformat": "d"}


def _by_bits(rows: Rows) -> dict[int, list[Mapping[str, Any]]]:
    kinds: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(row["weight_bits"], []).append(row)
    return kinds


def _error(rows: Rows, key: str, scale: float) -> Figure:
    return _between(rows, f"{key}_nominal", f"{key}_low", f"{key}_high", scale)


def _between(rows: Rows, middle: str, low: str, high: str, scale: float) -> Figure:
    return {
        "type": "data",
        "symmetric": False,
        "array": [scale * (row[high] - row[middle]) for row in rows],
        "arrayminus": [scale * (row[middle] - row[low]) for row in rows],
        "thickness": 1.5,
        "width": 4,
    }


def _score(rows: Rows) -> Figure:
    measure = scored_by(rows)
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"{bits}-bit weights",
            "x": [str(row["timesteps"]) for row in kind],
            "y": [100 * row[measure] for row in kind],
            "error_y": _between(kind, measure, f"{measure}_low", f"{measure}_high", 100),
            "marker": {"size": 9},
            "hovertemplate": "T = %{x}: %{y:.2f} %<extra></extra>",
        }
        for bits, kind in _by_bits(rows).items()
    ]
    return figure_of(traces, "timesteps T", f"{measure} [%]", xaxis={"type": "category"}, yaxis={"rangemode": "normal"})


def _energy(rows: Rows) -> Figure:
    traces = []
    for bits, kind in _by_bits(rows).items():
        for key, name, dash in (("energy_total_j", "total", "solid"), ("energy_dynamic_j", "dynamic", "dot")):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"{name}, {bits} bits",
                    "x": [str(row["timesteps"]) for row in kind],
                    "y": [1e6 * row[f"{key}_nominal"] for row in kind],
                    "error_y": _error(kind, key, 1e6),
                    "line": {"dash": dash},
                    "marker": {"size": 8},
                    "hovertemplate": "T = %{x}: %{y:.3g} µJ<extra>" + name + "</extra>",
                }
            )
    return figure_of(traces, "timesteps T", "energy [µJ]", xaxis={"type": "category"})


def _pareto(rows: Rows) -> Figure:
    measure = scored_by(rows)
    traces = []
    for best, name, symbol in ((True, "Pareto-best", "star"), (False, "dominated", "circle-open")):
        kind = [row for row in rows if bool(row["pareto"]) is best]
        if not kind:
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": name,
                "x": [1e6 * row["energy_total_j_nominal"] for row in kind],
                "y": [100 * row[measure] for row in kind],
                "error_x": _error(kind, "energy_total_j", 1e6),
                "text": [f"T = {row['timesteps']}" for row in kind],
                "textposition": "bottom center",
                "customdata": [row["reason"] for row in kind],
                "marker": {"symbol": symbol, "size": 13},
                "hovertemplate": "%{text}: %{y:.2f} %, %{x:.3g} µJ<br>%{customdata}<extra></extra>",
            }
        )
    return figure_of(
        traces, "energy, total [µJ]", f"{measure} [%]",
        xaxis={"type": "log", "dtick": _OCTAVE, "tickformat": ".3~r"}, yaxis={"rangemode": "normal"},
    )  # fmt: skip


def _words(part: str) -> str:
    return part.replace("_", ", ")


def _parts(energy: Mapping[str, Any]) -> Figure:
    values = [energy["parts"][part] for part in PARTS]
    trace = {
        "type": "bar",
        "x": [_words(part) for part in PARTS],
        "y": [1e6 * value["nominal"] for value in values],
        "error_y": {
            "type": "data", "symmetric": False, "thickness": 1.5,
            "array": [1e6 * (value["high"] - value["nominal"]) for value in values],
            "arrayminus": [1e6 * (value["nominal"] - value["low"]) for value in values],
        },
        "marker": {"color": [PALETTE[index] for index in range(len(PARTS))]},
        "hovertemplate": "%{x}: %{y:.3g} µJ<extra></extra>",
    }  # fmt: skip
    return figure_of([trace], "", "dynamic energy [µJ]", showlegend=False)


def _layers(energy: Mapping[str, Any]) -> Figure:
    layers = energy["by_layer"]
    traces = [
        {
            "type": "bar",
            "name": _words(part),
            "x": [layer["name"] for layer in layers],
            "y": [1e6 * layer["parts"][part] for layer in layers],
            "marker": {"color": PALETTE[index]},
            "hovertemplate": "%{x}: %{y:.3g} µJ<extra>" + _words(part) + "</extra>",
        }
        for index, part in enumerate(PARTS)
        if any(layer["parts"][part] for layer in layers)
    ]
    return figure_of(traces, "", "dynamic energy [µJ]", barmode="stack", xaxis={"type": "category"})


def _rates(layers: Rows) -> Figure:
    trace = {
        "type": "bar",
        "x": [layer["name"] for layer in layers],
        "y": [layer["firing_rate"] for layer in layers],
        "marker": {"color": PALETTE[2]},
        "hovertemplate": "%{x}: %{y:.3f}<extra></extra>",
    }
    return figure_of([trace], "", "spikes / neuron / timestep", showlegend=False, xaxis={"type": "category"})


def _activity(layers: Rows) -> Figure:
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": layer["name"],
            "x": list(range(1, len(layer["spikes_per_step"]) + 1)),
            "y": layer["spikes_per_step"],
            "hovertemplate": "t = %{x}: %{y:.1f} spikes<extra>%{fullData.name}</extra>",
        }
        for layer in layers
        if any(layer["spikes_per_step"])
    ]
    return figure_of(
        traces,
        "timestep t",
        "spikes, mean over images",
        xaxis=_whole_steps(max(len(layer["spikes_per_step"]) for layer in layers)),
    )


def _latency(latency: Mapping[str, Any]) -> Figure:
    steps = latency["steps"]
    terms = list(dict.fromkeys(step["term"] for step in steps))
    traces = [
        {
            "type": "bar",
            "name": f"bound by {term}",
            "x": [index + 1 for index, step in enumerate(steps) if step["term"] == term],
            "y": [1e6 * step["seconds"] for step in steps if step["term"] == term],
            "customdata": [f"{step['layer']}, core {step['core']}" for step in steps if step["term"] == term],
            "hovertemplate": "step %{x}: %{y:.3g} µs, %{customdata}<extra>" + term + "</extra>",
        }
        for term in terms
    ]
    return figure_of(
        traces,
        "timestep of a busy chip",
        "time [µs]",
        xaxis=_whole_steps(len(steps)),
        barmode="overlay",
        showlegend=True,
    )


def make_raster(spikes: Mapping[str, Any]) -> Figure:
    """Return one sample's spikes: a mark for each, layers one above the other.

    Parameters
    ----------
    spikes : mapping of str to array of bool, (T, neurons)
    """
    traces, ticks, base = [], [], 0
    longest = 1
    for name, fired in ((as_words(name), fired) for name, fired in spikes.items()):
        steps, neurons = fired.nonzero()
        longest = max(longest, len(fired))
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": (steps + 1).tolist(),
                "y": (neurons + base).tolist(),
                "marker": {"symbol": "line-ew-open", "size": max(4, min(28, 240 // len(fired)))},
                "hovertemplate": "t = %{x}<extra>%{fullData.name}</extra>",
            }
        )
        ticks.append((base + fired.shape[1] / 2, name))
        base += fired.shape[1] + 4
    return figure_of(
        traces, "timestep t", "", showlegend=False, xaxis={**_whole_steps(longest), "range": [0.5, longest + 0.5]},
        yaxis={"tickvals": [place for place, _ in ticks], "ticktext": [name for _, name in ticks], "zeroline": False},
    )  # fmt: skip
