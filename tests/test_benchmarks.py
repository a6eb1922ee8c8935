"""The parts of benchmarks/: nothing here is timed, and no figure is judged."""

from __future__ import annotations

import contextlib
import json
import mmap
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import agreement  # noqa: E402
import digests  # noqa: E402
import engine  # noqa: E402
import environments  # noqa: E402
import figures  # noqa: E402
import goals  # noqa: E402
import layout  # noqa: E402
import networks  # noqa: E402
import process_tree  # noqa: E402
import processes  # noqa: E402
import timing  # noqa: E402
import worker  # noqa: E402
from campaign import Campaign, Settings  # noqa: E402

SPREAD = {"median": 2.0, "least": 1.5, "most": 3.0}
REQUEST = {
    "seed": 3, "seconds": 0.0, "quick": True, "agree": 2, "digest": True, "profile": True, "memory": 1 << 28,
    "file": "", "topology": "vgg:6-8", "timesteps": 3, "batch": 5, "rate": 0.2, "images": 40, "threads": 1,
}  # fmt: skip


def _timed(cpu: float, speed: float) -> dict[str, object]:
    return {
        "runs": 3, "samples": 8, "wall": SPREAD, "cpu": SPREAD, "samples_per_second": speed,
        "cpu_seconds_per_sample": cpu, "peak_mb": 100.0, "loaded_mb": 50.0,
    }  # fmt: skip


def _fake_ask(wrong: str = "", missing: str = ""):
    """Return a stand-in for a worker: answers as they are, with `wrong` computing something else."""

    def ask(peer, request, threads=1, python=sys.executable):
        if peer == missing:
            return {"reason": f"{peer} is not installed"}
        if peer == "gemm":
            return {"best_gflops": 100.0, "median_gflops": 90.0, "runs": 5, "size": 2048}
        if peer == "student":
            return {"macs_first": 10, "macs_rest": 100, "ann_logits": [[1.0, 2.0]]}
        if peer == "lif_kernel":
            return {"kernel": _timed(1e-9, 2e9), "numpy": _timed(2e-8, 5e7), "rate": 0.1, "updates": 8}
        answer = {**_timed(1.0, 1.0), "macs_first": 10**6, "macs_rest": 10**7, "version": "1"}
        if peer in ("fast", "reference", "lava_steps"):
            answer["digests"] = {"lif1": "b" if peer == wrong else "a"}
            answer["rates"] = {"lif1": 0.1}
        if peer == "fast":
            layers = [{"layer": "lif1", "cpu_seconds_per_sample": 1e-3, "macs": 10**6}]
            return {**answer, **_timed(0.001, 1000.0), "layers": layers}
        answer["logits"] = [[1.0, 7.0 if peer == wrong else 2.0]]
        answer["spikes"] = [100.0]
        return answer

    return ask


def _campaign(tmp_path: Path, **faults: str) -> Campaign:
    settings = Settings(seconds=0.1, spikingjelly="python")
    return Campaign(settings=settings, folder=tmp_path, ask=_fake_ask(**faults), report=lambda text: None)


@pytest.fixture
def present(monkeypatch):
    """NetX networks that are there, whatever lies beside the repository."""
    monkeypatch.setattr(networks.BenchmarkNetwork, "missing", lambda self: "")


def test_report_has_every_part_and_is_json(tmp_path, present):
    results = engine.measure_all(_campaign(tmp_path), engine.NAMES)

    again = json.loads(json.dumps(results, allow_nan=False))
    assert again == results and again["schema"] == 1
    assert [network["name"] for network in again["networks"]] == [network.name for network in networks.NETWORKS]
    assert list(again["sections"]) == ["batch", "timesteps", "width", "rate", "threads", "memory"]
    student = again["networks"][2]
    assert set(student["systems"]) == {
        "fast", "reference", "lava", "norse_folded", "norse_stepping", "spikingjelly", "onnxruntime_ann"
    }  # fmt: skip
    assert student["ratios"]["lava"] == {"cpu": 1000.0, "speed": 1000.0}
    # one sample in 1 ms of CPU time, 2 * (1e6 + 4 * 1e7) operations, of 100 GFLOP/s
    assert student["share_of_peak"] == pytest.approx(0.82)
    assert "digests" not in student["systems"]["fast"] and "logits" not in student["systems"]["norse_folded"]
    assert "systems" in again["networks"][0] and "norse_folded" not in again["networks"][0]["systems"]
    text = layout.format_report(results)
    assert "dense-equivalent share of the GEMM peak: 82.0%" in text and "Lava agrees with every spike" in text
    assert (
        "40.0x" in text and "both at their best batch: 1000x norse" in text and "vgg:32-256" in text
    )  # the kernel's ratio, a point of a section


@pytest.mark.parametrize(
    ("wrong", "system"),
    [
        ("fast", "fast"),
        ("lava_steps", "lava"),
        ("norse_stepping", "norse_stepping"),
        ("spikingjelly_multistep", "spikingjelly"),
        ("onnx_ann", "onnxruntime_ann"),
    ],
)
def test_no_speed_of_a_wrong_answer(tmp_path, wrong, system):
    network = _campaign(tmp_path, wrong=wrong).network(networks.STUDENT)

    assert network["systems"][system]["reason"].startswith("WRONG ANSWER") and len(network["systems"][system]) == 2
    assert engine.is_wrong(network)
    complete = figures.complete_network(network, 100.0)
    assert system not in complete["ratios"] and (complete["share_of_peak"] is None) == (system == "fast")
    assert "WRONG ANSWER" in layout.format_report(
        {"networks": [complete], "sections": {}, "lif_kernel": {}, "goals": goals.judge({}), "gemm": {},
         "machine": {"processor": "p", "cores": 1, "memory_gb": 1, "python": "3", "versions": {}}}
    )  # fmt: skip


def test_missing_peers_are_named_and_the_others_measured(tmp_path, present):
    campaign = _campaign(tmp_path, missing="onnx_ann")
    campaign.settings = replace(campaign.settings, spikingjelly="")

    results = engine.measure_all(campaign, ("vgg:16-128",))

    systems = results["networks"][0]["systems"]
    assert systems["onnxruntime_ann"] == {"reason": "onnx_ann is not installed"}
    assert "--spikingjelly PYTHON or --make-environment DIR" in systems["spikingjelly"]["reason"]
    assert figures.is_measured(systems["norse_folded"]) and not engine.is_wrong(results["networks"][0])
    assert "ONNX Runtime, float ANN: onnx_ann is not installed" in layout.format_report(results)
    unreached = {goal["work"]: goal["reached"] for goal in results["goals"]}
    assert unreached["vgg:16-128, T 4, samples a second against SpikingJelly multi-step"] is None


def test_missing_network_is_skipped_with_its_reason(tmp_path):
    gone = networks.BenchmarkNetwork(name="gone", timesteps=2, batch=2, file=tmp_path / "networks" / "gone.net")
    asked = []
    campaign = Campaign(
        settings=Settings(), folder=tmp_path, report=lambda text: None,
        ask=lambda peer, *rest, **more: asked.append(peer),
    )  # fmt: skip

    systems = campaign.network(gone)["systems"]

    assert not asked and set(systems) == {"fast", "reference", "lava"}
    assert all("no gone.net in" in answer["reason"] for answer in systems.values())


def test_student_that_cannot_be_made_is_a_reason_for_all(tmp_path):
    network = _campaign(tmp_path, missing="student").network(networks.STUDENT)
    assert all(answer["reason"] == "student is not installed" for answer in network["systems"].values())


def test_goals_are_judged_by_their_bounds():
    def point(value, time):
        return {**_timed(1.0, 1.0), "value": value, "cpu": {**SPREAD, "median": time}}

    results = {
        "networks": [
            {"name": "tiny.net", "ratios": {"lava": {"cpu": 1999.0, "speed": 5000.0}}},
            {"name": "pilotnet_lif.net", "ratios": {"lava": {"cpu": 300.0, "speed": 1.0}}},
            {
                "name": "vgg:16-128", "share_of_peak": 0.5,
                "ratios": {"norse_stepping": {"cpu": 1, "speed": 2.9}, "onnxruntime_ann": {"cpu": 0.25, "speed": 9}},
            },
        ],
        "sections": {
            "batch": [point(8, 1.0), point(512, 64.0)],
            "timesteps": [point(4, 1.0), point(32, 8.5)],
        },
        "lif_kernel": {"kernel": {"samples_per_second": 5.0}, "numpy": {"samples_per_second": 1.0}},
    }  # fmt: skip
    judged = {goal["work"]: goal for goal in goals.judge(results)}
    reached = {work: goal["reached"] for work, goal in judged.items()}
    assert [reached[work] for work in reached] == [True, False, True, False, None, True, False, True, False]
    over_ann = judged["vgg:16-128, T 4, CPU time a sample over the float ANN in ONNX Runtime"]
    assert over_ann["figure"] == 4.0 and over_ann["at most"] == 4
    assert judged["growth of cost, T 4 to 32, over linear"]["figure"] == pytest.approx(8.5 / 8)


def test_growth_needs_its_first_and_last_point():
    points = [{"value": 4, "reason": "no"}, {**_timed(1.0, 1.0), "value": 8}, {**_timed(1.0, 1.0), "value": 16}]
    assert figures.growth(points) is None and figures.growth(points[1:2]) is None
    assert figures.growth(points[1:])["exponent"] == 0


def test_best_point_of_each_system():
    points = [
        {**_timed(1.0, 100.0), "peers": {"a": _timed(1.0, 50.0), "b": {"reason": "no"}}},
        {**_timed(1.0, 300.0), "peers": {"a": _timed(1.0, 20.0)}},
        {"reason": "no"},
    ]
    assert figures.best_ratios(points) == {"a": 6.0} and figures.best_ratios(points[2:]) == {}


def test_digests_see_every_spike_shape_and_potential():
    spikes = np.zeros((2, 3, 5), bool)
    potential = np.arange(6).reshape(3, 2)
    plain = digests.digest_record({"a": spikes, "b": spikes}, potential)
    changed = spikes.copy()
    changed[1, 2, 4] = True

    assert digests.digest_record({"a": spikes.astype(np.int64), "b": spikes}, potential.astype(np.int32)) == plain
    for other, layer in [
        (digests.digest_record({"a": spikes, "b": changed}, potential), "b"),
        (digests.digest_record({"a": spikes.reshape(2, 5, 3), "b": spikes}, potential), "a"),
        (digests.digest_record({"a": spikes, "b": spikes}, potential + 1), "final potential"),
        (digests.digest_record({"a": spikes}, potential), "b"),
        (digests.digest_record({"a": spikes, "b": spikes, "c": spikes}, potential), "c"),
    ]:
        assert agreement.find_disagreement(plain, other) == layer
    assert agreement.find_disagreement(plain, dict(plain)) == ""
    assert digests.firing_rates({"a": changed}) == {"a": pytest.approx(1 / 30)}


def test_float_systems_agree_up_to_rounding_only():
    one = {"spikes": [1000.0, 5000.0], "logits": [[1.0, -2.0], [0.5, 0.25]]}
    assert agreement.compare_spiking(one, {"spikes": [1000.0, 5001.0], "logits": [[1.001, -2.0], [0.5, 0.25]]}) == ""
    assert "layer 1 fired 1002" in agreement.compare_spiking(one, {**one, "spikes": [1002.0, 5000.0]})
    assert "logits differ" in agreement.compare_spiking(one, {**one, "logits": [[1.0, -2.0], [0.5, 0.5]]})
    assert "logits differ" in agreement.compare_logits([[1.0]], [[float("nan")]], 0.5)
    assert "another shape" in agreement.compare_logits([[1.0]], [[1.0], [1.0]], 0.5)


def test_figures_of_runs():
    figures_of = timing.summarise_runs([2.0, 1.0, 4.0], [1.0, 1.0, 3.0], 8)
    assert (figures_of["samples_per_second"], figures_of["cpu_seconds_per_sample"]) == (4.0, 0.125)
    assert figures_of["wall"] == {"median": 2.0, "least": 1.0, "most": 4.0}
    calls = []
    measured = timing.measure_runs(lambda: calls.append(1), 1, 0.0, warm_up=2)
    assert len(calls) == 2 + timing.FEWEST_RUNS == 2 + measured["runs"]
    assert 0 < measured["loaded_mb"] <= measured["peak_mb"]


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
def test_peak_memory_outlasts_what_was_freed():
    def touch():  # 64 MB that are given back after each run, whatever the C library keeps
        with mmap.mmap(-1, 64 << 20) as block:
            for page in range(0, len(block), mmap.PAGESIZE):
                block[page] = 1

    measured = timing.measure_runs(touch, 1, 0.0)
    assert measured["peak_mb"] >= timing.resident_mb("VmRSS") + 32 and measured["peak_mb"] > measured["loaded_mb"]


@pytest.mark.parametrize("wrong", ["", "fast"])
def test_exit_code_tells_of_wrong_answers(tmp_path, monkeypatch, capsys, wrong):
    campaign = _campaign(tmp_path, wrong=wrong)
    monkeypatch.setattr(engine, "open_campaign", lambda settings: (campaign, contextlib.nullcontext()))
    assert engine.main(["--json", "--only", "vgg:16-128"]) == (1 if wrong else 0)
    assert json.loads(capsys.readouterr().out)["networks"][0]["name"] == "vgg:16-128"


def test_numbers_and_columns():
    assert [layout.rounded(value) for value in (None, 0.0, 0.00012345, 0.5, 12.345, 1234.5, 3e9, float("nan"))] == [
        "-", "0", "0.000123", "0.500", "12.3", "1234", "3.00e+09", "nan"
    ]  # fmt: skip
    table = layout.format_table(["name", "n"], [["a", "1"], ["long name", "10"]])
    assert table.splitlines() == ["name        n", "-" * 13, "a           1", "long name  10"]


def test_options_are_checked(capsys):
    for arguments in (
        ["--only", "nothing"],
        ["--seconds", "0"],
        ["--seconds", "nan"],
        ["--spikingjelly", "a", "--make-environment", "b"],
    ):
        with pytest.raises(SystemExit) as caught:
            engine.parse_options(arguments)
        assert caught.value.code == 2
    assert "nothing" in capsys.readouterr().err
    options = engine.parse_options(["--quick", "--spikingjelly", "p"])
    assert engine.choose_settings(options).seconds == 0.5 and engine.choose_settings(options).spikingjelly == "p"
    assert "width" not in engine.chosen_names(options) and "tiny.net" in engine.chosen_names(options)
    assert engine.chosen_names(engine.parse_options(["--only", "lif", "--only", "rate"])) == ("rate", "lif")
    assert engine.choose_settings(engine.parse_options(["--seconds", "2"])).seconds == 2


def test_environment_that_cannot_be_made_is_an_error_of_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environments.shutil, "which", lambda name: None)
    assert engine.main(["--make-environment", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("--make-environment: SpikingJelly needs Python 3.11")
    monkeypatch.setattr(environments, "find_python", lambda: sys.executable)
    monkeypatch.setattr(environments, "_succeeds", lambda command: False)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(environments.EnvironmentFailedError, match="cannot make an environment"):
        environments.make_environment(tmp_path / "file")


def test_a_worker_turns_failures_into_reasons(tmp_path):
    assert worker.answer_request({"peer": "nobody"})["reason"].startswith("peers.nobody is not installed")
    broken = processes.ask_worker("gemm", {})  # in a real process: a request without a seed
    assert broken == {"reason": "KeyError: 'seed'"}
    nowhere = processes.ask_worker("gemm", {}, python=str(tmp_path / "python"))
    assert nowhere == {"reason": f"{tmp_path / 'python'} does not start (No such file or directory)"}
    assert processes.ask_worker("gemm", {}, longest=0.001) == {"reason": "no answer within 0.001 s"}
    assert {processes.worker_environment(2)[name] for name in processes.THREAD_VARIABLES} == {"2"}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_cpu_time_of_a_session_grows_with_work():
    before = process_tree.session_cpu_seconds()
    while process_tree.session_cpu_seconds() == before:
        sum(range(100_000))
    assert process_tree.session_memory_mb() > 1


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A small student as the peers get it, and what its maker says."""
    from peers.student import measure

    folder = tmp_path_factory.mktemp("student")
    request = {**REQUEST, "folder": str(folder)}
    return request, measure(request)


def test_fast_engine_agrees_with_the_reference(student):
    from peers import fast, reference

    request, made = student
    expected, got = reference.measure(request), fast.measure(request)

    assert agreement.find_disagreement(expected["digests"], got["digests"]) == ""
    assert set(got["digests"]) == {"lif1", "lif2", "readout", "final potential"}
    assert (got["macs_first"], got["macs_rest"]) == (made["macs_first"], made["macs_rest"])
    # 3x3 kernels: 3 to 6 channels on 32x32, 6 to 8 on 16x16, then 8*16*16 to 10
    assert (made["macs_first"], made["macs_rest"]) == (27 * 6 * 1024, 54 * 8 * 256 + 8 * 256 * 10)
    assert all(abs(got["rates"][layer] - request["rate"]) < 0.05 for layer in ("lif1", "lif2"))
    assert [layer["layer"] for layer in got["layers"]] == ["lif1", "lif2", "readout"]
    assert sum(layer["macs"] for layer in got["layers"]) == made["macs_first"] + 3 * made["macs_rest"]
    other = reference.measure({**request, "batch": 4})
    assert agreement.find_disagreement(expected["digests"], other["digests"]) == "lif1"


def test_norse_stepped_and_folded_agree(student):
    from peers import norse_folded, norse_stepping

    request, _ = student
    folded, stepped = norse_folded.measure(request), norse_stepping.measure(request)

    assert agreement.compare_spiking(folded, stepped) == ""
    assert folded["spikes"][0] > 0 and folded["samples"] == stepped["samples"] == 5
    shorter = norse_stepping.measure({**request, "timesteps": 2})
    assert agreement.compare_spiking(folded, shorter) != ""


def test_onnx_graph_is_the_ann(student):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from peers import onnx_ann

    request, made = student
    logits = onnx_ann.measure(request)["logits"]
    assert agreement.compare_logits(made["ann_logits"][:5], logits, agreement.ANN_TOLERANCE) == ""
    assert len(logits) == 5 and max(abs(value) for value in logits[0]) > 0


def test_spikingjelly_agrees_with_norse(student):
    pytest.importorskip("spikingjelly")
    from peers import norse_folded, spikingjelly_multistep

    request, _ = student
    assert agreement.compare_spiking(norse_folded.measure(request), spikingjelly_multistep.measure(request)) == ""


def test_compiled_neurons_compute_what_numpy_does():
    from peers.lif_kernel import CompiledPopulation, run_numpy

    from stars_deploy.populations import Population

    generator = np.random.default_rng(0)
    activation = generator.integers(-150, 200, (3, 5, 40))
    population = Population(name="lif", shape=(40,), decay_v=410, vth=200, bias=generator.integers(-20, 20, 40))
    kernel = CompiledPopulation(population, activation)
    for _ in range(2):  # the second run starts from rest as well
        kernel.run()
        spikes, membrane = run_numpy(population, activation)
        assert spikes.any() and not spikes.all()
        assert np.array_equal(kernel.spikes, spikes) and np.array_equal(kernel.v, membrane)


@pytest.mark.shared
@pytest.mark.skipif(bool(networks.TINY.missing()), reason="no networks beside the repository")
def test_images_of_a_netx_network_are_in_range_and_repeatable():
    from peers.integer_network import open_network

    request = {**REQUEST, "file": str(networks.TINY.file), "timesteps": 4, "batch": 3}
    graph, images = open_network(request)
    assert images.shape == (3, *graph.input.shape) and graph.timesteps == 4
    assert 0 <= images.min() < images.max() <= 2 * graph.populations[0].vth
    assert np.array_equal(open_network(request)[1], images)
