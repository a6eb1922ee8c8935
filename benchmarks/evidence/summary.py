"""What a campaign shows: every seed, means, paired differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from evidence.pairing import Paired, pair, share_of_way, spread
from evidence.planning import Campaign
from evidence.running import cpu_seconds

NOTE = "RCA and TAR reconstructed from the abstract; the formulas are ours."
Result = Mapping[str, Any]


def summarize(campaign: Campaign, results: Sequence[Result], expected: int) -> dict[str, Any]:
    """Return the rows of a campaign, one for each student, backbone and arm, with what they rest on."""
    cells: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        cells.setdefault((result["student"], result["backbone"], result["arm"]), []).append(result)
    return {
        "title": campaign.title, "note": NOTE, "evaluated_on": campaign.evaluate, "baseline": campaign.baseline,
        "runs": {"done": len(results), "planned": expected},
        "rows": [_row(campaign, cells, *place) for place in _ordered(campaign, cells)],
        "comparisons": _comparisons(campaign, cells),
        "sources": sorted({result["sources"] for result in results}),
        "teachers": sorted({result["teacher"]["sha256"] for result in results}),
    }  # fmt: skip


def markdown(summary: Mapping[str, Any]) -> str:
    """Return a summary as a page's tables."""
    done, planned = summary["runs"]["done"], summary["runs"]["planned"]
    lines = [
        f"# {summary['title']}", "",
        f"{summary['note']} Accuracy in % on the {summary['evaluated_on']} images, read once, after the last step. "
        f"Differences are paired by seed with `{summary['baseline']}` of the same student and backbone; brackets are "
        f"95 % t intervals. {done} of {planned} runs.",
    ]  # fmt: skip
    for student in dict.fromkeys(row["student"] for row in summary["rows"]):
        lines += ["", f"## Student `{student}`", "",
                  "| backbone | arm | every seed | mean | sd | paired difference | noise to real | CPU min | images |",
                  "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
        lines += [_line(row) for row in summary["rows"] if row["student"] == student]
        compared = [row for row in summary["comparisons"] if row["student"] == student]
        if compared:
            lines += ["", "| backbone | compared | every difference | mean difference |", "|---|---|---|---|"]
            lines += [_compared(row) for row in compared]
    for what, name in (("sources", "states of the source code"), ("teachers", "teachers")):
        if len(summary[what]) > 1:
            lines += ["", f"**These runs are of {len(summary[what])} {name}: do not compare them.**"]
    return "\n".join(lines) + "\n"


def _comparisons(campaign: Campaign, cells: Mapping[tuple[str, str, str], list[Result]]) -> list[dict[str, Any]]:
    rows = []
    for student, backbone in dict.fromkeys(place[:2] for place in _ordered(campaign, cells)):
        for arm, against in campaign.comparisons:
            paired = pair(*(_by_seed(cells.get((student, backbone, name), [])) for name in (arm, against)))
            if paired is not None:
                rows.append({"student": student, "backbone": backbone, "arm": arm, "against": against,
                             "paired": _described(paired)})  # fmt: skip
    return rows


def _by_seed(runs: Sequence[Result]) -> dict[int, float]:
    return {run["seed"]: run["accuracy"] for run in sorted(runs, key=lambda run: run["seed"])}


def _ordered(campaign: Campaign, cells: Mapping[tuple[str, str, str], Any]) -> list[tuple[str, str, str]]:
    places = (["", *campaign.backbones], list(campaign.arms), list(campaign.students))
    return sorted(
        cells, key=lambda cell: (places[2].index(cell[0]), places[0].index(cell[1]), places[1].index(cell[2]))
    )


def _row(
    campaign: Campaign, cells: Mapping[tuple[str, str, str], list[Result]], student: str, backbone: str, arm: str
) -> dict[str, Any]:
    runs = sorted(cells[student, backbone, arm], key=lambda run: run["seed"])
    own = _by_seed(runs)
    paired = None
    if arm != campaign.baseline and backbone:
        paired = pair(own, _by_seed(cells.get((student, backbone, campaign.baseline), [])))
    mean = fmean(own.values())
    return {
        "student": student, "backbone": backbone, "arm": arm, "kind": runs[0]["kind"], "accuracy": own,
        "mean": mean, "sd": _number(spread(list(own.values()))), "paired": _described(paired),
        "way": _way(cells, student, mean),
        "cpu_minutes": fmean(cpu_seconds(run) for run in runs) / 60,
        "images": fmean(run["images"] for run in runs),
    }  # fmt: skip


def _way(cells: Mapping[tuple[str, str, str], list[Result]], student: str, mean: float) -> float | None:
    ends = []
    for kind in ("noise", "real"):
        found = [
            run["accuracy"]
            for runs in cells.values()
            for run in runs
            if (run["student"], run["kind"]) == (student, kind)
        ]
        if not found:
            return None
        ends.append(fmean(found))
    return _number(share_of_way(mean, *ends))


def _described(paired: Paired | None) -> dict[str, Any] | None:
    if paired is None:
        return None
    values = {name: _number(value) if isinstance(value, float) else value for name, value in asdict(paired).items()}
    return {**values, "resolved": paired.resolved}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _line(row: Mapping[str, Any]) -> str:
    seeds = ", ".join(f"{100 * value:.2f}" for value in row["accuracy"].values())
    sd = "-" if row["sd"] is None else f"{100 * row['sd']:.2f}"
    way = "-" if row["way"] is None else f"{row['way']:.1%}"
    cells = [row["backbone"] or "-", row["arm"], seeds, f"{100 * row['mean']:.2f}", sd, _difference(row["paired"]), way,
             f"{row['cpu_minutes']:.1f}", f"{row['images']:,.0f}"]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _compared(row: Mapping[str, Any]) -> str:
    each = ", ".join(f"{100 * value:+.2f}" for value in row["paired"]["differences"])
    names = f"{row['arm']} against {row['against']}"
    return "| " + " | ".join([row["backbone"] or "-", names, each, _difference(row["paired"])]) + " |"


def _difference(paired: Mapping[str, Any] | None) -> str:
    if paired is None:
        return "-"
    if paired["low"] is None:
        return f"{100 * paired['mean']:+.2f}"
    return f"{100 * paired['mean']:+.2f} [{100 * paired['low']:+.2f}, {100 * paired['high']:+.2f}]"
