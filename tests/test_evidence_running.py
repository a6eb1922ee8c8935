"""The evidence machine's processes: two at a time, nothing done twice, and what happens where one fails."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import pytest
import stars
from evidence import running, worker
from evidence.planning import load_campaign, plan_runs
from evidence.running import run_campaign
from evidence.summary import NOTE
from evidence_campaigns import BENCHMARKS, CAMPAIGN, place_in, small_campaign, write_campaign
from PIL import Image

from stars_deploy.config import load_config
from stars_deploy.data import load_dataset
from stars_deploy.pipeline.distilling import make_distiller
from stars_deploy.synthesis import registry
from stars_deploy.teacher import DIGITS_WEIGHTS, load_teacher

PRETENDER = """
import hashlib, json, os, sys, time
from pathlib import Path

request = Path(sys.argv[1])
asked = json.loads(request.read_text())
run = asked["run"]
living = request.parent / "living"
living.mkdir(exist_ok=True)
mark = living / request.stem
mark.write_text("")
with open(request.parent / "starts.jsonl", "a") as log:
    entry = {"name": request.stem, "beside": len(list(living.iterdir())), "threads": os.environ["OMP_NUM_THREADS"],
             "steps": run["settings"].get("distill", {}).get("steps")}
    log.write(json.dumps(entry) + "\\n")
for _ in range(600 if os.environ.get("MEET") else 0):
    if len(list(living.iterdir())) > 1 or (request.parent / "met").exists():
        (request.parent / "met").write_text("")
        break
    time.sleep(0.05)
if run["arm"] == os.environ.get("FAILS"):
    mark.unlink()
    sys.exit("no luck")
if run["arm"] == os.environ.get("HANGS"):
    time.sleep(600)
time.sleep(0.05)
mark.unlink()
Path(asked["result"]).write_text(json.dumps({
    **{name: run[name] for name in ("arm", "kind", "backbone", "student", "seed")},
    "accuracy": 0.5 + 0.01 * run["seed"] + 0.02 * (run["arm"] == "stars"), "samples": 300,
    "evaluated_on": asked["evaluate"], "steps": 8, "images": 40, "sources": "digest",
    "teacher": {"sha256": hashlib.sha256(Path(asked["teacher"]).read_bytes()).hexdigest()},
    "seconds": {"cpu": 3.0 if run["arm"] == "stars" else 2.0, "wall": 1.0},
    "mechanism": {"tail_error": {"boundary": [0.1, 0.2], "kappa_1": [0.1, 0.2], "kappa_2": [0.1, 0.2]}},
}))
"""


@pytest.fixture
def write(tmp_path):
    """Write the small campaign, changed as asked, and return its path."""
    return partial(write_campaign, tmp_path)


@pytest.fixture
def campaign(tmp_path):
    """Load the small campaign, changed as asked."""
    return partial(small_campaign, tmp_path)


@pytest.fixture
def place(tmp_path):
    return place_in(tmp_path)


@pytest.fixture(autouse=True)
def offered(monkeypatch):
    """Let what the command offers to the registry be gone when the test ends."""
    monkeypatch.setattr(registry, "_backbones", dict(registry._backbones))
    monkeypatch.setattr(registry, "_objectives", dict(registry._objectives))


@pytest.fixture
def pretending(tmp_path, monkeypatch):
    """Replace the worker by one that needs no torch; return what was started, in order."""
    folder = tmp_path / "scripts"
    (folder / "evidence").mkdir(parents=True)
    (folder / "evidence" / "__init__.py").write_text("")
    (folder / "evidence" / "worker.py").write_text(textwrap.dedent(PRETENDER))
    monkeypatch.setattr(running, "SCRIPTS", folder)

    def started():
        log = tmp_path / "out" / "work" / "starts.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return started


def test_two_processes_of_one_thread_run_at_a_time(campaign, place, pretending, monkeypatch):
    monkeypatch.setenv("MEET", "1")
    assert run_campaign(campaign(), place, 2, lambda _: None) == []
    assert (place.folder / "work" / "met").exists()  # each waits until there are two
    assert len(pretending()) == 4
    assert max(entry["beside"] for entry in pretending()) == 2
    assert {entry["threads"] for entry in pretending()} == {"1"}


def test_what_is_done_is_not_done_again(campaign, place, pretending):
    loaded = campaign()
    run_campaign(loaded, place, 2, lambda _: None)
    assert len(pretending()) == 4
    run_campaign(loaded, place, 2, lambda _: None)
    assert len(pretending()) == 4
    lost = plan_runs(loaded)[2].name
    place.result(lost).unlink()
    assert run_campaign(loaded, place, 2, lambda _: None) == []
    assert [entry["name"] for entry in pretending()[4:]] == [lost]
    assert len(place.results(loaded)) == 4


def test_equal_time_waits_for_the_arms_that_it_is_measured_by(campaign, place, pretending):
    arms = {**CAMPAIGN["arms"], "longer": {"equal_time": {"arm": "stars", "base": "backbone"}}}
    assert run_campaign(campaign(arms=arms, seeds=[0]), place, 2, lambda _: None) == []
    assert pretending()[-1]["name"] == "vgg_fast_longer_seed0"
    assert [entry["steps"] for entry in pretending()] == [8, 8, 12]


def test_a_failure_stops_neither_the_others_nor_a_second_try(campaign, place, pretending, monkeypatch):
    arms = {**CAMPAIGN["arms"], "longer": {"equal_time": {"arm": "stars", "base": "backbone"}}}
    loaded = campaign(arms=arms, seeds=[0])
    monkeypatch.setenv("FAILS", "stars")
    said = []
    assert run_campaign(loaded, place, 1, said.append) == ["vgg_fast_stars_seed0", "vgg_fast_longer_seed0"]
    assert list(place.results(loaded)) == ["vgg_fast_backbone_seed0"]
    log = place.folder / "work" / "vgg_fast_stars_seed0.log"
    assert "no luck" in log.read_text()
    assert any("FAILED" in text and str(log) in text for text in said)
    monkeypatch.delenv("FAILS")
    assert run_campaign(loaded, place, 1, said.append) == []
    assert len(place.results(loaded)) == 3


def test_an_interrupt_ends_the_processes(campaign, place, pretending, monkeypatch):
    monkeypatch.setenv("HANGS", "stars")
    processes = []
    begin = running.subprocess.Popen

    def remembered(*arguments, **options):
        processes.append(begin(*arguments, **options))
        return processes[-1]

    def interrupt(text):
        if "%" in text:  # the other one is done
            raise KeyboardInterrupt

    monkeypatch.setattr(running.subprocess, "Popen", remembered)
    with pytest.raises(KeyboardInterrupt):
        run_campaign(campaign(seeds=[0]), place, 2, interrupt)
    assert len(processes) == 2
    assert all(process.wait(60) is not None for process in processes)
    assert not place.result("vgg_fast_stars_seed0").exists()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for the processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_however_the_command_ends_so_do_its_processes(write, tmp_path, how):
    command = [sys.executable, str(BENCHMARKS / "stars.py"), str(write()), "--teacher", str(DIGITS_WEIGHTS)]
    with subprocess.Popen([*command, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True) as campaign:
        assert "started" in campaign.stderr.readline()
        assert wait_until(lambda: workers_of(tmp_path))
        campaign.send_signal(how)
        told = campaign.communicate(timeout=60)[1]
    if how == signal.SIGTERM:
        assert campaign.returncode == 130
        assert "goes on where this one was" in told
    # One that has just started looks for its parent first.
    assert wait_until(lambda: not workers_of(tmp_path))


def wait_until(found, seconds=30):
    """Return what is found as soon as there is something, or nothing after a while."""
    late = time.monotonic() + seconds
    while not found() and time.monotonic() < late:
        time.sleep(0.1)
    return found()


def workers_of(folder):
    """Return the processes whose command names a request in that folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            command = file.read_bytes()
            if b"evidence.worker" in command and str(folder).encode() in command:
                found.append(command)
    return found


def test_command_runs_what_is_missing_and_summarises(write, tmp_path, pretending, capsys, monkeypatch):
    command = [str(write()), "--teacher", str(DIGITS_WEIGHTS), "--out", str(tmp_path / "out"), "--json"]
    monkeypatch.setenv("FAILS", "stars")
    assert stars.main(command) == 1
    monkeypatch.delenv("FAILS")
    assert json.loads(capsys.readouterr().out)["runs"] == {"done": 2, "planned": 4}
    assert stars.main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["runs"] == {"done": 4, "planned": 4}
    assert printed["note"] == NOTE
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == printed
    assert NOTE in (tmp_path / "out" / "summary.md").read_text()
    for name in ("accuracy", "differences", "tails"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert picture.width > 400
    started = len(pretending())
    assert stars.main([str(write()), "--out", str(tmp_path / "out"), "--summary"]) == 0
    assert "+2.00 [+2.00, +2.00]" in capsys.readouterr().out
    assert len(pretending()) == started


def test_dry_run_lists_and_starts_nothing(write, tmp_path, pretending, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "vgg_fast_stars_seed0.json").write_text("{}")
    assert stars.main([str(write()), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    states = dict(reversed(line.split()) for line in capsys.readouterr().out.splitlines())
    assert states.pop("vgg_fast_stars_seed0") == "done"
    assert len(states) == 3
    assert set(states.values()) == {"waiting"}
    assert pretending() == []


def test_a_campaign_with_its_own_processes(write, tmp_path, capsys):
    path = write(arms={"backbone": CAMPAIGN["arms"]["backbone"]}, seeds=[0])
    command = [str(path), "--teacher", str(DIGITS_WEIGHTS), "--out", str(tmp_path / "out"), "--json"]
    assert stars.main(command) == 0, [log.read_text() for log in (tmp_path / "out" / "work").glob("*.log")]
    summary = json.loads(capsys.readouterr().out)
    # The same student as in this process.
    config = load_config(None, {**plan_runs(load_campaign(path))[0].settings, "seed": 0})
    student = make_distiller(config, load_teacher()).run(lambda *_: None)
    held = load_dataset("digits", train=True).first(300)
    assert summary["rows"][0]["accuracy"]["0"] == pytest.approx(worker.accuracy(student, held))
