"""Runs a campaign's processes, a few at a time; what is done already is left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import worker_environment

from evidence.planning import Campaign, Run, plan_runs, settled
from stars_deploy.artifacts import read_json, sha256, write_json
from stars_deploy.errors import ArtifactError

#: Where the process of a run finds its module.
SCRIPTS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a campaign's files are, and what its runs read."""

    folder: Path
    teacher: Path | None
    root: Path | None

    def result(self, name: str) -> Path:
        """Return the path of a run's result."""
        return self.folder / f"{name}.json"

    def results(self, campaign: Campaign) -> dict[str, dict[str, Any]]:
        """Return the results that are there, by name, of runs that the campaign asks for.

        Raises
        ------
        ArtifactError
            If one is of a run with other settings, another teacher or other images.
        """
        found = {}
        for run in plan_runs(campaign):
            if self.result(run.name).is_file():
                found[run.name] = read_json(self.result(run.name))
                self._check(campaign, run, found[run.name])
        return found

    def _check(self, campaign: Campaign, run: Run, result: Mapping[str, Any]) -> None:
        expected: dict[str, Any] = {"evaluated_on": campaign.evaluate, "dataset": campaign.dataset, "kind": run.kind}
        if campaign.evaluate == "validation":
            expected["samples"] = campaign.validation_images
        if self.teacher is not None:
            expected["teacher"] = {"sha256": sha256(self.teacher)}
        expected["config"] = settled(run).model_dump(mode="json", include=set(result.get("config", {})))
        if run.equal_time is not None:
            expected["config"].get("distill", {}).pop("steps", None)
        other = differences(result, expected)
        if "objectives" in result:
            from evidence.arms import objectives_of  # torch: only where there is a result to look at

            now = objectives_of(run)
            if now and result["objectives"] != now:  # real images and noise have none
                other.append(f"objectives {result['objectives']}, now {now}")
        if other:
            raise ArtifactError(
                str(self.result(run.name)), f"is of another campaign: {'; '.join(other)}", "the campaign's settings",
                "choose another folder with --out, or remove this file to do the run again",
            )  # fmt: skip


def run_campaign(campaign: Campaign, place: Place, workers: int, report: Callable[[str], None]) -> list[str]:
    """Do all runs that have no result yet; return the names of those that failed, whose logs are kept.

    Each is a process with one thread, `workers` at a time. A run that was interrupted goes on from its checkpoint.
    """
    done = place.results(campaign)
    waiting = [run for run in plan_runs(campaign) if run.name not in done]
    running: dict[str, tuple[Run, subprocess.Popen[bytes], float]] = {}
    failed: list[str] = []
    (place.folder / "work").mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            while len(running) < workers and (ready := _next_ready(waiting, place)) is not None:
                waiting.remove(ready)
                running[ready.name] = (ready, _start(campaign, place, ready), time.monotonic())
                report(f"{ready.name}: started, {len(waiting)} waiting")
            if not running:
                failed += [run.name for run in waiting]  # what they depend on failed
                break
            time.sleep(0.2)
            for name, (_, process, began) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    report(_ended(place, name, process.returncode, time.monotonic() - began))
                    failed += [] if place.result(name).is_file() else [name]
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.wait()
    return failed


def resolve_equal_time(run: Run, results: Mapping[str, Mapping[str, Any]]) -> Run:
    """Return a run with as many steps as the arm that it is compared with had CPU time for."""
    if run.equal_time is None:
        return run
    longer, base = (results[run.sibling(arm)] for arm in (run.equal_time.arm, run.equal_time.base))
    steps = round(base["steps"] * cpu_seconds(longer) / max(cpu_seconds(base), 1e-3))
    distil = {**run.settings.get("distill", {}), "steps": max(steps, 1)}
    return run.model_copy(update={"settings": {**run.settings, "distill": distil}})


def cpu_seconds(result: Mapping[str, Any]) -> float:
    """Return the CPU time of a whole run [s]; steps of processes that were interrupted count like the others."""
    measured = result["steps"] - result["seconds"].get("resumed_at", 0)
    return float(result["seconds"]["cpu"] * result["steps"] / measured if measured else result["seconds"]["cpu"])


def differences(found: Mapping[str, Any], expected: Mapping[str, Any], where: str = "") -> list[str]:
    """Return how `found` differs from `expected` in what both have: a setting newer than a result is no difference."""
    texts = []
    for key in sorted(found.keys() & expected.keys()):
        if isinstance(found[key], Mapping) and isinstance(expected[key], Mapping):
            texts += differences(found[key], expected[key], f"{where}{key}.")
        elif found[key] != expected[key]:
            texts.append(f"{where}{key} {found[key]}, now {expected[key]}")
    return texts


def _next_ready(waiting: list[Run], place: Place) -> Run | None:
    for run in waiting:
        if all(place.result(name).is_file() for name in run.needs()):
            return run
    return None


def _start(campaign: Campaign, place: Place, run: Run) -> subprocess.Popen[bytes]:
    request = place.folder / "work" / f"{run.name}.json"
    asked = {
        "run": resolve_equal_time(run, place.results(campaign)).model_dump(mode="json"),
        "teacher": str(place.teacher), "dataset": campaign.dataset,
        "root": None if place.root is None else str(place.root),
        "evaluate": campaign.evaluate, "validation_images": campaign.validation_images,
        "result": str(place.result(run.name)),
    }  # fmt: skip
    write_json(request, asked)
    with open(request.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "evidence.worker", str(request)],
            env=_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def _environment() -> dict[str, str]:
    inherited = worker_environment(1)
    paths = [str(SCRIPTS), *filter(None, [inherited.get("PYTHONPATH")])]
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths)}


def _ended(place: Place, name: str, code: int, seconds: float) -> str:
    if not place.result(name).is_file():
        return f"{name}: FAILED with code {code} after {seconds:.0f} s, see {place.folder / 'work' / name}.log"
    found = json.loads(place.result(name).read_text())
    return f"{name}: {100 * found['accuracy']:.2f} % in {seconds:.0f} s"
