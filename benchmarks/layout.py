"""The report as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from figures import best_ratios, growth, is_measured

NAMES = {
    "fast": "stars-deploy, fast engine",
    "reference": "stars-deploy, reference",
    "lava": "Lava",
    "norse_folded": "norse, T folded into the batch",
    "norse_stepping": "norse, stepping",
    "spikingjelly": "SpikingJelly, multi-step",
    "onnxruntime_ann": "ONNX Runtime, float ANN",
    "onnx_ann": "ONNX Runtime, float ANN",
}


def format_report(results: Mapping[str, Any]) -> str:
    """Return the whole report."""
    parts = [_machine(results)]
    parts += [_network(network) for network in results["networks"]]
    parts += [_section(name, points) for name, points in results["sections"].items()]
    if results["lif_kernel"]:
        parts.append(_kernel(results["lif_kernel"]))
    parts.append(_goals(results["goals"]))
    return "\n\n".join(parts)


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns, the first to the left, the others to the right."""
    table = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def rounded(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, without an exponent where it is of ordinary size."""
    if value is None:
        return "-"
    if not math.isfinite(value) or (value and not 1e-6 <= abs(value) < 1e7):
        return f"{value:.{digits - 1}e}"
    decimals = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, decimals)}f}"


def _machine(results: Mapping[str, Any]) -> str:
    machine, gemm = results["machine"], results["gemm"]
    peak = f"{gemm['best_gflops']:.1f} GFLOP/s (median {gemm['median_gflops']:.1f})" if "best_gflops" in gemm else "-"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, Python {machine['python']}\n"
        f"{versions}\nfloat32 GEMM peak of one thread: {peak}"
    )


def _network(network: Mapping[str, Any]) -> str:
    head = ["system", "samples/s", "CPU ms/sample", "spread", "ratio, CPU", "ratio, speed", "peak MB"]
    rows = [_system_row(name, answer, network["ratios"].get(name)) for name, answer in network["systems"].items()]
    title = f"{network['name']}: T {network['timesteps']}, batch {network['batch']}, one thread"
    lines = [title, format_table(head, [row for row in rows if row])]
    lines += [
        f"{NAMES[name]}: {answer['reason']}" for name, answer in network["systems"].items() if not is_measured(answer)
    ]
    lines += [
        f"{NAMES[name]} agrees with {answer['agrees_with']}"
        for name, answer in network["systems"].items()
        if "agrees_with" in answer
    ]
    if network["rates"]:
        shown = ", ".join(f"{name} {rate:.1%}" for name, rate in network["rates"].items())
        lines.append(f"firing rates: {shown}")
    if network["share_of_peak"] is not None:
        lines.append(f"dense-equivalent share of the GEMM peak: {network['share_of_peak']:.1%}")
    if network["systems"].get("fast", {}).get("layers"):
        lines += ["", _profile(network["systems"]["fast"]["layers"])]
    return "\n".join(lines)


def _profile(layers: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            layer["layer"],
            rounded(1e3 * layer["cpu_seconds_per_sample"]),
            rounded(layer["macs"] / 1e6),
            rounded(2e-9 * layer["macs"] / layer["cpu_seconds_per_sample"])
            if layer["cpu_seconds_per_sample"] > 0
            else "-",
        ]
        for layer in layers
    ]
    return format_table(["layer, fast engine", "CPU ms/sample", "million dense MACs", "dense GFLOP/s"], rows)


def _system_row(name: str, answer: Mapping[str, Any], ratios: Mapping[str, float] | None) -> list[str]:
    if not is_measured(answer):
        return []
    return [
        NAMES[name],
        rounded(answer["samples_per_second"]),
        rounded(1e3 * answer["cpu_seconds_per_sample"]),
        _spread(answer),
        "-" if ratios is None else f"{rounded(ratios['cpu'])}x",
        "-" if ratios is None else f"{rounded(ratios['speed'])}x",
        f"{answer['peak_mb']:.0f}",
    ]


def _spread(answer: Mapping[str, Any]) -> str:
    """Return the fastest and slowest run as percentages of the median's wall time."""
    wall = answer["wall"]
    return f"{wall['least'] / wall['median'] - 1:+.0%} {wall['most'] / wall['median'] - 1:+.0%}"


def _section(name: str, points: Sequence[Mapping[str, Any]]) -> str:
    head = [name, "network", "samples/s", "CPU ms/sample", "spread", "share of peak", "peak MB", "loaded MB"]
    rows = [
        [
            str(point["value"]), point["network"], rounded(point["samples_per_second"]),
            rounded(1e3 * point["cpu_seconds_per_sample"]), _spread(point), f"{point['share_of_peak']:.1%}",
            f"{point['peak_mb']:.0f}", f"{point['loaded_mb']:.0f}",
        ]
        for point in points
        if is_measured(point)
    ]  # fmt: skip
    lines = [f"fast engine over {name}", format_table(head, rows)]
    for point in points:
        if not is_measured(point):
            lines.append(f"{point['value']}: {point['reason']}")
        for peer, answer in point.get("peers", {}).items():
            shown = f"{rounded(answer['samples_per_second'])} samples/s" if is_measured(answer) else answer["reason"]
            lines.append(f"{name} {point['value']}, {NAMES[peer]}: {shown}")
    for peer, ratio in best_ratios(points).items():
        lines.append(f"samples a second, both at their best {name}: {rounded(ratio)}x {NAMES[peer]}")
    grown = growth(points) if name in ("batch", "timesteps") else None
    if grown:
        lines.append(
            f"from {grown['from']} to {grown['to']}: {rounded(grown['time'])} times the time, "
            f"linear would be {rounded(grown['linear'])}"
        )
    return "\n".join(lines)


def _kernel(kernel: Mapping[str, Any]) -> str:
    if "kernel" not in kernel:
        return f"LIF kernel: {kernel['reason']}"
    fast, plain = (kernel[name]["samples_per_second"] / 1e6 for name in ("kernel", "numpy"))
    return (
        f"LIF kernel without current leak: {fast:.0f} million neuron updates a second; NumPy of the reference: "
        f"{plain:.1f} million; ratio {fast / plain:.1f}x"
    )


def _goals(goals: Sequence[Mapping[str, Any]]) -> str:
    words = {True: "yes", False: "NO", None: "not measured"}
    rows = []
    for goal in goals:
        kind = "at most" if "at most" in goal else "at least"
        unit = "" if goal["unit"] == "%" else " "
        figure = "-" if goal["figure"] is None else f"{rounded(goal['figure'])}{unit}{goal['unit']}"
        rows.append([goal["work"], f"{kind} {rounded(goal[kind])}{unit}{goal['unit']}", figure, words[goal["reached"]]])
    return format_table(["goal", "bound", "measured", "reached"], rows)
