"""The tables that the command line prints after a build, a simulation and a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from stars_deploy.console import engineering, interval, percent, table


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
    latency, energy, ann = summary["latency_s"], summary["energy_j"], summary["ann"]
    lines = [
        ["latency to the first output", interval(latency["first_output"], "s")],
        ["energy, dynamic", interval(energy["dynamic"], "J")],
        ["energy, static", interval(energy["static"], "J")],
        ["energy, total", interval(energy["total"], "J")],
        [f"ANN: {engineering(ann['macs'], 'MAC')}, {ann['macs_of']}", engineering(ann["energy_j"], "J")],
    ]
    console.print(
        table(
            f"estimate for {hardware['profile']}, not measured: {_number(hardware['cores'], 'core')}, "
            f"{_number(hardware['chips'], 'chip')}",
            ["", "nominal (low .. high)"],
            lines,
            f"{latency['caveat']}; ANN: {ann['label']}",
        )
    )


def print_comparison(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one row a setting, the Pareto-best marked."""
    body = []
    for row in rows:
        latency = {corner: row[f"latency_first_output_s_{corner}"] for corner in ("nominal", "low", "high")}
        energy = {corner: row[f"energy_total_j_{corner}"] for corner in ("nominal", "low", "high")}
        score = row["accuracy"] if row["accuracy"] is not None else row["fidelity"]
        body.append(
            [
                row["model"],
                str(row["timesteps"]),
                str(row["weight_bits"]),
                percent(score),
                f"{row['spikes']:,.0f}",
                f"{row['synops']:,.0f}",
                interval(latency, "s"),
                engineering(row["energy_dynamic_j_nominal"], "J"),
                interval(energy, "J"),
                "*" if row["pareto"] else "",
            ]
        )
    measured = "accuracy" if rows and rows[0]["accuracy"] is not None else "fidelity"
    first = rows[0]
    console.print(
        table(
            f"accuracy and counts on {first['samples']} images; latency and energy estimated for {first['hardware']}",
            ["model", "T", "bits", measured, "spikes", "synops", "latency", "dynamic", "energy, total", "best"],
            body,
            "* no other setting has at least this score for at most this energy. "
            f"ANN: {engineering(first['ann_macs'], 'MAC')}, "
            f"{engineering(first['ann_energy_45nm_int8_arithmetic_j'], 'J')} (45 nm int8, arithmetic only)",
        )
    )


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
