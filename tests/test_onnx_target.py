"""The ONNX target: exact in every layer, clean, deterministic, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from onnx_files import reference_counts, written
from random_graphs import Traits, graphs, random_graph

from stars_deploy.errors import FormatError, TargetError
from stars_deploy.graph import Input, Integrator, Linear, Normalize, SpikingGraph
from stars_deploy.precision import Precision
from stars_deploy.quantized import DenseProjection, Population, QuantizedGraph, QuantizedInput, find_difference
from stars_deploy.targets.base import compare_records
from stars_deploy.targets.onnx_model import MODES, SOURCES, TARGET, OnnxNetwork, OnnxTarget, read_onnx
from stars_deploy.targets.onnx_model.arithmetic import find_ranges
from stars_deploy.targets.onnx_model.biases import pack_bias
from stars_deploy.targets.onnx_model.drawing import IR_VERSION, OPSET
from stars_deploy.targets.onnx_model.runtime import find_pixels
from stars_deploy.targets.onnx_model.synapses import choose_route
from stars_deploy.targets.reference import run_reference

EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx_inference.py"


def run_all(graph, images, folder, modes, seen):
    """Write, read back and run `graph` in every mode and source, against the reference."""
    record = run_reference(graph, images)
    for mode in modes:
        for source in SOURCES:
            target, path = OnnxTarget(mode, source), folder / "model.onnx"
            try:
                target.write(graph, path)
            except TargetError as error:
                assert source == "image" and "float32 pixels cannot tell apart" in str(error)
                seen["coarse pixels"] += 1
                continue
            assert find_difference(graph, target.read(path, graph.timesteps)) == ""
            if graph.input.over_time(images) and (mode, source) == ("sequence", "image"):
                with pytest.raises(TargetError, match="one image"):
                    target.execute(path, images, graph.timesteps)
                continue
            comparison = compare_records(record, target.execute(path, images, graph.timesteps))
            assert comparison.mismatches == 0, f"{mode} {source}: {comparison.first}"
            seen[mode, source] += 1


def check_random(examples, folder, modes=MODES):
    seen = Counter()

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(graphs())
    def check(drawn):
        run_all(*drawn, folder, modes, seen)

    check()
    for mode in modes:
        assert seen[mode, "payloads"] >= examples
        assert seen[mode, "image"] > examples / 3
    return seen


def test_every_model_equals_the_reference_on_random_graphs(tmp_path):
    check_random(30, tmp_path)


@pytest.mark.slow
def test_every_model_equals_the_reference_on_many_random_graphs(tmp_path):
    assert check_random(1000, tmp_path)["coarse pixels"]


@pytest.mark.parametrize(
    "fixed",
    [
        {"loops": 4, "populations": 4, "delays": "array", "decays": "neuron", "timesteps": 8},
        {"biased_by_image": True, "decays": "leaky", "resets": True, "frames": True},
        {"payload": (24, True), "decays": "leaky", "biases": "limit", "flat_input": True},
        {"width": 24, "residuals": 3, "delays": "scalar", "timesteps": 16},
        {"resets": True, "loops": 2, "timesteps": 6, "decays": "leaky", "delays": "array"},
    ],
)
def test_rare_features_together(tmp_path, fixed):
    """The seeds are those of graphs whose last population fires, so that a wrong timestep anywhere shows."""
    found = 0
    for seed in range(60):
        graph, images = random_graph(Traits(**fixed), seed)
        record = run_reference(graph, images)
        if found < 4 and any(0.02 < layer.mean() < 0.98 for layer in record.spikes.values()):
            run_all(graph, images, tmp_path, MODES, Counter())
            found += 1
    assert found == 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", SOURCES)
def test_models_are_clean_for_checker_inference_and_runtime(tmp_path, make_chain, mode, source):
    """Strictly checked; ONNX Runtime says nothing, in a process of its own where stderr is seen."""
    layers = [{"channels": 4, "padding": (1, 1)}, {"channels": 17, "stride": (2, 2), "groups": 1}]
    graph = make_chain(3, layers)
    model = written(graph, tmp_path / "m.onnx", mode, source)

    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION
    assert all(not node.domain for node in model.graph.node)
    assert ("Scan" in {node.op_type for node in model.graph.node}) == (mode == "sequence")
    code = (
        f"import onnxruntime as o; o.InferenceSession({str(tmp_path / 'm.onnx')!r}, providers=['CPUExecutionProvider'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")


def test_writing_twice_gives_the_same_bytes(tmp_path, small_chain):
    for mode in MODES:
        for index in range(2):
            OnnxTarget(mode).write(small_chain, tmp_path / f"{mode}{index}.onnx")
        assert (tmp_path / f"{mode}0.onnx").read_bytes() == (tmp_path / f"{mode}1.onnx").read_bytes()


def test_pixels_are_quantised_in_the_model_as_by_the_input(tmp_path):
    """Halves, which rint takes to even, pixels beyond the range, and scales where float32 sees false halves."""
    for scale, offset in ((255.0, 0.0), (31.7, -3.25), (2.0, 0.5)):
        source = QuantizedInput(
            name="image", shape=(64,), precision=Precision(bits=8, signed=True), scale=scale, offset=offset
        )
        graph = QuantizedGraph(
            input=source,
            populations=(Population(name="out", shape=(64,), bias=np.zeros(64, np.int64)),),
            projections=(DenseProjection(name="w", source="image", target="out", weight=np.eye(64, dtype=int)),),
            timesteps=1,
        )
        path = tmp_path / "m.onnx"
        TARGET.write(graph, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(3)
        halves = (rng.integers(-127, 127, (400, 64)) + 0.5 - offset) / scale
        pixels = np.concatenate([halves, rng.uniform(-200, 200, (40, 64)) / scale]).astype(np.float32)
        potential = session.run(["potential"], {"image": pixels})[0]
        wanted = np.rint(pixels.astype(np.float64) * scale + offset).clip(-128, 127).astype(int)
        assert potential.tolist() == (64 * wanted).tolist()
        assert (potential == 64 * 127).any() and (potential == -64 * 128).any()


def test_logits_are_potentials_in_units_or_spike_counts(tmp_path, small_chain, make_images):
    images = make_images(small_chain, 3)
    firing = replace(small_chain, populations=(*small_chain.populations[:-1], replace(small_chain.output, vth=20)))
    for graph, readout in ((small_chain, "potential"), (firing, "spike count")):
        path = tmp_path / "m.onnx"
        TARGET.write(graph, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        pixels = find_pixels(graph.input, images)
        logits, potential, counts = session.run(["logits", "potential", "spike_counts"], {"image": pixels})
        record = run_reference(graph, images)
        wanted = (record.potential / (64 * 3.25 * 4)).astype(np.float32)
        if readout == "spike count":
            wanted = record.spikes["readout"].sum(axis=0)
            assert wanted.any()
        assert logits.tolist() == wanted.tolist() and logits.dtype == np.float32
        assert potential.tolist() == record.potential.tolist() and potential.dtype == np.int32
        assert counts.tolist() == reference_counts(graph, images)[1].tolist() and counts.dtype == np.int32
        assert session.get_modelmeta().custom_metadata_map["readout"] == readout


def test_metadata_tells_a_stranger_what_is_needed(tmp_path, small_chain):
    model = written(small_chain, tmp_path / "m.onnx", "step")
    props = {entry.key: entry.value for entry in model.metadata_props}

    assert json.loads(props["labels"]) == list(small_chain.labels) and json.loads(props["timesteps"]) == 4
    given_input = json.loads(props["input"])
    assert (given_input["scale"], given_input["low"], given_input["high"]) == (15.0, 0, 15)
    assert [layer["name"] for layer in json.loads(props["layers"])] == ["conv0", "conv1", "readout"]
    assert set(json.loads(props["versions"])) == {"stars-deploy", "onnx"}
    states = json.loads(props["state"])
    inputs, outputs = ({item.name for item in items} for items in (model.graph.input, model.graph.output))
    assert {state["input"] for state in states} == inputs - {"image"}
    assert {state["output"] for state in states} <= outputs
    assert "trunc" in props["semantics"]


@pytest.mark.parametrize("mode", MODES)
def test_biases_that_differ_at_borders_are_kept_once(tmp_path, make_images, make_chain, mode):
    graph = make_chain(3, [{"channels": 16, "padding": (1, 1)}], shape=(2, 14, 12))
    hidden = graph.populations[0]
    border = np.array([0, *[1] * 12, 2])[:, None] * 3 + np.array([0, *[1] * 10, 2])
    bias = np.random.default_rng(0).integers(-300, 300, (16, 9))[:, border]
    bordered = replace(graph, populations=(replace(hidden, bias=bias), *graph.populations[1:]))
    values, places = pack_bias(bordered.populations[0])
    assert values.shape == (9, 16) and places.tolist() != sorted(places.tolist()) and places.size == 14 * 12
    target = OnnxTarget(mode)
    target.write(bordered, tmp_path / "m.onnx")
    assert find_difference(bordered, target.read(tmp_path / "m.onnx", 4)) == ""
    images = make_images(bordered, 3)
    comparison = compare_records(run_reference(bordered, images), target.execute(tmp_path / "m.onnx", images, 4))
    assert comparison.mismatches == 0, comparison.first
    target.write(graph, tmp_path / "random.onnx")  # its biases are random: one for each neuron
    assert (tmp_path / "m.onnx").stat().st_size < (tmp_path / "random.onnx").stat().st_size


def test_metadata_notes_dt_and_the_normalisation_that_is_folded_in(tmp_path, small_chain):
    shape = small_chain.input.shape
    floats = SpikingGraph(
        nodes=(
            Input(name="image", shape=shape),
            Normalize(name="norm", mean=np.array([0.25, 0.5]), std=np.array([0.5, 2.0])),
            Linear(name="dense", weight=np.ones((3, int(np.prod(shape)))), bias=np.zeros(3)),
            Integrator(name="readout"),
        ),
        edges=(("image", "norm"), ("norm", "dense"), ("dense", "readout")),
        dt=2e-3,
    )
    found = []
    for origin in (floats, None):
        TARGET.write(small_chain, tmp_path / "m.onnx", origin)
        assert find_difference(read_onnx(tmp_path / "m.onnx").graph, small_chain) == ""
        model = onnx.load(tmp_path / "m.onnx")
        props = {entry.key: entry.value for entry in model.metadata_props}
        found.append((json.loads(props["dt"]), json.loads(props["normalization"])))
    assert found == [(2e-3, {"mean": [0.25, 0.5], "std": [0.5, 2.0], "folded": True}), (None, None)]
    for key, value in (("dt", '"soon"'), ("normalization", '{"mean": 1}'), ("normalization", "[1]"), ("versions", "3")):
        damaged = onnx.load(tmp_path / "m.onnx")
        next(entry for entry in damaged.metadata_props if entry.key == key).value = value
        (tmp_path / "damaged.onnx").write_bytes(damaged.SerializeToString())
        with pytest.raises(FormatError, match="damaged description"):
            read_onnx(tmp_path / "damaged.onnx")


def test_model_is_at_most_a_third_larger_than_its_weights(tmp_path, make_chain):
    graph = make_chain(2, [{"channels": 32, "padding": (1, 1)}, {"channels": 64, "stride": (2, 2), "padding": (1, 1)}],
                       shape=(1, 28, 28))  # fmt: skip
    uniform = replace(graph, populations=tuple(replace(p, bias=np.full(p.shape, 5)) for p in graph.populations))
    TARGET.write(uniform, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size <= 1.3 * sum(item.weight.size for item in graph.projections)


@pytest.mark.parametrize("mode", MODES)
def test_network_runs_batches_in_parts(tmp_path, small_chain, make_images, mode):
    OnnxTarget(mode).write(small_chain, tmp_path / "m.onnx")
    network = OnnxNetwork(tmp_path / "m.onnx")
    network.samples = 4
    images = make_images(small_chain, 11)
    potential, counts = network.run(images)
    wanted = reference_counts(small_chain, images)
    assert potential.tolist() == wanted[0].tolist() and counts.tolist() == wanted[1].tolist()
    assert network.graph.labels == small_chain.labels


def test_a_stream_goes_on_beyond_its_timesteps(tmp_path):
    """The bounds of a step must not be those of T timesteps: here the membrane clips long after them."""
    weight = np.full((1, 1), 100)
    graph = QuantizedGraph(
        input=QuantizedInput(name="image", shape=(1,), precision=Precision(bits=8, signed=True)),
        populations=(Population(name="out", shape=(1,), decay_u=2000, decay_v=1, bias=np.zeros(1, np.int64)),),
        projections=(DenseProjection(name="w", source="image", target="out", weight=weight),),
        timesteps=2,
    )
    assert not find_ranges(graph, graph.output, 2).clips and find_ranges(graph, graph.output, None).clips
    path = tmp_path / "m.onnx"
    OnnxTarget("step", "payloads").write(graph, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = run_reference(graph.with_timesteps(40), np.array([[120], [-128]]))
    state = {"u/out": np.zeros((2, 1), np.int32), "v/out": np.zeros((2, 1), np.int32)}
    names = [output.name for output in session.get_outputs()]
    for _ in range(40):
        answer = dict(
            zip(names, session.run(names, {"payloads": np.array([[120], [-128]], np.int32), **state}), strict=True)
        )
        state = {name: answer[f"next/{name}"] for name in state}
    assert answer["potential"].tolist() == wanted.potential.tolist()
    assert wanted.potential.ravel().tolist() == [(1 << 23) - 1, 1 - (1 << 23)]


def one_layer(**options):
    source = {key: options.pop(key) for key in ("scale", "offset") if key in options}
    delay = options.pop("delay", 0)
    timesteps = options.pop("timesteps", 2)
    return QuantizedGraph(
        input=QuantizedInput(name="image", shape=(2,), **source),
        populations=(Population(name="out", shape=(3,), bias=np.zeros(3, np.int64), **options),),
        projections=(
            DenseProjection(name="w", source="image", target="out", weight=np.ones((3, 2), int), delay=delay),
        ),
        timesteps=timesteps,
    )


@pytest.mark.parametrize(
    ("graph", "named"),
    [
        (replace(one_layer(), populations=(replace(one_layer().output, scale=0.0),)), "out: scale 0.0"),
        (replace(one_layer(), populations=(replace(one_layer().output, scale=float("nan")),)), "scale nan"),
        (one_layer(delay=5000), "w.delay: 5000"),
        (one_layer(timesteps=1 << 17), "timesteps: 131072"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, graph, named):
    with pytest.raises(TargetError, match=named):
        TARGET.write(graph, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_image_without_a_scale_is_refused(tmp_path):
    graph = QuantizedGraph(
        input=QuantizedInput(name="image", shape=(2,), scale=0.0),
        populations=one_layer().populations,
        projections=one_layer().projections,
        timesteps=2,
    )
    with pytest.raises(TargetError, match=r"image: scale 0\.0"):
        TARGET.write(graph, tmp_path / "m.onnx")
    OnnxTarget(source="payloads").write(graph, tmp_path / "m.onnx")


def test_unknown_modes_and_sources():
    with pytest.raises(TargetError, match="onnx mode: 'loop'"):
        OnnxTarget("loop")
    with pytest.raises(TargetError, match="onnx source: 'video'"):
        OnnxTarget(source="video")
    assert TARGET.availability().ok


def test_other_timesteps_are_refused_with_the_remedy(tmp_path, small_chain):
    TARGET.write(small_chain, tmp_path / "m.onnx")
    with pytest.raises(FormatError, match="export it again for 8 timesteps"):
        TARGET.read(tmp_path / "m.onnx", 8)
    assert read_onnx(tmp_path / "m.onnx").graph.timesteps == 4


def test_example_needs_onnxruntime_and_numpy_only(tmp_path, small_chain, make_images):
    TARGET.write(small_chain, tmp_path / "m.onnx")
    images = make_images(small_chain, 3)
    np.savez(tmp_path / "i.npz", images=images / 15.0, labels=np.array([0, 1, 2]))
    hidden = "import sys; sys.modules['stars_deploy'] = sys.modules['onnx'] = sys.modules['torch'] = None; "
    code = f"{hidden}import runpy; sys.argv = ['x', {str(tmp_path / 'm.onnx')!r}, {str(tmp_path / 'i.npz')!r}]; "
    code += f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    record = run_reference(small_chain, images)
    for index, chosen in enumerate(record.classes()):
        assert f"image {index}: class {chosen} class {chosen} (truth {index})" in run.stdout
    spikes = record.spikes["conv0"][:, 2].sum()
    assert f"spikes in 4 timesteps: conv0 {spikes}, " in run.stdout


@pytest.mark.parametrize("outputs", [17, 24, 31, 49, 32, 40])
def test_every_row_of_a_tile_is_right(tmp_path, outputs):
    """ONNX Runtime 1.23 on AMX gets row 31 of 32 wrong where the last tile of 32 columns is more than half full."""
    rng = np.random.default_rng(outputs)
    graph = QuantizedGraph(
        input=QuantizedInput(name="image", shape=(36,), precision=Precision(bits=1, signed=False), scale=1.0),
        populations=(Population(name="out", shape=(outputs,), bias=np.zeros(outputs, np.int64)),),
        projections=(
            DenseProjection(name="w", source="image", target="out", weight=rng.integers(-128, 128, (outputs, 36))),
        ),
        timesteps=1,
    )
    images = rng.integers(0, 2, (100, 36))
    TARGET.write(graph, tmp_path / "m.onnx")
    record = TARGET.execute(tmp_path / "m.onnx", images, 1)
    assert record.potential.tolist() == run_reference(graph, images).potential.tolist()


def test_sums_beyond_24_bits_take_double(tmp_path):
    """Large terms that cancel: the result is small, but float32 would lose the odd unit on the way."""
    weight = np.array([[32767, 32767, 1, -32768, -32766]])
    graph = QuantizedGraph(
        input=QuantizedInput(name="image", shape=(5,), precision=Precision(bits=8, signed=False)),
        populations=(Population(name="out", shape=(1,), bias=np.zeros(1, np.int64)),),
        projections=(
            DenseProjection(
                name="w", source="image", target="out", weight=weight, precision=Precision(bits=16, signed=True)
            ),
        ),
        timesteps=1,
    )
    rng = np.random.default_rng(0)
    images = np.full((50, 5), 255) - rng.integers(0, 2, (50, 5))
    OnnxTarget(source="payloads").write(graph, tmp_path / "m.onnx")
    record = TARGET.execute(tmp_path / "m.onnx", images, 1)
    assert record.potential.tolist() == run_reference(graph, images).potential.tolist()
    assert {"double", "float"} == {choose_route(graph.projections[0], 0, high) for high in (255, 1)}
