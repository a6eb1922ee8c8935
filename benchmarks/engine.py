"""Measure the fast engine beside Lava, norse, SpikingJelly and ONNX Runtime: ``python benchmarks/engine.py``.

See docs/benchmarks.md. Every system runs alone in a fresh process, on one thread unless said otherwise; what computes
something else than the reference is reported as wrong, without a speed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from campaign import SECTIONS, Campaign, Settings, open_campaign
from environments import EnvironmentFailedError, make_environment
from figures import complete_network, complete_points
from goals import judge
from layout import format_report
from machine import describe_machine
from networks import NETWORKS
from processes import end_workers_when_terminated

SCHEMA = 1
NAMES = (*(network.name for network in NETWORKS), *SECTIONS, "lif")
QUICK_SKIPPED = ("vgg:16-32-64-128", "width", "rate", "threads", "memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 where a system computed something wrong, else 0."""
    options = parse_options(arguments)
    try:
        settings = choose_settings(options)
    except EnvironmentFailedError as failure:
        print(f"--make-environment: {failure}", file=sys.stderr)
        return 2
    campaign, place = open_campaign(settings)
    with place:
        results = measure_all(campaign, chosen_names(options))
    print(json.dumps(results, indent=2) if options.json else format_report(results))
    return int(any(is_wrong(network) for network in results["networks"]))


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="a rough run of a minute or two, of fewer things")
    parser.add_argument("--only", metavar="NAME", action="append", choices=NAMES, help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=float, help="wall time for each measurement [s]; 5, or 0.5 with --quick")
    peer = parser.add_mutually_exclusive_group()
    peer.add_argument("--spikingjelly", metavar="PYTHON", default="", help="a Python that has SpikingJelly 2.0")
    peer.add_argument(
        "--make-environment", metavar="DIR", type=Path, help="install SpikingJelly into a virtual environment in DIR"
    )
    options = parser.parse_args(arguments)
    if options.seconds is not None and not 0 < options.seconds <= 600:
        parser.error(f"--seconds {options.seconds}: more than 0, at most 600")
    return options


def choose_settings(options: argparse.Namespace) -> Settings:
    """Return the settings that the options ask for; an environment is made where they ask for one.

    Raises
    ------
    EnvironmentFailedError
        If it cannot be made.
    """
    python = options.spikingjelly
    if options.make_environment:
        print(f"environment for SpikingJelly: {options.make_environment}", file=sys.stderr)
        python = make_environment(options.make_environment)
    seconds = options.seconds or (0.5 if options.quick else 5.0)
    return Settings(seconds=seconds, agree=1 if options.quick else 4, quick=options.quick, spikingjelly=python)


def chosen_names(options: argparse.Namespace) -> tuple[str, ...]:
    """Return what to measure, in order."""
    if options.only:
        return tuple(name for name in NAMES if name in options.only)
    return tuple(name for name in NAMES if not (options.quick and name in QUICK_SKIPPED))


def measure_all(campaign: Campaign, names: Sequence[str]) -> dict[str, Any]:
    """Measure `names` and return the report."""
    machine = describe_machine()
    gemm = campaign.gemm()
    measured = [campaign.network(network) for network in NETWORKS if network.name in names]
    sections = {name: campaign.points(name) for name in SECTIONS if name in names}
    kernel = campaign.kernel() if "lif" in names else {}
    after = campaign.gemm()
    if "best_gflops" in gemm and "best_gflops" in after:  # a clock that fell under load would flatter the shares
        gemm["best_gflops"] = max(gemm["best_gflops"], after["best_gflops"])
        gemm["after_gflops"] = after["best_gflops"]
    peak = gemm.get("best_gflops", float("nan"))
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": machine,
        "settings": {"seconds": campaign.settings.seconds, "seed": campaign.settings.seed, "threads": 1},
        "gemm": gemm,
        "networks": [complete_network(network, peak) for network in measured],
        "sections": {name: complete_points(points, peak) for name, points in sections.items()},
        "lif_kernel": kernel,
    }
    return {**results, "goals": judge(results)}


def is_wrong(network: dict[str, Any]) -> bool:
    """Whether a system computed something else than it should on a network."""
    return any(answer.get("wrong") for answer in network["systems"].values())


if __name__ == "__main__":
    end_workers_when_terminated()
    sys.exit(main())
