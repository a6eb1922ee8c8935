"""The tables that the command line prints after a build, a simulation and a comparison."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from stars_deploy.comparison import scored_by
from stars_deploy.console import engineering, interval, percent, table
from stars_deploy.latency import CAVEAT

#: An ANN's figure in a row of a comparison, as its nominal value; ends of intervals are left to the CSV.
_ANN_FIGURE = re.compile(r"ann_(?P<name>.+)_(?P<unit>j|s)(?:_nominal)?")
_UNITS = {"j": "J", "s": "s"}


def print_build(console: Console, report: Mapping[str, Any], folder: str) -> None:
    """Print what a build measured."""
    accuracy, fidelity = report["accuracy"], report["fidelity"]
    rows = [
        ["teacher (ANN)", percent(accuracy["teacher"]), "-"],
        ["student (norse, float)", percent(accuracy["student"]), percent(fidelity["student"])],
        ["student (chip integers)", percent(accuracy["quantized"]), percent(fidelity["quantized"])],
    ]
    data = report["evaluation"]["data"]
    where = f"accuracy on {report['evaluation']['samples']} test images of {data}" if data else "no evaluation set"
    console.print(
        table(
            f"{report['student']['spec']} student, {report['student']['method']}, T = {report['student']['timesteps']}",
            ["", "accuracy", "agrees with teacher"],
            rows,
            f"{where}; agreement on {fidelity['samples']} held-out synthetic images",
        )
    )
    print_verification(console, report["verification"])
    print_costs(console, report)
    for note in report["student"]["notes"]:
        console.print(note, markup=False)
    console.print(f"\nwritten to {folder}", markup=False)


def print_export(console: Console, content: Mapping[str, Any]) -> None:
    """Print what an export wrote, and what quantisation did to each layer."""
    if content["quantization"]["layers"]:
        print_quantization(console, content["quantization"]["layers"], content["calibrated_on"])
    print_verification(console, content["verification"])
    console.print(f"calibrated on {content['calibrated_on']}; written: {', '.join(content['files'])}", markup=False)


def print_quantization(console: Console, layers: Sequence[Mapping[str, Any]], images: str) -> None:
    """Print the scale of each population, what rounding its weights cost, and its firing rate before and after."""
    rows = [
        [
            layer["name"],
            f"{layer['scale']:.4g}",
            percent(layer["clipped"]),
            percent(layer["weight_error"]),
            percent(layer["current_error"]),
            f"{layer['rate']:.3f}" if layer["fires"] else "-",
            f"{layer['quantized_rate']:.3f}" if layer["fires"] else "-",
        ]
        for layer in layers
    ]
    console.print(
        table(
            f"quantisation, on {images}",
            ["layer", "scale [LSB]", "clipped", "weight error", "current error", "rate, float", "rate, integers"],
            rows,
            "errors relative (root mean square); rates in spikes/neuron/step, integers fed by the float network",
        )
    )


def print_verification(console: Console, verification: Mapping[str, Mapping[str, Any]]) -> None:
    """Print how each target compares with the integer reference."""
    rows = []
    for name, item in verification.items():
        result = "not run" if not item["ran"] else "identical" if item["passed"] else "DIFFERS"
        rows.append(
            [
                name,
                result,
                str(item["samples"]),
                f"{item['compared_spikes']:,}",
                str(item["mismatches"]),
                f"{item['seconds']:.1f} s" if item["ran"] else "-",
            ]
        )
    console.print(
        table(
            "verification: read back, executed, compared with the integer reference in every layer and timestep",
            ["target", "result", "samples", "spikes compared", "mismatches", "time"],
            rows,
        )
    )


def print_simulation(console: Console, summary: Mapping[str, Any]) -> None:
    """Print what a simulation measured, and where its spikes were written."""
    accuracy = "accuracy not known" if summary["accuracy"] is None else f"accuracy {percent(summary['accuracy'])}"
    console.print(
        f"{summary['model']}: {accuracy}, {summary['samples']} images of {summary['data']}, "
        f"T = {summary['timesteps']}, engine {summary['engine']}",
        markup=False,
    )
    print_costs(console, summary)
    if summary["overflow"]:
        console.print(f"not proven: {summary['overflow']}", markup=False)
    if "recorded" in summary:
        recorded = summary["recorded"]
        console.print(f"spikes of {', '.join(recorded['layers'])} written to {recorded['file']}", markup=False)


def print_costs(console: Console, summary: Mapping[str, Any]) -> None:
    """Print counts by layer, then latency and energy of one inference, with the ANN beside it."""
    counts, hardware = summary["counts"], summary["hardware"]
    rows = [
        [
            layer["name"],
            f"{layer['neurons']:,}",
            f"{layer['firing_rate']:.3f}",
            f"{layer['spikes']:,.0f}",
            f"{layer['synops']:,.0f}",
            f"{layer['neuron_updates']:,}",
        ]
        for layer in counts["per_layer"]
    ]
    total = counts["per_inference"]
    rows.append(
        ["total", "", "", f"{total['spikes']:,.0f}", f"{total['synops']:,.0f}", f"{total['neuron_updates']:,.0f}"]
    )
    columns = ["layer", "neurons", "spikes/neuron/step", "spikes", "synops", "neuron updates"]
    console.print(table(f"one inference, mean over {counts['samples']} images", columns, rows))
    latency, energy = summary["latency_s"], summary["energy_j"]
    binding, spread = latency["binding"], latency["spread"]
    lines = [
        ["latency to the first output", interval(latency["first_output"], "s")],
        ["time between two outputs", interval(latency["per_inference"], "s")],
        ["throughput", interval(latency["throughput"], "inferences/s")],
        ["energy, dynamic", interval(energy["dynamic"], "J")],
        ["energy, static", interval(energy["static"], "J")],
        ["energy, total", interval(energy["total"], "J")],
    ]
    console.print(
        table(
            f"estimate for {hardware['profile']}, not measured: {_number(hardware['cores'], 'core')}, "
            f"{_number(hardware['chips'], 'chip')}",
            ["", "nominal (low .. high)"],
            lines,
            f"{latency['caveat']}; bound by the {binding['term']} of {binding['layer']}; of {latency['samples']} "
            f"images each takes {engineering(spread['least'], 's')} to {engineering(spread['most'], 's')}",
        )
    )
    for note in hardware["notes"]:
        console.print(f"in doubt: {note}", markup=False)
    print_tiers(console, summary["ann"])


def print_tiers(console: Console, ann: Mapping[str, Any]) -> None:
    """Print the ANN beside the network: each tier by itself, and the published break-even rates beside ours."""
    rows = []
    for tier in ann["tiers"]:
        reason = tier["details"].get("reason") or ""
        rows.append(
            [
                tier["label"],
                "-" if tier["energy_j"] is None else interval(tier["energy_j"], "J"),
                _tier_latency(tier),
                percent(tier["accuracy"]),
                reason,
            ]
        )
    console.print(
        table(
            f"the ANN beside it: {engineering(ann['macs'], 'MAC')}, {ann['macs_of']}; different kinds, no ratios",
            ["tier", "energy", "latency", "accuracy", "not known because"],
            rows,
        )
    )
    for rate in (rate for rate in ann["break_even"] if rate["value"] is not None):
        console.print(f"break-even: {rate['statement']} ({rate['source']}); here {rate['ours']}: {rate['reason']}",
                      markup=False)  # fmt: skip


def _tier_latency(tier: Mapping[str, Any]) -> str:
    if tier["latency_s"] is None:
        return "-"
    text = interval(tier["latency_s"], "s")
    batch = tier["details"].get("batch", 1)
    if batch == 1:
        return text
    each = engineering(tier["details"]["seconds_per_inference"]["median"], "s")
    return f"{text} for {batch} images, {each} each"


def print_comparison(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one row a setting, the ANN beside them, and which settings are Pareto-best and why."""
    chips = list(dict.fromkeys(row["hardware"] for row in rows))
    measured = scored_by(rows)
    body = []
    for row in rows:
        latency = {corner: row[f"latency_first_output_s_{corner}"] for corner in ("nominal", "low", "high")}
        energy = {corner: row[f"energy_total_j_{corner}"] for corner in ("nominal", "low", "high")}
        body.append(
            [
                row["model"],
                *([row["hardware"]] if len(chips) > 1 else []),
                str(row["timesteps"]),
                str(row["weight_bits"]),
                percent(row[measured]),
                f"{row['spikes']:,.0f}",
                f"{row['synops']:,.0f}",
                interval(latency, "s"),
                engineering(row["energy_dynamic_j_nominal"], "J"),
                interval(energy, "J"),
                "*" if row["pareto"] else "",
            ]
        )
    columns = ["model", *(["chip"] if len(chips) > 1 else []), "T", "bits", measured]
    images = " or ".join(f"{count:,}" for count in sorted({row["samples"] for row in rows}))
    console.print(
        table(
            f"{measured} and counts on {images} images; latency and energy estimated for {', '.join(chips)}",
            [*columns, "spikes", "synops", "latency", "dynamic", "energy, total", "best"],
            body,
            f"* Pareto-best of its chip; nominal (low .. high); {CAVEAT}",
        )
    )
    for line in (*_anns(rows), *_reasons(rows), *_doubts(rows)):
        console.print(line, markup=False, soft_wrap=True)


def _anns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each ANN figure of each model, over its settings."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = [row for row in rows if row["model"] == model]
        figures = [f"{engineering(of_model[0]['ann_macs'], 'MAC')}"]
        for key in of_model[0]:
            found = _ANN_FIGURE.fullmatch(key)
            known = [row[key] for row in of_model if row[key] is not None]
            if found is None or not known:
                continue
            ends = [engineering(end, _UNITS[found["unit"]]) for end in (min(known), max(known))]
            size = of_model[0].get(f"ann_{found['name'].removesuffix('_latency')}_size")
            images = f" for {size} images" if size and found["unit"] == "s" else ""
            figures.append(f"{found['name'].replace('_', ' ')} {' .. '.join(dict.fromkeys(ends))}{images}")
        lines.append(f"the ANN beside {model}: {'; '.join(figures)}")
    return lines


def _reasons(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return why the best are the best, settings of one reason together."""
    chips = {row["hardware"] for row in rows}
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["pareto"] is not False:
            name = f"{row['model']} T = {row['timesteps']}, {row['weight_bits']} bits"
            reasons.setdefault(row["reason"], []).append(f"{name} on {row['hardware']}" if len(chips) > 1 else name)
    return [f"{'; '.join(names)}: {reason}" for reason, names in reasons.items()]


def _doubts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a reader must know, each once; how the integers came about is in the JSON and the CSV alone."""
    notes = dict.fromkeys(note for row in rows for note in row["note"].split("; "))
    return [f"note: {note}" for note in notes if note and not note.startswith(("as built", "quantised again"))]


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def print_check(console: Console, content: Mapping[str, Any]) -> None:
    """Print what a network takes of a chip, layer by layer, and what does not fit."""
    if "layers" in content:
        limits = content["utilisation"]
        rows = [
            [
                layer["name"],
                f"{layer['neurons']:,}",
                str(layer["cores"]),
                "x".join(str(length) for length in layer["tile"]),
                f"{layer['synaptic_words']:,}",
                f"{layer['axons_in']:,}",
                f"{layer['axons_out']:,}",
                layer["binding"].replace("_", " ") if layer["binding"] != "none" else "-",
            ]
            for layer in content["layers"]
        ]
        rows.append(
            [
                "limit of a core", f"{limits['neurons'][1]:,}", "", "",
                *(f"{limits[name][1]:,}" for name in ("synaptic_words", "axons_in", "axons_out")), "",
            ]
        )  # fmt: skip
        used = _number(content["cores"], "core")
        console.print(
            table(
                f"{content['subject']} on {content['hardware']}: {used} of {_number(content['chips'], 'chip')} "
                f"({limits['cores'][1]} cores)",
                ["layer", "neurons", "cores", "tile CxHxW", "words/core", "axons in", "axons out", "bound by"],
                rows,
                f"{content['kind']}; words, axons: of the fullest core of each layer",
            )
        )
    for problem in content["problems"]:
        console.print(f"does not fit: {_problem(problem)}", markup=False)
        console.print(f"  what to do: {problem['remedy']}", markup=False)
    for note in content.get("notes", []):
        console.print(f"in doubt: {note}", markup=False)
    if content["change_first"] is not None:
        first = content["change_first"]
        console.print(f"to change first: {first['layer']} ({first['reason']}): {first['remedy']}", markup=False)
    console.print("fits" if content["fits"] else "does not fit", style="bold")


def _problem(problem: Mapping[str, Any]) -> str:
    got, allowed = problem["got"], problem["allowed"]
    if problem["limit"] == "layers":
        return f"{problem['layer']}: {got}; allowed: {allowed}"
    return f"{problem['layer']}: {got:,} {problem['limit'].replace('_', ' ')} a core, at most {allowed:,}"
