"""The parts of benchmarks/exchange.py: no figure is judged, and nothing is timed for longer than a moment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import exchange  # noqa: E402
from peers import exchange_student, onnx_snn  # noqa: E402


def fake_ask(wrong="", reason="", ann=""):
    def ask(peer, request):
        if peer == "exchange_student":
            return {"reason": reason} if reason else {"layers": ["a (1,)"], "timesteps": 4, "weights": 1000, "ann": ann}
        if request.get("mode") == wrong:
            return {"reason": "WRONG ANSWER: differs from the reference", "wrong": True}
        cost = {"fast": 1e-3, "onnx_ann": 5e-4}.get(peer, 1.4e-3) * (1 + 1 / request["batch"])
        return {"cpu_seconds_per_sample": cost, "samples_per_second": 1 / cost, "bytes": 1200}

    return ask


def run(*arguments, **faults):
    return exchange.measure_all(exchange.parse_options(arguments), "folder", fake_ask(**faults))


def test_report_is_json_and_judges_the_best_batches():
    results = run("--quick")
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results["best"]["onnx_sequence"]["batch"] == 4
    goals = results["goals"]
    assert goals[0]["figure"] == pytest.approx(1.4) and goals[0]["reached"] is True
    assert goals[1]["figure"] == pytest.approx(1.2) and goals[1]["reached"] is True
    text = exchange.format_report(results)
    assert "random weights" in text and "ONNX Runtime, whole sequence *" in text and "yes" in text


def test_wrong_answers_and_missing_systems_have_no_speed():
    results = run("--quick", wrong="sequence", ann="no chain")
    assert results["goals"][0]["reached"] is None and results["best"]["onnx_ann"] is None
    text = exchange.format_report(results)
    assert "WRONG ANSWER" in text and "no chain" in text and "not measured" in text


def test_no_network(capsys, monkeypatch):
    monkeypatch.setattr(exchange, "ask_worker", None)
    results = run("--quick", reason="cannot be read")
    assert "no network: cannot be read" in exchange.format_report(results)


@pytest.mark.parametrize(
    "arguments", [["--model", "/nowhere"], ["--rate", "2"], ["--decay", "5000"], ["--seconds", "0"]]
)
def test_bad_options(arguments):
    with pytest.raises(SystemExit):
        exchange.parse_options(arguments)


def test_peers_make_and_run_the_student(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange_student, "CONVOLUTIONS", ((3, 1), (4, 2)))
    monkeypatch.setattr(exchange_student, "SHAPE", (1, 8, 8))
    request = {
        "seed": 1, "seconds": 0.001, "folder": str(tmp_path), "file": "", "model": "", "timesteps": 3, "decay": 410,
        "rate": 0.2, "images": 6, "batch": 5, "threads": 1, "memory": 1 << 28,
    }  # fmt: skip
    made = exchange_student.measure(request)
    assert made["layers"][-1] == "readout (10,)" and made["ann"] == ""
    assert np.load(tmp_path / "images.npy").shape == (6, 1, 8, 8)
    for mode in ("sequence", "step"):
        answer = onnx_snn.measure({**request, "mode": mode})
        assert answer["samples"] == 5 and answer["bytes"] > made["weights"]
    again = exchange_student.measure({**request, "model": str(tmp_path)})
    assert again["layers"] == made["layers"]
    monkeypatch.setattr(onnx_snn, "run_reference", lambda graph, images: exchange_wrong(graph, images))
    assert onnx_snn.measure({**request, "mode": "step"})["wrong"]


def exchange_wrong(graph, images):
    from stars_deploy.targets.reference import run_reference

    return run_reference(graph, np.maximum(images, 3))


def test_a_build_is_measured_on_its_held_out_images(tmp_path):
    request = {"folder": str(tmp_path), "seed": 0, "model": "", "timesteps": 2, "decay": 410, "rate": 0.1, "images": 3}
    exchange_student.measure(request)
    noise = np.load(tmp_path / "images.npy")
    build = tmp_path / "build"
    build.mkdir()
    (tmp_path / "model.npz").rename(build / "model.npz")
    held_out = np.arange(2 * 784, dtype=np.uint8).reshape(2, 1, 28, 28)
    np.savez(build / "synthetic.npz", held_out=held_out)
    answer = exchange_student.measure({**request, "model": str(build)})
    shown = np.load(tmp_path / "images.npy")
    np.testing.assert_array_equal(shown, (held_out[[0, 1, 0]] / 255).astype(np.float32))
    assert shown.shape == noise.shape and answer["timesteps"] == 2
