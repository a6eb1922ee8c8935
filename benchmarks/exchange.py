"""Measure the ONNX models beside the fast engine and the float ANN: ``python benchmarks/exchange.py``.

Every system runs alone in a fresh process, on one thread, at several batches; models are compared with the reference
first. Without ``--model`` the network is one of the Fashion-MNIST student's topology with random weights: the figures
are those of its shape, decay and firing rate, not of a trained network.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from goals import Goal
from layout import format_table, rounded
from machine import describe_machine
from processes import ask_worker, end_workers_when_terminated

SCHEMA = 1
BATCHES = (1, 2, 4, 8, 64, 256)
QUICK_BATCHES = (1, 4)
#: Name, peer and what the request has for it.
SYSTEMS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("fast", "fast", {}),
    ("onnx_sequence", "onnx_snn", {"mode": "sequence"}),
    ("onnx_step", "onnx_snn", {"mode": "step"}),
    ("onnx_ann", "onnx_ann", {}),
)
NAMES = {
    "fast": "stars-deploy, fast engine",
    "onnx_sequence": "ONNX Runtime, whole sequence",
    "onnx_step": "ONNX Runtime, one step, T calls",
    "onnx_ann": "ONNX Runtime, float ANN",
}
#: Bounds that the project has set itself.
MOST_TIME, MOST_SIZE = 1.5, 1.3
Ask = Callable[..., dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 where a model computed something wrong, 2 where there is no network, else 0."""
    options = parse_options(arguments)
    with tempfile.TemporaryDirectory(prefix="stars-deploy-benchmark-") as folder:
        results = measure_all(options, folder)
    print(json.dumps(results, indent=2) if options.json else format_report(results))
    if "reason" in results:
        return 2
    return int(any(point.get("wrong") for points in results["systems"].values() for point in points))


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="a rough run of half a minute, of two batches")
    parser.add_argument("--model", metavar="DIR", type=Path, help="a built directory, in place of random weights")
    parser.add_argument("--decay", type=int, default=410, help="of random weights: lost at a timestep, in 1/4096; 410")
    parser.add_argument("--rate", type=float, default=0.1, help="of random weights: firing rate of each layer; 0.1")
    parser.add_argument("--seconds", type=float, help="wall time for each measurement [s]; 5, or 0.3 with --quick")
    options = parser.parse_args(arguments)
    if options.model is not None and not (options.model / "model.npz").is_file():
        parser.error(f"--model {options.model}: no model.npz in it")
    if not 0 <= options.decay <= 4096 or not 0 < options.rate < 1:
        parser.error("--decay is 0 to 4096, --rate between 0 and 1")
    if options.seconds is not None and not 0 < options.seconds <= 600:
        parser.error(f"--seconds {options.seconds}: more than 0, at most 600")
    return options


def measure_all(options: argparse.Namespace, folder: str, ask: Ask = ask_worker) -> dict[str, Any]:
    """Return the report; ``reason`` says why there is no network, where there is none."""
    machine = describe_machine()
    request: dict[str, Any] = {
        "seed": 20260101, "seconds": options.seconds or (0.3 if options.quick else 5.0), "folder": folder, "file": "",
        "model": str(options.model or ""), "timesteps": 4, "decay": options.decay, "rate": options.rate,
        "images": max(BATCHES), "memory": 2 << 30, "digest": False, "profile": False,
    }  # fmt: skip
    report(f"network: {options.model or 'random weights'}")
    network = ask("exchange_student", request)
    if "reason" in network:
        return {"schema": SCHEMA, "machine": machine, "reason": network["reason"]}
    request["timesteps"] = network["timesteps"]
    systems: dict[str, list[dict[str, Any]]] = {}
    for name, peer, extra in SYSTEMS:
        report(f"  {name}")
        batches = QUICK_BATCHES if options.quick else BATCHES
        skipped = network["ann"] if name == "onnx_ann" else ""
        systems[name] = [
            {"batch": batch, **({"reason": skipped} if skipped else ask(peer, {**request, **extra, "batch": batch}))}
            for batch in batches
        ]
    results = {
        "schema": SCHEMA,
        "machine": machine,
        "settings": {"seconds": request["seconds"], "decay": options.decay, "rate": options.rate, "threads": 1},
        "network": {
            **network,
            "source": "a built directory" if options.model else "random weights, the Fashion-MNIST student's topology",
        },
        "systems": systems,
        "best": {name: best_point(points) for name, points in systems.items()},
    }
    return {**results, "goals": judge(results)}


def report(text: str) -> None:
    """Say what is being measured."""
    print(text, file=sys.stderr, flush=True)


def best_point(points: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the point of the least CPU time a sample, if any was measured."""
    measured = [dict(point) for point in points if "cpu_seconds_per_sample" in point]
    return min(measured, key=lambda point: float(point["cpu_seconds_per_sample"]), default=None)


def judge(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every goal with what was measured for it."""
    best, network = results["best"], results["network"]
    fast, sequence = best["fast"], best["onnx_sequence"]
    ratio = size = None
    if fast and sequence:
        ratio = sequence["cpu_seconds_per_sample"] / fast["cpu_seconds_per_sample"]
    if sequence:
        size = sequence["bytes"] / network["weights"]
    goals = (
        Goal(work="ONNX sequence over the fast engine, CPU time a sample, best batch each", bound=MOST_TIME, unit="x",
             figure=ratio, at_most=True),
        Goal(work="model size over one byte a weight", bound=MOST_SIZE, unit="x", figure=size, at_most=True),
    )  # fmt: skip
    return [goal.described() for goal in goals]


def format_report(results: Mapping[str, Any]) -> str:
    """Return the report as text."""
    machine = results["machine"]
    head = f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}"
    if "reason" in results:
        return f"{head}\nno network: {results['reason']}"
    network = results["network"]
    lines = [head, f"{network['source']}, T {network['timesteps']}, one thread: {', '.join(network['layers'])}"]
    rows, reasons = [], []
    for name, points in results["systems"].items():
        least = (results["best"][name] or {}).get("batch")
        for point in points:
            if "reason" in point:
                reasons.append(f"{NAMES[name]}, batch {point['batch']}: {point['reason']}")
            else:
                mark = " *" if point["batch"] == least else ""
                figures = [rounded(1e3 * point["cpu_seconds_per_sample"]), rounded(point["samples_per_second"])]
                rows.append([NAMES[name] + mark, str(point["batch"]), *figures])
    lines += [format_table(["system (* best)", "batch", "CPU ms/sample", "samples/s"], rows), *reasons, ""]
    words = {True: "yes", False: "NO", None: "not measured"}
    judged = [
        [g["work"], f"at most {g['at most']}", rounded(g["figure"]), words[g["reached"]]] for g in results["goals"]
    ]
    return "\n".join([*lines, format_table(["goal", "bound", "measured", "reached"], judged)])


if __name__ == "__main__":
    end_workers_when_terminated()
    sys.exit(main())
