"""The whole flow on a short build of the embedded default."""

import hashlib
import json
import math
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from stars_deploy.artifacts import sha256
from stars_deploy.config import DataConfig, load_config
from stars_deploy.data import load_dataset
from stars_deploy.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    FormatError,
    StarsDeployError,
    TargetError,
    TeacherError,
    VerificationError,
)
from stars_deploy.pipeline import Observer, build, compare_models, export_model, simulate_model, train, verify_model
from stars_deploy.pipeline.directory import RunDirectory
from stars_deploy.pipeline.models import Reading, deployed_rates, open_model, quantize_calibrated
from stars_deploy.pipeline.samples import distinct_samples
from stars_deploy.pipeline.simulating import EngineChoice, Recording
from stars_deploy.pipeline.verifying import verify_targets, write_targets
from stars_deploy.quantized import find_difference
from stars_deploy.report import summarize_accuracy
from stars_deploy.serde import load_graph, load_quantized, save_graph
from stars_deploy.student import load_student
from stars_deploy.targets import TARGETS
from stars_deploy.targets.base import Availability
from stars_deploy.targets.netx_reader import read_netx
from stars_deploy.targets.reference import run_reference
from stars_deploy.verification import Verification, check_verified


def settings(**changes):
    """A build of a few seconds."""
    base = {
        "data": {"name": "digits"},
        "distill": {"steps": 40, "checkpoint_every": 10},
        "synthesis": {"batch": 64, "options": {"warmup_steps": 20}},
        "held_out_images": 64,
        "targets": ["netx", "onnx", "nir"],
        "threads": 1,
        "measure_cpu": False,
        "sweep": [1],
    }
    return load_config(None, {**base, **changes})


def digests(folder):
    """Return the SHA-256 of every file in a folder, by its path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


class Recorder(Observer):
    def __init__(self):
        super().__init__()
        self.heard = []
        self.notes = []

    def started(self, name):
        self.heard.append(name)

    def noted(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("build") / "digits"
    recorder = Recorder()
    result = build(settings(), out, observer=recorder)
    return result, recorder


@pytest.fixture
def copied(built, tmp_path):
    """A copy of the build that a test may damage."""
    return shutil.copytree(built[0].directory, tmp_path / "digits")


def test_build_reports_what_design_asks_for(built):
    result, recorder = built
    report = json.loads((result.directory / "report.json").read_text())
    assert report == result.report
    assert set(report) >= {
        "accuracy", "fidelity", "verification", "counts", "latency_s", "energy_j", "ann", "hardware", "provenance",
    }  # fmt: skip
    assert set(report["accuracy"]) >= {"teacher", "student", "quantized", "targets"}
    assert report["accuracy"]["teacher"] > 0.99
    assert report["accuracy"]["quantized"] > 0.85
    assert report["verification"]["netx"]["passed"] and report["verification"]["netx"]["samples"] == 16
    assert report["verification"]["netx"]["compared_spikes"] > 16 * 4 * 1000
    stages = ["teacher", "distil", "quantise", "write", "verify", "simulate", "measure"]
    assert recorder.heard == [*stages, "compare", "page"]
    assert list(report["provenance"]["seconds"]) == stages
    assert any("reconstructed from the abstract" in note for note in report["student"]["notes"])


def test_report_accuracy_is_that_of_the_artefacts(built):
    result, _ = built
    data = load_dataset("digits")
    graph = read_netx(result.directory / "model.net")
    answers = run_reference(graph, graph.input.quantize(data.images)).classes()
    assert result.report["accuracy"]["quantized"] == pytest.approx((answers == data.labels).mean())
    on_samples = result.report["accuracy"]["targets"]["netx"]
    assert on_samples == {"samples": 16, "accuracy": (answers[:16] == data.labels[:16]).mean()}
    student, _ = load_student(result.directory / "student.safetensors")
    with torch.no_grad():
        classes = student(torch.from_numpy(data.images)).mean_logits().argmax(1).numpy()
    assert result.report["accuracy"]["student"] == pytest.approx((classes == data.labels).mean())
    assert result.report["accuracy"]["student"] < result.report["accuracy"]["teacher"]


def test_manifest_covers_every_file(built):
    directory = built[0].directory
    manifest = json.loads((directory / "manifest.json").read_text())
    files = set(digests(directory)) - {"manifest.json"}
    assert set(manifest["files"]) == files
    assert files == {
        "previews/step-000010.png", "previews/step-000040.png",
        "config.yaml", "distill.jsonl", "graph.npz", "model.net", "model.nir", "model.npz", "model.onnx",
        "report.html", "report.json", "student.safetensors", "synthetic.npz",
    }  # fmt: skip
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == hashlib.sha256((directory / name).read_bytes()).hexdigest()
    assert manifest["versions"]["torch"]


def test_energy_interval_is_ordered_and_static_is_separate(built):
    energy = built[0].report["energy_j"]
    for part in ("dynamic", "static", "total"):
        assert 0 < energy[part]["low"] <= energy[part]["nominal"] <= energy[part]["high"]
    assert math.isclose(
        energy["total"]["nominal"], energy["dynamic"]["nominal"] + energy["static"]["nominal"], rel_tol=1e-9
    )


def test_config_in_the_folder_builds_the_same(built, tmp_path):
    directory = built[0].directory
    again = build(load_config(directory / "config.yaml", {}), tmp_path / "again")
    for name in ("student.safetensors", "model.npz"):
        assert sha256(directory / name) == sha256(again.directory / name), name


def test_another_seed_gives_another_student(built, tmp_path):
    other = build(settings(seed=1), tmp_path / "other")
    assert sha256(other.directory / "student.safetensors") != sha256(built[0].directory / "student.safetensors")


class StopsAt(Observer):
    """Presses Ctrl-C in the middle of distillation."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def advanced(self, done, total, text=""):
        if done >= self.step:
            raise KeyboardInterrupt


def test_interrupted_build_resumes_to_the_same_bits(built, tmp_path):
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        build(settings(), out, observer=StopsAt(20))
    left = {path.name for path in out.iterdir()}
    assert left == {"config.yaml", "checkpoint.safetensors", "distill.jsonl", "previews"}
    assert len((out / "distill.jsonl").read_text().splitlines()) == 1  # that of the round before
    recorder = Recorder()
    build(settings(), out, resume=True, observer=recorder)
    assert recorder.notes == ["resumed at step 10 of 40"]
    assert sha256(out / "student.safetensors") == sha256(built[0].directory / "student.safetensors")
    assert not (out / "checkpoint.safetensors").exists()


def test_resume_skips_a_finished_distillation(copied):
    before = sha256(copied / "student.safetensors")
    recorder = Recorder()
    build(settings(), copied, resume=True, observer=recorder)
    assert any("skipped" in note for note in recorder.notes)
    assert sha256(copied / "student.safetensors") == before


def test_other_settings_do_not_overwrite(copied):
    before = digests(copied)
    with pytest.raises(ConfigError, match="--overwrite"):
        build(settings(timesteps=2), copied)
    assert digests(copied) == before
    result = build(settings(timesteps=2), copied, overwrite=True)
    assert result.report["counts"]["timesteps"] == 2


def test_files_of_somebody_else_are_not_written_over(tmp_path):
    (tmp_path / "model.net").write_text("mine")
    with pytest.raises(ConfigError, match=r"model\.net, but no build"):
        build(settings(), tmp_path)
    assert (tmp_path / "model.net").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_overwrite_goes_over_settings_that_cannot_be_read(copied):
    (copied / "config.yaml").write_text("setting_of_another_version: 1\n")
    with pytest.raises(ConfigError, match="setting_of_another_version"):
        build(settings(), copied)
    assert build(settings(), copied, overwrite=True).report["verification"]["netx"]["passed"]


def test_export_into_a_build_is_refused(copied):
    before = digests(copied)
    with pytest.raises(ConfigError, match="holds a build"):
        export_model(copied / "student.safetensors", ["netx"], copied, bits=4)
    assert digests(copied) == before


def test_resume_needs_a_build(tmp_path):
    with pytest.raises(ConfigError, match="holds no build"):
        build(settings(), tmp_path / "nothing", resume=True)
    with pytest.raises(ConfigError, match="together with --overwrite"):
        build(settings(), tmp_path / "nothing", resume=True, overwrite=True)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"targets": ["gpu"]}, TargetError),
        ({"hardware": "loihi9"}, ConfigError),
        ({"teacher": {"spec": "nowhere:factory"}}, TeacherError),
        ({"student": {"spec": "resnet"}}, ConfigError),
        ({"data": {"name": "imagenet"}}, DataError),
    ],
)
def test_wrong_input_is_refused_and_nothing_is_written(tmp_path, changes, error):
    out = tmp_path / "out"
    with pytest.raises(error):
        build(settings(**changes), out)
    assert not out.exists() or {path.name for path in out.iterdir()} <= {"config.yaml"}


def test_evaluation_set_must_fit_before_anything_is_distilled(tmp_path):
    images = np.zeros((4, 1, 9, 8), np.uint8)
    np.savez(tmp_path / "shape.npz", x_test=images, y_test=np.arange(4))
    with pytest.raises(DataError, match=r"\(1, 8, 8\)"):
        build(settings(data={"name": str(tmp_path / "shape.npz")}), tmp_path / "out")
    np.savez(tmp_path / "classes.npz", x_test=images[:, :, :8], y_test=np.arange(4))
    with pytest.raises(DataError, match="4 classes"):
        build(settings(data={"name": str(tmp_path / "classes.npz")}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_build_without_evaluation_set_has_nulls_and_fidelity(tmp_path):
    blind = settings(distill={"steps": 10}).model_copy(update={"data": DataConfig()})
    report = build(blind, tmp_path / "blind").report
    assert report["accuracy"]["teacher"] is None and report["accuracy"]["quantized"] is None
    assert report["evaluation"]["data"] is None
    assert 0 < report["fidelity"]["quantized"] <= 1


def test_scratch_student_builds(tmp_path):
    report = build(settings(student={"spec": "vgg:8-8", "decay": 0.5}, method="bn"), tmp_path / "vgg").report
    assert report["verification"]["netx"]["passed"]
    assert len(report["counts"]["per_layer"]) == 3
    assert not any("inherits" in note for note in report["student"]["notes"])


def test_open_model_refuses_what_it_is_not(built, tmp_path):
    with pytest.raises(ArtifactError, match="holds no model"):
        open_model(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        open_model(tmp_path / "missing.net")
    (tmp_path / "model.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"\.txt"):
        open_model(tmp_path / "model.txt")


def test_export_of_the_student_gives_the_build_s_integers(built, tmp_path):
    directory = built[0].directory
    result = export_model(directory / "student.safetensors", ["netx"], tmp_path / "exported")
    assert result.calibrated_on.startswith("synthetic images")
    exported = load_quantized(tmp_path / "exported" / "model.npz")
    assert find_difference(exported, load_quantized(directory / "model.npz")) == ""
    assert all(item.passed for item in result.verifications)


def test_export_of_a_lone_student_says_that_it_calibrates_on_noise(built, tmp_path):
    shutil.copy(built[0].directory / "student.safetensors", tmp_path / "student.safetensors")
    result = export_model(tmp_path / "student.safetensors", ["netx"], tmp_path / "exported", bits=6, timesteps=3)
    assert "noise" in result.calibrated_on
    graph = load_quantized(tmp_path / "exported" / "model.npz")
    assert graph.timesteps == 3 and graph.projections[0].precision.bits == 6
    assert max(abs(projection.weight).max() for projection in graph.projections) in (31, 32)


def test_export_of_a_net_keeps_its_integers(built, tmp_path):
    directory = built[0].directory
    export_model(directory / "model.net", ["netx"], tmp_path / "exported")
    assert (
        find_difference(read_netx(tmp_path / "exported" / "model.net"), load_quantized(directory / "model.npz")) == ""
    )


@pytest.mark.parametrize("name", ["student.safetensors", "model.net", ""])
def test_export_for_no_timesteps_is_refused(built, tmp_path, name):
    with pytest.raises(StarsDeployError, match="timestep"):
        export_model(built[0].directory / name, ["netx"], tmp_path / "exported", timesteps=0)
    assert not (tmp_path / "exported").exists()


def test_export_never_ignores_bits(built, tmp_path):
    directory = built[0].directory
    four = export_model(directory, ["netx"], tmp_path / "four", bits=4)
    assert four.calibrated_on.startswith("synthetic images")
    assert export_model(directory, ["netx"], tmp_path / "same").calibrated_on.startswith("nothing")
    assert {p.precision.bits for p in read_netx(tmp_path / "four" / "model.net").projections} == {4}
    with pytest.raises(ConfigError, match="--bits"):
        export_model(directory / "model.net", ["netx"], tmp_path / "file", bits=4)
    with pytest.raises(ConfigError, match="--input-bits"):
        export_model(directory, ["netx"], tmp_path / "build", input_bits=4)
    with pytest.raises(StarsDeployError, match="bits"):
        export_model(directory / "student.safetensors", ["netx"], tmp_path / "student", bits=9)
    with pytest.raises(StarsDeployError, match="bits"):
        export_model(directory / "student.safetensors", ["netx"], tmp_path / "student", bits=0)


def test_export_needs_a_target(built, tmp_path):
    with pytest.raises(ConfigError, match="--target"):
        export_model(built[0].directory, [], tmp_path / "exported")


def test_simulation_of_folder_and_file_agree_with_the_report(built):
    directory, report = built[0].directory, built[0].report
    folder = simulate_model(directory)
    file = simulate_model(directory / "model.net", data="digits")
    for result in (folder, file):
        assert result.summary["accuracy"] == report["accuracy"]["quantized"]
        assert result.summary["counts"]["per_inference"] == report["counts"]["per_inference"]
    assert json.loads(json.dumps(folder.summary["energy_j"])) == report["energy_j"]


def test_simulation_without_data_counts_on_noise(built, tmp_path):
    shutil.copy(built[0].directory / "model.net", tmp_path / "model.net")
    summary = simulate_model(tmp_path / "model.net").summary
    assert (
        summary["accuracy"] is None and summary["data"] == "noise" and summary["counts"]["per_inference"]["spikes"] > 0
    )


@pytest.mark.parametrize("name", ["", "model.net"])
def test_simulation_of_no_timesteps_is_refused(built, name):
    with pytest.raises(StarsDeployError, match="timestep"):
        simulate_model(built[0].directory / name, data="digits", timesteps=0)


def test_simulation_engine_must_exist(built):
    with pytest.raises(ConfigError, match="fast, reference"):
        simulate_model(built[0].directory, engine=EngineChoice(name="gpu"))


def test_engines_agree(built):
    fast = simulate_model(built[0].directory, limit=20, engine=EngineChoice(threads=2, memory=10_000_000)).summary
    slow = simulate_model(built[0].directory, limit=20, engine=EngineChoice(name="reference")).summary
    assert fast.pop("engine") == "fast" and slow.pop("engine") == "reference"
    assert fast == slow


def test_spikes_are_recorded_on_request(built, tmp_path):
    directory, file = built[0].directory, tmp_path / "spikes.npz"
    recording = Recording(layers=("lif2",), out=file)
    summary = simulate_model(directory, limit=5, recording=recording).summary
    assert summary["recorded"] == {"file": str(file), "layers": ["lif2"]}
    graph = load_quantized(directory / "model.npz")
    expected = run_reference(graph, graph.input.quantize(load_dataset("digits").first(5).images))
    with np.load(file) as written:
        assert sorted(written) == ["lif2", "potential"]
        np.testing.assert_array_equal(written["lif2"], expected.spikes["lif2"])
        np.testing.assert_array_equal(written["potential"], expected.potential)
    everything = simulate_model(directory, limit=2, recording=Recording(layers=("all",), out=file)).summary["recorded"]
    assert everything["layers"] == list(expected.spikes)
    with pytest.raises(ConfigError, match="lif9"):
        simulate_model(directory, limit=2, recording=Recording(layers=("lif9",), out=file))
    with pytest.raises(ConfigError, match="--engine fast"):
        simulate_model(directory, limit=2, recording=recording, engine=EngineChoice(name="reference"))


def test_payloads_are_run_as_they_are(built, tmp_path):
    directory, file = built[0].directory, tmp_path / "payloads.npz"
    graph, data = load_quantized(directory / "model.npz"), load_dataset("digits").first(20)
    payloads = graph.input.quantize(data.images)
    expected = simulate_model(directory, limit=20).summary
    for inputs in (payloads, np.repeat(payloads[:, None], graph.timesteps, axis=1)):
        np.savez(file, payloads=inputs, y_test=data.labels)
        recording = Recording(layers=("lif1",), out=tmp_path / "spikes.npz")
        summary = simulate_model(directory, data=str(file), recording=recording).summary
        assert summary["counts"] == expected["counts"] and summary["accuracy"] == expected["accuracy"]
        with np.load(tmp_path / "spikes.npz") as written:
            np.testing.assert_array_equal(written["lif1"], run_reference(graph, payloads).spikes["lif1"])
    np.savez(file, payloads=payloads + 300)
    with pytest.raises(StarsDeployError, match="300"):
        simulate_model(directory, data=str(file))


def test_how_to_read_is_only_for_net_files(built):
    with pytest.raises(ConfigError, match=r"only for a \.net"):
        simulate_model(built[0].directory, reading=Reading(timing="pipelined"))


def test_timing_of_a_net_file_is_a_choice(built):
    file = built[0].directory / "model.net"
    plain = simulate_model(file, data="digits", limit=20).summary
    same = simulate_model(file, data="digits", limit=20, reading=Reading(timing="synchronous")).summary
    lagging = simulate_model(file, data="digits", limit=20, reading=Reading(timing="pipelined")).summary
    assert same == plain
    # The readout lags by three layers and its synapse: of four timesteps none is left.
    assert lagging["counts"]["per_layer"][-1]["synops"] < plain["counts"]["per_layer"][-1]["synops"]


@pytest.mark.skipif(TARGETS["lava"].availability().ok, reason="Lava is installed")
def test_lava_engine_says_how_to_get_it(built):
    with pytest.raises(TargetError, match=r"3\.10"):
        simulate_model(built[0].directory, engine=EngineChoice(name="lava"))
    with pytest.raises(VerificationError, match=r"3\.10"):
        verify_model(built[0].directory, ["lava"])


@pytest.mark.lava
@pytest.mark.skipif(not TARGETS["lava"].availability().ok, reason="needs Lava (Python 3.10, [lava])")
def test_lava_agrees_with_the_built_network_in_every_spike(built):
    (result,) = verify_model(built[0].directory, ["lava"])
    assert result.passed and result.samples == 16
    assert result.compared_spikes == built[0].report["verification"]["netx"]["compared_spikes"]
    simulated = simulate_model(built[0].directory, engine=EngineChoice(name="lava"), limit=3)
    expected = simulate_model(built[0].directory, limit=3)
    assert simulated.summary["counts"] == expected.summary["counts"]
    assert simulated.summary["accuracy"] == expected.summary["accuracy"]


def test_compare_has_a_row_a_setting_and_marks_the_best(built):
    rows = compare_models([built[0].directory], timesteps=(1, 2, 4), limit=100)
    assert [row.evaluation.timesteps for row in rows] == [1, 2, 4]
    energies = [row.cost.energy.total.nominal for row in rows]
    assert energies == sorted(energies)
    assert {row.cost.ann.macs for row in rows} == {built[0].report["ann"]["macs"]}
    assert rows[0].pareto and any(row.pareto for row in rows)
    again = simulate_model(built[0].directory, limit=100)
    assert rows[2].evaluation.totals() == again.evaluation.totals()


def test_compare_marks_the_best_over_all_models(built, copied):
    graph = load_quantized(copied / "model.npz")
    readout = graph.projections[-1]
    upside_down = replace(readout, weight=np.maximum(-readout.weight, readout.precision.low))
    save_graph(replace(graph, projections=(*graph.projections[:-1], upside_down)), copied / "model.npz")
    rows = compare_models([built[0].directory, copied], timesteps=(4,), limit=50)
    assert rows[1].evaluation.accuracy < 0.5 < rows[0].evaluation.accuracy
    assert [row.pareto for row in rows] == [True, False]


def test_compare_quantises_again_for_other_bits(built):
    rows = compare_models([built[0].directory], timesteps=(4,), bits=(8, 3), limit=100)
    assert [row.weight_bits for row in rows] == [8, 3]
    assert rows[0].evaluation.totals() == simulate_model(built[0].directory, limit=100).evaluation.totals()
    assert rows[1].evaluation.totals() != rows[0].evaluation.totals()


@pytest.mark.parametrize(
    "settings", [{"timesteps": ()}, {"timesteps": (2, 2)}, {"timesteps": (0, 1)}, {"bits": (9,)}, {"bits": (1, 8)}]
)
def test_compare_refuses_impossible_settings(built, settings):
    with pytest.raises(ConfigError, match="each once"):
        compare_models([built[0].directory], **settings)


def test_compare_refuses_other_bits_of_a_file(built):
    with pytest.raises(ConfigError, match="float weights"):
        compare_models([built[0].directory / "model.net"], bits=(4,), data="digits")


def test_compare_needs_models_and_data(built, tmp_path):
    with pytest.raises(ConfigError, match="none given"):
        compare_models([])
    with pytest.raises(DataError, match="--data"):
        compare_models([built[0].directory / "model.net"])


def test_a_file_alone_runs_and_says_where_it_could_overflow(built):
    file = built[0].directory / "model.net"
    assert simulate_model(file, data="digits", limit=2).summary["overflow"] == ""
    summary = simulate_model(file, data="digits", limit=2, timesteps=1500).summary
    assert "lif1 accumulates up to" in summary["overflow"] and "24-bit" in summary["overflow"]
    assert "24-bit" in compare_models([file], timesteps=(1500,), data="digits", limit=2)[0].note


def test_verify_names_the_layer_that_was_changed(copied):
    with h5py.File(copied / "model.net", "r+") as file:
        weight = file["layer/2/weight"]
        weight[0] = -weight[0][()]
    results = verify_model(copied, ["netx"])
    with pytest.raises(VerificationError, match=r"layer lif2, timestep"):
        check_verified(results)
    assert results[0].mismatches > 0 and not results[0].passed


def spoil(monkeypatch, module):
    """Make the writer that `module` uses change a weight, as a wrong exporter would."""

    def write_wrongly(graph, folder, targets, **options):
        files = write_targets(graph, folder, targets, **options)
        with h5py.File(folder / "model.net", "r+") as file:
            weight = file["layer/1/weight"]
            weight[0] = -weight[0][()]
        return files

    monkeypatch.setattr(f"stars_deploy.pipeline.{module}.write_targets", write_wrongly)


def test_a_difference_fails_the_build_and_leaves_no_report(copied, monkeypatch):
    spoil(monkeypatch, "building")
    with pytest.raises(VerificationError, match="layer lif1"):
        build(settings(), copied, resume=True)
    assert not (copied / "report.json").exists() and not (copied / "manifest.json").exists()


def test_a_difference_fails_the_export(built, tmp_path, monkeypatch):
    spoil(monkeypatch, "exporting")
    with pytest.raises(VerificationError, match="layer lif1"):
        export_model(built[0].directory, ["netx"], tmp_path / "exported")


def test_the_file_of_lava_is_verified_without_lava_too(built, monkeypatch):
    monkeypatch.setattr(type(TARGETS["lava"]), "availability", lambda self: Availability(ok=False, reason="not here"))
    watch = Recorder()
    graph = load_quantized(built[0].directory / "model.npz")
    samples = distinct_samples(open_model(built[0].directory), None, 4)
    results = verify_targets(graph, built[0].directory, ["lava"], samples, watch)
    assert [(item.target, item.ran, item.passed) for item in results] == [("netx", True, True), ("lava", False, False)]
    assert watch.notes == ["lava was not run: not here"]


def test_samples_are_distinct(built):
    model = open_model(built[0].directory)
    for data in (None, load_dataset("digits")):
        images = distinct_samples(model, data, 16).images
        assert len(np.unique(images.reshape(16, -1), axis=0)) == 16
    data = load_dataset("digits")
    same = replace(data, images=np.repeat(data.images[:1], 5, 0), labels=data.labels[:5])
    with pytest.raises(DataError, match="distinct"):
        distinct_samples(model, same, 16)


def test_accuracy_of_a_target_counts_its_own_answers():
    ran = Verification(target="lava", ran=True, classes=(1, 2, 3, 4))
    assert summarize_accuracy(ran, np.array([1, 2, 3, 5])) == {"accuracy": 0.75, "samples": 4}
    assert summarize_accuracy(ran, None) is None
    assert summarize_accuracy(Verification(target="lava", ran=False), np.array([1])) is None


def test_verify_finds_a_change_that_no_sample_shows(copied):
    with h5py.File(copied / "model.net", "r+") as file:
        threshold = file["layer/1/neuron/vThMant"]
        threshold[...] = threshold[()] + 0  # the same
    assert verify_model(copied, ["netx"])[0].passed
    graph = load_quantized(copied / "model.npz")
    readout = graph.populations[-1]
    with h5py.File(copied / "model.net", "r+") as file:
        last = max(int(name) for name in file["layer"])
        file[f"layer/{last}/neuron/vThMant"][...] = readout.vth - 1  # still beyond what it can reach
    (result,) = verify_model(copied, ["netx"])
    assert result.mismatches == 0 and result.altered == "readout.vth" and not result.passed
    with pytest.raises(VerificationError, match=r"readout\.vth"):
        check_verified([result])


def test_verify_needs_two_samples(built):
    with pytest.raises(ConfigError, match="--samples"):
        verify_model(built[0].directory, samples=1)


@pytest.mark.parametrize("name", ["model.npz", "synthetic.npz", "graph.npz", "model.net", "student.safetensors"])
def test_truncated_artefacts_are_named(copied, name):
    path = copied / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StarsDeployError, match=name):
        if name == "model.npz":
            load_graph(path)
        elif name == "student.safetensors":
            export_model(path, ["netx"], copied / "out")
        elif name == "model.net":
            verify_model(copied, ["netx"])
        else:
            simulate_model(copied, timesteps=2)


def test_git_lfs_pointer_is_named(copied):
    (copied / "model.net").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(StarsDeployError, match="git lfs pull"):
        verify_model(copied, ["netx"])


def test_float_graph_in_place_of_the_integers_is_refused(copied):
    shutil.copy(copied / "graph.npz", copied / "model.npz")
    with pytest.raises(FormatError, match="QuantizedGraph"):
        simulate_model(copied)


def test_images_of_a_run_directory_round_trip(built):
    images = RunDirectory(built[0].directory).images()
    assert images.calibration.dtype == np.uint8 and images.calibration.shape == (32, 1, 8, 8)
    assert len(np.unique(images.held_out.reshape(64, -1), axis=0)) > 32
    assert images.teacher_classes.shape == (64,)


def test_teacher_is_trained_stored_and_distillable(tmp_path):
    out = tmp_path / "teacher.safetensors"
    result = train("digits", "vgg:8-8", out, epochs=15, shift=1, threads=1)
    assert result["test_accuracy"] > 0.9 and result["input_shape"] == [1, 8, 8]
    report = build(settings(teacher={"spec": str(out)}, distill={"steps": 10}), tmp_path / "build").report
    assert report["accuracy"]["teacher"] == result["test_accuracy"]


def test_teacher_file_must_be_safetensors(tmp_path):
    with pytest.raises(ConfigError, match=r"\.safetensors"):
        train("digits", "vgg:8", tmp_path / "teacher.pt")


def test_what_only_the_whole_network_shows_is_a_warning_of_every_build(built, monkeypatch):
    def silent(graph, images):
        return {population.name: 0.0 for population in graph.populations}

    monkeypatch.setattr("stars_deploy.pipeline.models.deployed_rates", silent)
    floats = load_graph(built[0].directory / "graph.npz")
    pixels = RunDirectory(built[0].directory).images().calibration / 255
    _, calibration = quantize_calibrated(floats, pixels, 8, 8)
    assert "lif1 goes silent in the deployed network" in " ".join(calibration.warnings)
    monkeypatch.undo()
    graph, calibration = quantize_calibrated(floats, pixels, 8, 8)
    assert not any("deployed" in text for text in calibration.warnings)
    rates = deployed_rates(graph, pixels)
    record = run_reference(graph, graph.input.quantize(pixels))
    assert rates == {name: pytest.approx(spikes.mean()) for name, spikes in record.spikes.items()}
