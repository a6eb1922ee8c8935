"""Measure the student's training step and the making of images: ``python benchmarks/distill.py --json``.

See docs/benchmarks.md. Every system runs alone in a fresh process, on one thread, on the same network, timesteps and
batch; one that computes something else is reported as wrong, without a speed. What the product asks of the C library's
allocator (stars_deploy/pipeline/runtime.py) every system is given, so that none wins by it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import agreement
from campaign import agreed
from environments import EnvironmentFailedError, make_environment
from goals import Goal
from layout import format_table, rounded
from machine import describe_machine
from processes import ask_worker, end_workers_when_terminated

from stars_deploy.synthesis.registry import backbone_names

Answer = dict[str, Any]
SEED = 20260101
TIMESTEPS = 4
BATCH = 64
#: Topology and input of the networks whose training step is measured.
NETWORKS = {"vgg:16-32-64": (1, 28, 28), "vgg:16-128": (3, 32, 32)}
#: Teachers whose images are made, with the student beside each.
TEACHERS = {"digits": "vgg:16-32", "vgg:32-64-128": "vgg:16-32-64"}
SYSTEMS = {
    "train_student": "stars-deploy",
    "train_norse": "norse, stepping",
    "train_spikingjelly": "SpikingJelly, multi-step",
    "train_ann": "ANN of the same topology",
}
#: Largest difference of logits that counts as rounding; a spike more or less is of another size.
TOLERANCE = 1e-3
#: What :func:`stars_deploy.pipeline.runtime.keep_freed_memory` sets, in the words of glibc's tunables.
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
SECTIONS = ("step", "synthesis", "shares")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """How to measure, and with which SpikingJelly."""

    seconds: float
    spikingjelly: str
    environment: Mapping[str, str] = field(default_factory=lambda: KEPT_MEMORY)
    ask: Callable[..., Answer] = ask_worker

    def run(self, peer: str, request: Mapping[str, Any]) -> Answer:
        """Measure one system in a fresh process."""
        print(f"  {peer} {request.get('topology', request.get('backbone', ''))}", file=sys.stderr, flush=True)
        python = self.spikingjelly if peer == "train_spikingjelly" else sys.executable
        if not python:
            return {"reason": "no environment for it: give --spikingjelly PYTHON or --make-environment DIR"}
        asked = {"seed": SEED, "timesteps": TIMESTEPS, "batch": BATCH, "seconds": self.seconds, **request}
        return self.ask(peer, asked, python=python, environment=self.environment)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 where a system computed something wrong, 2 for wrong input, else 0."""
    options = parse_options(arguments)
    python = options.spikingjelly
    try:
        if options.make_environment:
            python = make_environment(options.make_environment)
    except EnvironmentFailedError as failure:
        print(f"--make-environment: {failure}", file=sys.stderr)
        return 2
    environment = {} if options.default_allocator else KEPT_MEMORY
    bench = Bench(seconds=options.seconds, spikingjelly=python, environment=environment)
    results = measure_all(bench, options.only or SECTIONS)
    print(json.dumps(results, indent=2) if options.json else format_results(results))
    return int(any(answer.get("wrong") for network in results["step"].values() for answer in network.values()))


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="a part of it; repeat for several")
    parser.add_argument("--seconds", type=float, default=10.0, help="wall time for each measurement [s] (default 10)")
    parser.add_argument("--default-allocator", action="store_true", help="leave the C library's allocator as it is")
    peer = parser.add_mutually_exclusive_group()
    peer.add_argument("--spikingjelly", metavar="PYTHON", default="", help="a Python that has SpikingJelly 2.0")
    peer.add_argument("--make-environment", metavar="DIR", type=Path, help="install SpikingJelly into DIR")
    options = parser.parse_args(arguments)
    if not 0 < options.seconds <= 600:
        parser.error(f"--seconds {options.seconds}: more than 0, at most 600")
    return options


def measure_all(bench: Bench, sections: Sequence[str]) -> dict[str, Any]:
    """Measure the parts asked for, and judge them."""
    results: dict[str, Any] = {
        "schema": 1, "machine": describe_machine(), "timesteps": TIMESTEPS, "batch": BATCH, "seconds": bench.seconds,
        "environment": dict(bench.environment),
        "step": {name: measure_step(bench, name) for name in NETWORKS} if "step" in sections else {},
        "synthesis": measure_synthesis(bench) if "synthesis" in sections else {},
        "shares": measure_shares(bench) if "shares" in sections else {},
    }  # fmt: skip
    return {**results, "goals": [goal.described() for goal in judge(results["step"])]}


def measure_step(bench: Bench, name: str) -> dict[str, Answer]:
    """Measure every system on one network; the spiking ones must say the same as ours before they are trained."""
    with tempfile.TemporaryDirectory(prefix="stars-deploy-benchmark-") as folder:
        request = {"topology": name, "shape": NETWORKS[name], "folder": folder}
        made = bench.run("train_network", request)
        if "reason" in made:
            return {system: {"reason": made["reason"]} for system in SYSTEMS}
        answers = {system: bench.run(system, request) for system in SYSTEMS}
    ours = answers["train_student"].get("logits", [])
    for peer in ("train_norse", "train_spikingjelly"):
        if "logits" in answers[peer]:
            difference = agreement.compare_logits(ours, answers[peer]["logits"], TOLERANCE)
            answers[peer] = agreed(answers[peer], difference, "our student's logits, up to rounding")
    return {name: {key: value for key, value in one.items() if key != "logits"} for name, one in answers.items()}


def measure_synthesis(bench: Bench) -> dict[str, dict[str, Answer]]:
    """Measure every backbone that can be had here, for each teacher."""
    return {
        teacher: {
            backbone: bench.run("synthesis", {"teacher": teacher, "student": student, "backbone": backbone})
            for backbone in backbone_names()
        }
        for teacher, student in TEACHERS.items()
    }


def measure_shares(bench: Bench) -> dict[str, Answer]:
    """Measure where a distillation with ``fast`` spends its time."""
    request = {"backbone": "fast", "shares": True}
    return {
        teacher: bench.run("synthesis", {**request, "teacher": teacher, "student": student})
        for teacher, student in TEACHERS.items()
    }


def judge(step: Mapping[str, Mapping[str, Answer]]) -> list[Goal]:
    """Return the goals of the student's step."""
    goals = []
    for name, answers in step.items():
        speeds = {system: answer.get("samples_per_second") for system, answer in answers.items()}
        ours, ann = speeds["train_student"], speeds["train_ann"]
        peers = [speeds[peer] for peer in ("train_norse", "train_spikingjelly")]
        faster = max(peers) if all(peers) else None
        goals += [
            Goal(work=f"{name}: training images a second against the faster of norse stepping and SpikingJelly",
                 bound=1.3, unit="x", figure=ours / faster if ours and faster else None),
            Goal(work=f"{name}: time of a step over that of the ANN, T = {TIMESTEPS}", bound=TIMESTEPS + 1, unit="x",
                 figure=ann / ours if ours and ann else None, at_most=True),
        ]  # fmt: skip
    return goals


def format_results(results: Mapping[str, Any]) -> str:
    """Return the report as text."""
    parts = []
    for name, answers in results["step"].items():
        rows = [[SYSTEMS[system], *_speed(answer)] for system, answer in answers.items()]
        parts.append(format_table([f"{name}, T {TIMESTEPS}, batch {BATCH}", "images/s", "ms a step"], rows))
    for teacher, backbones in results["synthesis"].items():
        rows = [[name, _speed(answer)[0]] for name, answer in backbones.items()]
        parts.append(format_table([f"images of the teacher {teacher}", "images/s"], rows))
    for teacher, answer in results["shares"].items():
        rows = [[part, f"{share:.1%}"] for part, share in answer.get("shares", {}).items()]
        parts.append(format_table([f"where the time goes: fast, teacher {teacher}", "share"], rows))
    for goal in results["goals"]:
        bound = f"at most {goal['at most']:g}" if "at most" in goal else f"at least {goal['at least']:g}"
        verdict = {True: "reached", False: "NOT reached", None: "not measured"}[goal["reached"]]
        parts.append(f"{goal['work']}: {rounded(goal['figure'])} {goal['unit']} ({bound}): {verdict}")
    return "\n\n".join(parts)


def _speed(answer: Answer) -> list[str]:
    if "samples_per_second" not in answer:
        return [str(answer.get("reason", "-")), "-"]
    return [rounded(answer["samples_per_second"]), rounded(1000 * answer["wall"]["median"])]


if __name__ == "__main__":
    end_workers_when_terminated()
    sys.exit(main())
