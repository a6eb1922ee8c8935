"""The parts of benchmarks/distill.py: nothing here is timed, and no figure is judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import distill  # noqa: E402
import worker  # noqa: E402

REQUEST = {
    "seed": 3,
    "seconds": 0.0,
    "timesteps": 3,
    "batch": 6,
    "threads": 1,
    "topology": "vgg:4-6",
    "shape": (1, 8, 8),
}


def ask(peer, request, python=sys.executable):
    return worker.answer_request({**request, "peer": peer, "threads": 1})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("task")
    assert "reason" not in ask("train_network", {**REQUEST, "folder": str(place)})
    return str(place)


@pytest.mark.parametrize("peer", ["train_student", "train_norse", "train_ann"])
def test_every_system_trains_the_network(folder, peer):
    answer = ask(peer, {**REQUEST, "folder": folder})
    assert "reason" not in answer, answer
    assert answer["samples"] == 6
    assert len(answer["logits"]) == 6


def test_norse_says_what_the_student_says(folder):
    ours, norse = (ask(peer, {**REQUEST, "folder": folder})["logits"] for peer in ("train_student", "train_norse"))
    assert distill.agreement.compare_logits(ours, norse, distill.TOLERANCE) == ""
    assert max(abs(value) for row in ours for value in row) > 0.01
    assert any(row != ours[0] for row in ours)


@pytest.mark.parametrize("backbone", ["fast", "noise"])
def test_synthesis_is_measured(backbone):
    asked = {"seed": 3, "seconds": 0.0, "backbone": backbone, "teacher": "digits", "student": "vgg:4-6"}
    answer = ask("synthesis", asked)
    assert answer["samples"] == 128
    assert answer["samples_per_second"] == pytest.approx(128 / answer["wall"]["median"])
    assert answer["cpu_seconds_per_sample"] == pytest.approx(answer["cpu"]["median"] / 128)


def test_shares_are_of_every_part():
    asked = {"seed": 3, "seconds": 0.0, "backbone": "fast", "teacher": "vgg:4-6", "student": "vgg:4-6", "shares": True}
    shares = ask("synthesis", {**asked, "options": {"warmup_steps": 1, "width": 4}})["shares"]
    assert shares.keys() == {
        "synthesis: networks and objectives, forward", "synthesis: backward", "synthesis: generator, optimiser, rest",
        "student: teacher, forward", "student: forward", "student: backward", "student: views",
        "student: optimiser, pool, rest",
    }  # fmt: skip
    assert min(shares.values()) > 0.001  # a part that is not reached would take microseconds


def fake(speeds, wrong=""):
    def answer(peer, request, python=sys.executable, environment=None):
        if peer == "synthesis":
            return (
                {"shares": {"a": 1.0}} if request.get("shares") else {"samples_per_second": 10.0, "wall": {"median": 1}}
            )
        found = {"samples_per_second": speeds.get(peer, 1.0), "wall": {"median": 0.1}}
        return {**found, "logits": [[2.0 if peer == wrong else 1.0]], "version": "1"}

    return answer


def test_goals_compare_with_the_faster_peer():
    speeds = {"train_student": 130.0, "train_norse": 80.0, "train_spikingjelly": 100.0, "train_ann": 520.0}
    bench = distill.Bench(seconds=1, spikingjelly="python", ask=fake(speeds))
    results = distill.measure_all(bench, ("step",))
    first, second = results["goals"][:2]
    assert (first["figure"], first["reached"]) == (1.3, True)
    assert (second["figure"], second["at most"], second["reached"]) == (4.0, 5, True)
    assert "reached" in distill.format_results(results)
    without = distill.measure_all(distill.Bench(seconds=1, spikingjelly="", ask=fake(speeds)), ("step",))
    assert without["goals"][0]["reached"] is None
    assert "--spikingjelly PYTHON" in without["step"]["vgg:16-128"]["train_spikingjelly"]["reason"]


def test_wrong_answers_have_no_speed_and_fail(monkeypatch, capsys):
    bench = distill.Bench(seconds=1, spikingjelly="python", ask=fake({}, wrong="train_norse"))
    monkeypatch.setattr(distill, "Bench", lambda **_: bench)
    assert distill.main(["--json", "--spikingjelly", "python"]) == 1
    results = json.loads(capsys.readouterr().out)
    assert results["step"]["vgg:16-128"]["train_norse"]["wrong"]
    assert "samples_per_second" not in results["step"]["vgg:16-128"]["train_norse"]
    assert results["synthesis"]["digits"].keys() >= {"fast", "dfq", "cmi", "deepinversion"}


def test_wrong_options_are_refused():
    with pytest.raises(SystemExit) as refused:
        distill.main(["--seconds", "-1"])
    assert refused.value.code == 2


@pytest.mark.slow
def test_spikingjelly_says_what_the_student_says(peer_python):
    bench = distill.Bench(seconds=0.1, spikingjelly=str(peer_python("spikingjelly")))
    answers = distill.measure_step(bench, "vgg:16-32-64")
    for peer in ("train_norse", "train_spikingjelly"):
        assert answers[peer]["agrees_with"] == "our student's logits, up to rounding", answers[peer]
    assert all("samples_per_second" in answer for answer in answers.values())
