"""From any model to any target, through the calls and commands that a user makes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conformance_graphs import GRAPHS
from typer.testing import CliRunner

from stars_deploy.artifacts import write_arrays
from stars_deploy.cli import app
from stars_deploy.config import OnnxConfig
from stars_deploy.engine import run_fast
from stars_deploy.errors import ArtifactError, ConfigError, DataError, FormatError, StarsDeployError, TargetError
from stars_deploy.pipeline import EngineChoice, Importing, Observer, Reading, export_model, simulate_model, verify_model
from stars_deploy.pipeline.models import open_model
from stars_deploy.quantized import find_difference
from stars_deploy.serde import load_quantized, load_spiking, save_graph
from stars_deploy.targets.base import Availability

NIR = Path(__file__).parent / "data" / "nir"
ALL = ["netx", "onnx", "nir"]


class Notes(Observer):
    def __init__(self):
        super().__init__()
        self.notes = []

    def noted(self, text):
        self.notes.append(text)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The network `deep` in every format that needs no runtime of its own."""
    folder = tmp_path_factory.mktemp("exported")
    save_graph(GRAPHS["deep"], folder / "start.npz")
    result = export_model(folder / "start.npz", ALL, folder / "out")
    assert [item.target for item in result.verifications] == ALL and all(item.passed for item in result.verifications)
    return folder / "out"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A convolutional network of SpikingJelly, quantised on noise."""
    folder = tmp_path_factory.mktemp("imported")
    watch = Notes()
    result = export_model(
        NIR / "spikingjelly_conv.nir", ALL, folder, timesteps=5, importing=Importing(dt=1e-4), observer=watch
    )
    return folder, result, watch


@pytest.mark.parametrize("file", ["model.npz", "model.net", "model.onnx", "model.nir", ""])
def test_any_file_goes_to_any_target(exported, tmp_path, file):
    result = export_model(exported / file, ALL, tmp_path)
    assert all(item.passed and item.compared_spikes > 1000 for item in result.verifications)
    assert find_difference(load_quantized(tmp_path / "model.npz"), GRAPHS["deep"]) == ""
    assert result.calibrated_on.startswith("nothing") and not result.layers


def test_a_file_alone_can_be_verified_and_simulated(exported):
    for name in ("model.onnx", "model.nir"):
        (result,) = verify_model(exported / name)
        assert result.passed and result.target == name.removeprefix("model.")
        assert simulate_model(exported / name, limit=4).summary["counts"]["samples"] == 4
    with pytest.raises(ConfigError, match=r"--against nir.*another format.*export"):
        verify_model(exported / "model.onnx", ["nir"])


def test_what_there_is_is_verified(exported, tmp_path):
    for name in ("model.npz", "model.onnx"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    assert [item.target for item in verify_model(tmp_path)] == ["onnx"]
    with pytest.raises(ArtifactError, match=r"model\.nir: does not exist"):
        verify_model(tmp_path, ["onnx", "nir"])
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ConfigError, match="holds no artefact to verify"):
        verify_model(tmp_path)


@pytest.mark.parametrize("target", ALL)
def test_first_difference_is_named_whatever_the_target(exported, tmp_path, target):
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    graph = load_quantized(tmp_path / "model.npz")
    second = graph.projections[1]
    changed = replace(second, weight=-second.weight)
    save_graph(
        replace(graph, projections=(graph.projections[0], changed, *graph.projections[2:])), tmp_path / "model.npz"
    )
    (result,) = verify_model(tmp_path, [target])
    assert result.altered == "conv2.weight" and result.first.layer == "lif2"
    expected = run_fast(load_quantized(tmp_path / "model.npz"), np.zeros((1, 2, 6, 5), int)).spikes["lif2"].shape[2:]
    assert len(result.first.neuron) == len(expected) and {result.first.expected, result.first.got} == {0, 1}
    answer = run("verify", tmp_path, "--against", target)
    assert answer.exit_code == 1
    flat = " ".join(answer.output.split())
    assert "layer lif2, timestep" in flat and "neuron (" in flat and "expected" in flat and "got" in flat


def test_onnx_engine_counts_what_the_fast_engine_counts(exported):
    fast = simulate_model(exported, limit=8).summary
    run_onnx = simulate_model(exported, limit=8, engine=EngineChoice(name="onnx", threads=1)).summary
    assert run_onnx["engine"] == "onnx" and run_onnx["counts"] == fast["counts"]
    assert fast["counts"]["per_inference"]["spikes"] > 10


def test_onnx_engine_writes_a_model_where_none_holds_the_network(exported):
    watch = Notes()
    longer = {"limit": 4, "timesteps": 7}
    found = simulate_model(exported / "model.net", engine=EngineChoice(name="onnx"), observer=watch, **longer).summary
    assert found["counts"] == simulate_model(exported / "model.net", **longer).summary["counts"]
    assert found["timesteps"] == 7 and "written for this simulation" in watch.notes[0]


def test_lava_engine_needs_a_net(exported, monkeypatch):
    monkeypatch.setattr("stars_deploy.targets.lava.LavaTarget.availability", lambda self: Availability(ok=True))
    with pytest.raises(ConfigError, match=r"--engine lava.*\.net"):
        simulate_model(exported / "model.onnx", engine=EngineChoice(name="lava"))


@pytest.mark.parametrize("mode", ["sequence", "step"])
@pytest.mark.parametrize("source", ["image", "payloads"])
def test_onnx_is_written_as_asked(exported, tmp_path, mode, source):
    result = export_model(exported, ["onnx"], tmp_path, onnx=OnnxConfig(mode=mode, input=source))
    assert result.verifications[0].passed
    model = onnx.load(tmp_path / "model.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props}["mode"] == mode
    assert model.graph.input[0].name == source


def test_spikes_are_payloads_unless_something_else_is_asked(tmp_path):
    save_graph(GRAPHS["spikes as input"], tmp_path / "spikes.npz")
    result = export_model(tmp_path / "spikes.npz", ALL, tmp_path / "out")
    assert all(item.passed and item.samples == 16 for item in result.verifications)
    inputs = onnx.load(tmp_path / "out" / "model.onnx").graph.input
    assert [tensor.name for tensor in inputs] == ["payloads"]


def test_foreign_network_is_quantised_and_reported(imported):
    folder, result, _ = imported
    assert result.calibrated_on == "noise" and all(item.passed for item in result.verifications)
    graph = load_quantized(folder / "model.npz")
    assert [layer.name for layer in result.layers] == [population.name for population in graph.populations]
    for layer in result.layers:
        assert layer.scale > 0 and 0 < layer.weight_error < 0.1 and 0 <= layer.clipped < 0.1
    fires = [layer for layer in result.layers if layer.fires]
    assert fires and any(layer.rate > 0.01 for layer in fires)
    assert all(abs(layer.rate - layer.quantized_rate) < 0.05 for layer in fires)
    assert load_spiking(folder / "graph.npz").timesteps == 5
    assert all(item.passed for item in verify_model(folder))


def test_our_nir_keeps_the_float_weights(imported, tmp_path):
    folder, _, _ = imported
    export_model(folder / "model.nir", ["onnx"], tmp_path / "same")
    assert find_difference(load_quantized(tmp_path / "same" / "model.npz"), load_quantized(folder / "model.npz")) == ""
    four = export_model(folder / "model.nir", ["nir"], tmp_path / "four", bits=4)
    assert {item.precision.bits for item in load_quantized(tmp_path / "four" / "model.npz").projections} == {4}
    assert [layer.name for layer in four.layers] and four.layers[0].weight_error > 0.01


def test_a_silent_population_is_said(tmp_path):
    """Images that hardly drive the network: it goes silent, and the export says so."""
    write_arrays(tmp_path / "dark.npz", {"images": np.zeros((4, 1, 8, 8), np.uint8)})
    watch = Notes()
    asked = Importing(dt=1e-4, calibration=str(tmp_path / "dark.npz"))
    result = export_model(
        NIR / "spikingjelly_conv.nir", ["nir"], tmp_path / "out", timesteps=5, importing=asked, observer=watch
    )
    assert result.calibrated_on.endswith("dark.npz")
    assert any("never fires" in text or "silent" in text for text in result.warnings)
    assert set(result.warnings) <= set(watch.notes)


def test_recurrent_network_needs_to_be_told_its_delay(tmp_path):
    recurrent = NIR / "snntorch_rleaky.nir"
    with pytest.raises(StarsDeployError, match="recurrent-delay"):
        export_model(recurrent, ["onnx"], tmp_path / "no", timesteps=6, input_bits=1, importing=Importing(dt=1e-4))
    assert not (tmp_path / "no").exists()
    asked = Importing(dt=1e-4, recurrent_delay=1)
    result = export_model(recurrent, ALL, tmp_path / "yes", timesteps=6, input_bits=1, importing=asked)
    assert result.calibrated_on == "noise of spikes" and all(item.passed for item in result.verifications)
    graph = load_quantized(tmp_path / "yes" / "model.npz")
    assert any(np.max(projection.delay) == 1 for projection in graph.projections)


def test_spikes_over_time_calibrate(tmp_path):
    frames = np.random.default_rng(0).random((5, 6, 1, 8, 8)) < 0.3
    write_arrays(tmp_path / "frames.npz", {"images": frames})
    asked = Importing(dt=1e-4, calibration=str(tmp_path / "frames.npz"))
    result = export_model(
        NIR / "spikingjelly_conv.nir", ["onnx"], tmp_path / "out", timesteps=6, input_bits=1, importing=asked
    )
    assert result.calibrated_on.endswith("frames.npz") and result.verifications[0].passed
    with pytest.raises(DataError, match=r"frames\.npz:images.*7 timesteps"):
        export_model(
            NIR / "spikingjelly_conv.nir", ["onnx"], tmp_path / "no", timesteps=7, input_bits=1, importing=asked
        )


def test_normalisation_of_another_tool_is_folded_in(tmp_path):
    asked = Importing(dt=1e-4, mean=(0.3,), std=(0.5,))
    export_model(NIR / "spikingjelly_conv.nir", ["nir"], tmp_path / "out", timesteps=5, importing=asked)
    graph = load_spiking(tmp_path / "out" / "graph.npz")
    assert [type(node).__name__ for node in graph.nodes].count("Normalize") == 1
    for wrong in (replace(asked, mean=(0.1, 0.2)), replace(asked, std=(1.0, 1.0))):
        with pytest.raises(ConfigError, match="one a channel"):
            export_model(NIR / "spikingjelly_conv.nir", ["nir"], tmp_path / "no", timesteps=5, importing=wrong)
    with pytest.raises(ConfigError, match="its own normalisation"):  # nor is it ignored where the integers are known
        export_model(tmp_path / "out" / "model.nir", ["nir"], tmp_path / "no", importing=replace(asked, dt=None))
    with pytest.raises(ConfigError, match="its own normalisation"):
        export_model(
            tmp_path / "out" / "model.nir", ["nir"], tmp_path / "no", bits=6, importing=replace(asked, dt=None)
        )


@pytest.mark.parametrize(
    ("file", "options", "words"),
    [
        ("spikingjelly_conv.nir", ["--timesteps", 5], "dt"),
        ("spikingjelly_conv.nir", ["--dt", "1e-4"], "timesteps"),
        ("spikingjelly_conv.nir", ["--dt", "-1", "--timesteps", 5], "dt"),
        ("spikingjelly_conv.nir", ["--dt", "1e-4", "--timesteps", 5, "--calibration", "nowhere.npz"], "nowhere.npz"),
        ("spikingjelly_conv.nir", ["--dt", "1e-4", "--timesteps", 5, "--onnx-mode", "loop"], "mode"),
        ("spikingjelly_conv.nir", ["--dt", "1e-4", "--timesteps", 5, "--mean", "a"], "--mean"),
        ("spikingjelly_conv.npz", [], "schema|readable graph"),
        ("README.md", [], r"\.md file"),
    ],
)
def test_wrong_input_exits_2_and_writes_nothing(tmp_path, file, options, words):
    result = run("export", NIR / file, "--target", "onnx", "--out", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert re.search(words, " ".join(result.output.split())), result.output
    assert not (tmp_path / "out").exists()


def test_options_are_refused_where_they_mean_nothing(exported, tmp_path):
    for option in (Importing(dt=1e-3), Importing(recurrent_delay=1), Importing(mean=(0.1,))):
        with pytest.raises(ConfigError, match=r"only for a \.nir"):
            export_model(exported / "model.net", ["onnx"], tmp_path / "out", importing=option)
    with pytest.raises(ConfigError, match="--calibration"):
        export_model(exported / "model.net", ["onnx"], tmp_path / "out", importing=Importing(calibration="noise"))
    with pytest.raises(ConfigError, match=r"only for a \.net"):
        open_model(exported / "model.onnx", reading=Reading(timing="pipelined"))
    assert not (tmp_path / "out").exists()


def test_foreign_nir_has_no_integers_to_run():
    with pytest.raises(FormatError, match="export"):
        simulate_model(NIR / "spikingjelly_conv.nir")


def test_a_target_that_cannot_carry_the_network_leaves_nothing(exported, tmp_path):
    save_graph(GRAPHS["residual sum"], tmp_path / "sum.npz")
    with pytest.raises(TargetError, match="one projection into each population"):
        export_model(tmp_path / "sum.npz", ["onnx", "netx"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["sum.npz"]
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(TargetError):
        export_model(tmp_path / "sum.npz", ["onnx", "netx"], tmp_path)
    assert all(item.passed for item in verify_model(tmp_path))


def test_an_older_float_graph_does_not_stay_beside_other_integers(imported, exported, tmp_path):
    for file in imported[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    export_model(exported / "model.net", ["nir"], tmp_path)
    assert all(item.passed for item in verify_model(tmp_path, ["nir"]))
    assert not (tmp_path / "graph.npz").exists()


def test_export_prints_what_quantisation_cost(tmp_path):
    options = ["--dt", "1e-4", "--timesteps", 5, "--target", "onnx", "--target", "nir"]
    result = run("export", NIR / "spikingjelly_conv.nir", *options, "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    for word in ("quantisation, on noise", "clipped", "weight error", "rate, float", "identical"):
        assert word in result.stdout
    content = json.loads(
        run("export", NIR / "spikingjelly_conv.nir", *options, "--out", tmp_path / "b", "--json").stdout
    )
    assert [item["passed"] for item in content["verification"].values()] == [True, True]
    layer = content["quantization"]["layers"][0]
    assert {"name", "scale", "clipped", "weight_error", "rate", "quantized_rate"} <= set(layer)
