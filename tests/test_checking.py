"""``check``: what maps onto a chip before any training, and what is said about what does not."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from stars_deploy.cli import app
from stars_deploy.config import load_config
from stars_deploy.errors import ConfigError, FormatError, TeacherError
from stars_deploy.pipeline import build
from stars_deploy.pipeline.checking import check_network
from stars_deploy.quantized import DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.serde import save_graph


def of(spec="vgg:8-16", shape=(1, 12, 12), **changes):
    """The settings of a teacher without weights."""
    teacher = {"input_shape": shape, "mean": [0.5] * shape[0], "std": [0.25] * shape[0]}
    return load_config(None, {"teacher": teacher, **changes})


def dense_graph(inputs, outputs, bits=8):
    from stars_deploy.precision import Precision

    return QuantizedGraph(
        input=QuantizedInput(name="image", shape=(inputs,)),
        populations=(Population(name="out", shape=(outputs,), bias=np.zeros(outputs, int)),),
        projections=(
            DenseProjection(
                name="p", source="image", target="out", weight=np.ones((outputs, inputs), int),
                precision=Precision(bits=bits, signed=True),
            ),
        ),
        timesteps=2,
    )  # fmt: skip


@pytest.fixture
def file(tmp_path):
    """A function that writes a graph to a file."""

    def write(graph):
        save_graph(graph, tmp_path / "model.npz")
        return str(tmp_path / "model.npz")

    return write


def test_a_teacher_without_weights_is_mapped():
    found = check_network("vgg:8-16", config=of())
    assert found.fits and not found.obstacles
    layers = {layer.name: (layer.neurons, layer.cores) for layer in found.mapping.layers}
    assert layers == {"lif1": (8 * 144, 2), "lif2": (16 * 36, 2), "readout": (10, 1)}  # strips of 8 and 4 columns
    assert "untrained" in found.kind


def test_fewer_bits_take_fewer_words():
    wide, narrow = (check_network("vgg:8-64", config=of(bits=bits)).mapping.layers[1] for bits in (8, 3))
    assert wide.synaptic_words > narrow.synaptic_words > 0


def test_a_layer_without_a_spiking_counterpart_is_named():
    found = check_network("torchvision:resnet18", config=of(shape=(3, 64, 64)))
    assert not found.fits and found.mapping is None
    assert "MaxPool2d" in str(found.obstacles[0])
    assert found.advice.layer == found.obstacles[0].where
    problem = found.summary()["problems"][0]
    assert problem["limit"] == "layers" and "--student" in problem["remedy"]


def test_a_students_own_topology_may_fit_where_the_teachers_does_not():
    config = of(shape=(3, 64, 64), student={"spec": "vgg:4-8"})
    assert check_network("torchvision:resnet18", config=config).fits


@pytest.mark.parametrize(
    ("graph", "hardware", "limit", "got"),
    [
        (dense_graph(5000, 4), "loihi1", "axons_in", 5000),
        (dense_graph(13000, 1), "loihi2", "synaptic_words", 13000),
        (dense_graph(10, 3, bits=12), "loihi2", "weight_bits", 12),
    ],
)
def test_what_does_not_fit_is_named_with_its_limit(file, graph, hardware, limit, got):
    found = check_network(file(graph), hardware=hardware)
    assert not found.fits
    problem = {problem.limit: problem for problem in found.mapping.problems}[limit]
    assert (problem.layer, problem.got) == ("out", got) and problem.got > problem.allowed and problem.remedy
    assert found.advice.layer == "out" and "times what there is" in found.advice.reason


def test_the_layer_to_change_first_takes_the_most_cores():
    found = check_network("vgg:32-8", config=of(shape=(1, 32, 32)))
    assert (
        found.advice.layer == "lif1" and "bound by neurons" in found.advice.reason and "stride" in found.advice.remedy
    )


def test_several_chips_are_in_doubt_and_counted_whole():
    found = check_network("vgg:32-8-4-4", config=of(shape=(1, 60, 60)), hardware="loihi1")
    cores, places = found.mapping.utilisation()["cores"]
    assert found.fits and found.mapping.chips > 1 and places == found.mapping.chips * 128 >= cores
    assert any("links between chips" in note for note in found.mapping.notes)
    assert "would save a chip" in found.advice.remedy


@pytest.mark.parametrize(
    ("subject", "options", "error", "message"),
    [
        ("vgg:8-16", {"config": load_config(None, {})}, TeacherError, "--input-shape"),
        ("vgg:8-16", {"config": of(), "hardware": "loihi3"}, ConfigError, "loihi1, loihi2"),
        ("nothing:at_all", {"config": of()}, TeacherError, "nothing"),
        ("vgg:0", {"config": of()}, ConfigError, "vgg:0"),
    ],
)
def test_what_cannot_be_opened_is_refused(subject, options, error, message):
    with pytest.raises(error, match=message):
        check_network(subject, **options)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "broken.net").write_bytes(b"not HDF5 at all")
    with pytest.raises(FormatError):
        check_network(str(tmp_path / "broken.net"))


def test_check_exits_1_if_it_does_not_fit_and_0_if_it_does(file):
    run = CliRunner().invoke
    small, large = file(dense_graph(20, 4)), None
    fits = run(app, ["check", small, "--json"])
    assert fits.exit_code == 0 and json.loads(fits.stdout)["fits"] is True
    large = file(dense_graph(5000, 4))
    fails = run(app, ["check", large, "--hardware", "loihi1", "--json"])
    content = json.loads(fails.stdout)
    assert (
        fails.exit_code == 1
        and content["problems"][0]["limit"] == "axons_in"
        and content["change_first"]["layer"] == "out"
    )
    told = run(app, ["check", large, "--hardware", "loihi1"])
    assert (
        told.exit_code == 1 and "5,000 axons in a core, at most 4,096" in told.stdout and "does not fit" in told.stdout
    )


def test_check_is_told_of_bad_options():
    result = CliRunner().invoke(app, ["check", "vgg:8", "--input-shape", "1,x", "--json"])
    assert result.exit_code == 2 and json.loads(result.stdout)["error"]["where"] == "--input-shape"


def test_a_build_refuses_what_the_chip_cannot_hold_before_it_distils(tmp_path):
    from stars_deploy.hardware import load_profile

    text = tmp_path / "tiny.yaml"
    from importlib import resources

    source = (resources.files("stars_deploy") / "profiles" / "loihi1.yaml").read_text()
    limit = "axons_in_per_core:\n    {nominal: 4096, low: 4096"
    assert limit in source
    text.write_text(source.replace(limit, limit.replace("4096", "100")).replace("name: loihi1", "name: narrow"))
    assert load_profile(text).limits.axons_in_per_core.nominal == 100
    with pytest.raises(ConfigError, match="readout: 128 input axons on one core, at most 100") as caught:
        build(load_config(None, {"hardware": str(text)}), tmp_path / "run")
    assert caught.value.exit_code == 2 and not (tmp_path / "run").exists()


def test_simulate_refuses_what_the_chip_cannot_hold(file):
    result = CliRunner().invoke(app, ["simulate", file(dense_graph(5000, 4)), "--hardware", "loihi1", "--json"])
    assert result.exit_code == 2, result.output
    assert "5,000 input axons on one core" in json.loads(result.stdout)["error"]["got"]


@pytest.mark.parametrize("steps", ["0", "-1", "1,1", "2000000", "x", ""])
def test_impossible_timesteps_are_named(steps, file):
    result = CliRunner().invoke(app, ["compare", file(dense_graph(20, 4)), f"--timesteps={steps}", "--json"])
    assert result.exit_code == 2 and "--timesteps" in json.loads(result.stdout)["error"]["where"]


def test_an_empty_evaluation_set_is_named(file, tmp_path):
    np.savez(tmp_path / "empty.npz", x_test=np.zeros((0, 20)), y_test=np.zeros(0, int))
    result = CliRunner().invoke(
        app, ["simulate", file(dense_graph(20, 4)), "--data", str(tmp_path / "empty.npz"), "--json"]
    )
    assert result.exit_code == 2 and "empty.npz" in json.loads(result.stdout)["error"]["where"]


def test_report_refuses_what_is_not_a_build(tmp_path):
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--json"])
    assert result.exit_code == 2 and "report.json" in json.loads(result.stdout)["error"]["got"]
    (tmp_path / "report.json").write_text('{"schema": 1}')
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--json"])
    assert result.exit_code == 2 and json.loads(result.stdout)["error"]["remedy"] == "build again"
