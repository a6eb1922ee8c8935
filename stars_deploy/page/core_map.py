"""The mesh of the chips with a square for each core."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stars_deploy.page.plotting import PALETTE, Figure, figure_of


def draw_cores(hardware: Mapping[str, Any]) -> Figure:
    """Return the mesh with a square for each core; buttons choose what colours them."""
    cores, per_tile = hardware["core_map"], hardware["cores_per_tile"]
    side = math.ceil(math.sqrt(per_tile))
    columns, rows = hardware["mesh"]
    seen: dict[tuple[int, int], int] = {}
    x, y, hover = [], [], []
    for core in cores:
        place = (core["x"], core["y"])
        slot = seen.get(place, 0)
        seen[place] = slot + 1
        x.append(core["x"] + (slot % side + 0.5) / side - 0.5)
        y.append(core["y"] + (slot // side + 0.5) / side - 0.5)
        hover.append(_core_words(core, hardware["utilisation"]))
    names = list(dict.fromkeys(core["layer"] for core in cores))
    choices = {
        "layer": [names.index(core["layer"]) for core in cores],
        "synops": [core["synops"] for core in cores],
        "neurons": [core["neurons"] for core in cores],
        "time": [1e6 * max(core["seconds_per_step"]) for core in cores],
    }
    titles = {"layer": "layer", "synops": "synops", "neurons": "neurons", "time": "busiest [µs]"}
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": x,
        "y": y,
        "text": hover,
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "symbol": "square", "size": 16, "color": choices["layer"], "colorscale": _steps(len(names)),
            "cmin": -0.5, "cmax": len(names) - 0.5,
            "colorbar": {"title": {"text": "layer"}, "tickvals": list(range(len(names))), "ticktext": names},
        },
    }  # fmt: skip
    buttons = [
        {"label": titles[name], "method": "restyle", "args": [_colouring(name, values, titles[name], names)]}
        for name, values in choices.items()
    ]
    width = columns * hardware["chips"]
    tiles = [
        {
            "type": "rect", "x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5,
            "line": {"width": 1}, "layer": "below",
        }
        for column in range(width)
        for row in range(rows)
    ]  # fmt: skip
    tiles += [
        {
            "type": "rect", "x0": chip * columns - 0.5, "x1": (chip + 1) * columns - 0.5, "y0": -0.5, "y1": rows - 0.5,
            "line": {"width": 3}, "layer": "below",
        }
        for chip in range(hardware["chips"])
    ]  # fmt: skip
    return figure_of(
        [trace], "mesh, column", "row", shapes=tiles, showlegend=False, meta={"across": width * side},
        xaxis={"range": [-0.6, width - 0.4], "showgrid": False, "zeroline": False, "dtick": 1 if width < 20 else 8},
        yaxis={"range": [rows - 0.4, -0.6], "showgrid": False, "zeroline": False, "dtick": 1, "rangemode": "normal"},
        updatemenus=[
            {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 1.22, "buttons": buttons}
        ],
    )  # fmt: skip


def _core_words(core: Mapping[str, Any], utilisation: Mapping[str, Any]) -> str:
    """Return what a core holds, beside what it could, and what it does."""
    limited = {"neurons": "neurons", "synaptic_words": "words", "axons_in": "axons in", "axons_out": "axons out"}
    held = [f"{core[key]:,} of {utilisation[key][1]:,.0f} {words}" for key, words in limited.items()]
    return (
        f"core {core['core']} on chip {core['chip']}: {core['layer']}<br>{'<br>'.join(held)}<br>"
        f"{core['synops']:,.0f} synops, busiest step {1e6 * max(core['seconds_per_step']):.3g} µs"
    )


def _steps(count: int) -> list[list[Any]]:
    """Return a colour scale of `count` even steps."""
    scale: list[list[Any]] = []
    for index in range(count):
        colour = PALETTE[index % len(PALETTE)]
        scale += [[index / count, colour], [(index + 1) / count, colour]]
    return scale


def _colouring(name: str, values: list[Any], title: str, names: list[str]) -> Figure:
    by_layer = name == "layer"
    bar = {"title": {"text": title}, **({"tickvals": list(range(len(names))), "ticktext": names} if by_layer else {})}
    return {
        "marker.color": [values],
        "marker.colorscale": [_steps(len(names))] if by_layer else ["Viridis"],
        "marker.cmin": [-0.5 if by_layer else 0],
        "marker.cmax": [len(names) - 0.5 if by_layer else max(values) or 1],
        "marker.colorbar": [bar],
    }
