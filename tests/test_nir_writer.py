"""NIR files that are written: read back they are the same graph, and ``nir`` finds in them what other tools need."""

from __future__ import annotations

import dataclasses
import json

import h5py
import nir
import numpy as np
import pytest
from nir_files import GRAPHS, biased, chain, deep, describe, described, find_unequal, recurrent, residual, single

from stars_deploy import __version__
from stars_deploy.errors import ConfigError, GraphError, TargetError
from stars_deploy.export.execution import run_float
from stars_deploy.graph import BatchNorm, Conv2d, Input, Integrator, Linear, Normalize, SpikingGraph
from stars_deploy.lowering.rounding import Rounding
from stars_deploy.precision import Precision
from stars_deploy.quantized import QuantizedInput
from stars_deploy.targets.nir_graph import layout, metadata, writer
from stars_deploy.targets.nir_graph.names import portable_names
from stars_deploy.targets.nir_graph.reader import read_nir
from stars_deploy.targets.nir_graph.writer import write_nir


def written(graph, path, **options):
    write_nir(graph, None, path, **options)
    return path


def loaded(path, type_check=False):
    return nir.read(path, type_check=type_check)


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize(("dt", "file_dt"), [(1e-3, 1e-4), (1e-4, 1e-4), (1 / 3, 0.07), (0.0017, 1e-4), (0.0017, 1e-3)])
@pytest.mark.parametrize("name", GRAPHS)
def test_what_is_read_back_is_equal(tmp_path, name, dt, file_dt):
    graph = GRAPHS[name](dt)
    file = read_nir(written(graph, tmp_path / "m.nir", dt=file_dt))
    assert find_unequal(graph, file.graph) == ""
    assert file.rounding is None
    other = read_nir(tmp_path / "m.nir", timesteps=9, dt=dt).graph
    assert other.timesteps == 9 and find_unequal(dataclasses.replace(graph, timesteps=9), other) == ""


def test_the_comparison_sees_every_difference():
    """What the test above rests on."""
    graph = deep()
    assert find_unequal(graph, deep(1e-4)) == "dt"
    assert find_unequal(graph, residual()) != ""
    lif = graph.node("conv/lif")
    for change in ({"v_reset": -0.26}, {"tau_mem": lif.tau_mem * (1 + 1e-7)}, {"tau_mem": 0.1}):
        nodes = tuple(dataclasses.replace(n, **change) if n is lif else n for n in graph.nodes)
        assert find_unequal(graph, graph.with_nodes(nodes, graph.edges)).startswith("conv/lif.")


def test_times_that_float32_does_not_give_back_are_in_the_metadata(tmp_path):
    graph = recurrent(0.0017)
    path = written(graph, tmp_path / "m.nir")
    exact = described(path)["exact"]
    assert exact and set(exact) <= {"h", "late", "later", "end"}
    describe(path, exact={})
    assert find_unequal(graph, read_nir(path).graph) != ""
    # On the graph's own grid nothing needs to be said.
    assert described(written(recurrent(1e-4), tmp_path / "n.nir"))["exact"] == {}


def test_rounding_is_carried(tmp_path):
    graph = deep()
    precisions = {
        "conv.0": Precision(bits=8, signed=True),
        "conv.1": Precision(bits=6, signed=True, exponent=1, rounding="truncate"),
        "class": Precision(bits=5, signed=True),
        "head": Precision(bits=8, signed=True),
    }
    rounding = Rounding(
        input=QuantizedInput(name="image", shape=(2, 6, 5), precision=Precision(bits=9, signed=True), scale=85.3),
        scales={"0": 3.5, "readout": 1 / 3, "type": 64.0, "conv/lif": 17.25},
        precisions=precisions,
        resets={"type": (5, 2)},
    )
    write_nir(graph, rounding, tmp_path / "m.nir")
    back = read_nir(tmp_path / "m.nir").rounding
    assert back == rounding
    assert (list(back.scales), list(back.precisions)) == (list(rounding.scales), list(rounding.precisions))


def test_metadata_say_what_nir_does_not(tmp_path):
    content = described(written(deep(), tmp_path / "m.nir"))
    expected = {
        "schema": "stars-deploy nir",
        "version": 1,
        "versions": {"stars-deploy": __version__, "nir": nir.version},
        "dt": 1e-4,
        "graph_dt": 1e-3,
        "timesteps": 5,
        "low": -1.0,
        "high": 2.0,
        "labels": ["a", "b é", "c"],
        "normalize": {"name": "norm", "mean": single([0.3, -0.1]).tolist(), "std": single([0.7, 0.4]).tolist()},
        "readout": {"name": "readout", "r": 1000.0, "value": "the sum of the output over all timesteps"},
        "inserted": ["class__flatten"],
    }
    assert {key: content[key] for key in expected} == expected
    assert content["encoding"].startswith("direct") and content["reset"].startswith("hard")
    assert ["conv/lif", "conv_lif"] in content["names"] and ["readout", ""] in content["names"]


@pytest.mark.parametrize("name", GRAPHS)
def test_the_same_graph_gives_the_same_bytes(tmp_path, name):
    one, other = (written(GRAPHS[name](), tmp_path / f"{i}.nir") for i in range(2))
    assert one.read_bytes() == other.read_bytes()


# ---------------------------------------------------------------- what other tools find


def test_nodes_are_those_of_nir(tmp_path):
    graph = loaded(written(deep(), tmp_path / "m.nir"))
    kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    assert kinds == {
        "image": "Input",
        "conv_0": "Conv2d",
        "conv_lif": "LIF",
        "pool": "AvgPool2d",
        "conv_1": "Conv2d",
        "type_": "CubaLIF",
        "class__flatten": "Flatten",
        "class_": "Affine",
        "n0": "IF",
        "head": "Affine",
        "output": "Output",
    }
    names = ["image", "conv_0", "conv_lif", "pool", "conv_1", "type_", "class__flatten", "class_", "n0", "head"]
    assert sorted(graph.edges) == sorted(chain(*names, "output"))
    conv = graph.nodes["conv_1"]
    assert tuple(conv.input_shape) == (3, 4) and tuple(conv.stride) == (1, 2) and conv.groups == 2
    assert conv.bias.shape == (8,) and not conv.bias.any()
    flat = graph.nodes["class__flatten"]
    assert (flat.start_dim, flat.end_dim, *flat.input_type["input"]) == (0, -1, 8, 2, 2)
    assert tuple(graph.nodes["output"].output_type["output"]) == (3,)


def test_arrays_are_full_and_of_float32_on_the_grid_of_other_tools(tmp_path):
    source = deep()
    graph = loaded(written(source, tmp_path / "m.nir"))
    lif, cuba, fire = (graph.nodes[name] for name in ("conv_lif", "type_", "n0"))
    for node, shape in ((lif, (4, 6, 5)), (cuba, (8, 2, 2)), (fire, (6,))):
        for field in ("r", "v_threshold", "v_reset"):
            assert getattr(node, field).shape == shape and getattr(node, field).dtype == np.float32
    np.testing.assert_allclose(1e-4 / lif.tau, 1e-3 / source.node("conv/lif").tau_mem, rtol=1e-6)
    # What SpikingJelly and snnTorch insist on.
    assert (lif.r == 1).all()
    np.testing.assert_allclose(fire.r, 1e4, rtol=1e-6)
    np.testing.assert_allclose(cuba.r, cuba.tau_mem / 1e-4, rtol=1e-6)
    np.testing.assert_allclose(cuba.w_in, cuba.tau_syn / 1e-4, rtol=1e-6)
    delays = loaded(written(recurrent(), tmp_path / "r.nir")).nodes
    np.testing.assert_allclose(delays["later"].delay, np.array([0, 1, 2, 3, 1]) * 1e-4, rtol=1e-6)
    assert delays["late"].delay.shape == delays["same"].scale.shape == (5,)
    assert graph.nodes["conv_0"].weight.dtype == graph.nodes["head"].bias.dtype == np.float32


def test_a_file_of_square_kernels_passes_the_checks_of_nir(tmp_path):
    for name in ("residual", "recurrent", "biased"):
        assert loaded(written(GRAPHS[name](), tmp_path / f"{name}.nir"), type_check=True)


def test_a_kernel_that_is_not_square_is_wrong_in_nir_and_right_here(tmp_path):
    """nir 1.0.8 infers (4, 6, 7) for a 3x5 kernel with padding (1, 2) on (6, 5)."""
    path = written(deep(), tmp_path / "m.nir")
    with pytest.raises(ValueError, match="type mismatch"):
        loaded(path, type_check=True)
    assert read_nir(path).graph.shapes["conv.0"] == (4, 6, 5)


def test_biases_of_each_neuron_go_into_v_leak(tmp_path):
    graph = biased()
    nodes = loaded(written(graph, tmp_path / "m.nir")).nodes
    assert not nodes["c"].bias.any() and nodes["c"].bias.shape == (2,)
    np.testing.assert_array_equal(nodes["l"].v_leak, graph.node("c").bias)
    np.testing.assert_allclose(nodes["m"].v_leak, graph.node("m").r * graph.node("d").bias, rtol=1e-6)
    assert (nodes["n"].v_leak == 0.25).all()
    assert type(nodes["sum"]).__name__ == "I"  # its gain is not that of a sum


@pytest.mark.parametrize("name", GRAPHS)
def test_a_stranger_computes_the_same(tmp_path, name):
    """Without the metadata, fed with normalised images, the file is the same network: spike for spike."""
    graph = GRAPHS[name]()
    path = describe(written(graph, tmp_path / "m.nir"), remove=True)
    stranger = read_nir(path, dt=1e-4, timesteps=graph.timesteps).graph
    images = np.random.default_rng(4).uniform(0, 1, (5, *graph.input.shape))
    shown = images
    for node in graph.nodes:
        if isinstance(node, Normalize):
            shown = (images - node.mean[:, None, None]) / node.std[:, None, None]
    expected, got = run_float(graph, images), run_float(stranger, shown)
    places = portable_names(node.name for node in graph.nodes)
    fired = 0
    for node in graph.nodes:
        if type(node).__name__ in ("LIF", "CubaLIF", "IF"):
            np.testing.assert_array_equal(expected.values[node.name], got.values[places[node.name]])
            fired += expected.values[node.name].sum()
    assert fired > 20
    np.testing.assert_allclose(expected.values[graph.output.name], got.values[stranger.output.name], atol=1e-4)


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["a.b", "a_b", "a/b"], ["a_b", "a_b_2", "a_b_3"]),
        (["a" * 200, "a" * 201], ["a" * 100, "a" * 100 + "_2"]),
        (["lambda", "type", "update", "3", "_x", "", "é"], ["lambda_", "type_", "update_", "n3", "n_x", "n", "n_"]),
    ],
)
def test_names_that_every_tool_takes(names, places):
    assert list(portable_names(names).values()) == places


def test_names_are_none_that_torch_refuses():
    torch = pytest.importorskip("torch")
    modules = torch.nn.ModuleDict()
    for name in portable_names(dir(modules)).values():
        modules[name] = torch.nn.Identity()
    assert len(modules) == len(dir(torch.nn.ModuleDict()))


# ---------------------------------------------------------------- what NIR cannot carry


def changed(graph, name, **fields):
    nodes = tuple(dataclasses.replace(n, **fields) if n.name == name else n for n in graph.nodes)
    return graph.with_nodes(nodes, graph.edges)


def two_biases():
    graph = biased()
    conv = dataclasses.replace(graph.node("c"), name="c2")
    return graph.with_nodes((*graph.nodes, conv), (*graph.edges, ("x", "c2"), ("c2", "l")))


def normalized_twice():
    graph = deep()
    other = Linear(name="other", weight=np.ones((6, 60)), bias=np.zeros(6))
    return graph.with_nodes((*graph.nodes, other), (*graph.edges, ("image", "other"), ("other", "0")))


def unfolded():
    norm = BatchNorm(name="bn", gamma=np.ones(1), beta=np.ones(1), mean=np.ones(1), var=np.ones(1))
    nodes = (Input(name="x", shape=(1, 2, 2)), norm, Integrator(name="y", r=1000.0))
    return SpikingGraph(nodes=nodes, edges=chain("x", "bn", "y"))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (lambda: changed(deep(), "conv.0", bias=np.full((4, 6, 5), 0.1)), r"conv.0.bias: numbers that float32"),
        (lambda: changed(deep(), "conv.1", bias=np.ones((8, 2, 2))), r"conv.1.bias: one for each.*type \(CubaLIF\)"),
        (lambda: changed(biased(), "l", v_leak=0.5), r"c.bias: one for each neuron, before l \(LIF\)"),
        (lambda: changed(biased(), "m", r=0.0), r"d.bias: one for each neuron, before m \(LIF\)"),
        (two_biases, "c2.bias: a second bias for each neuron of l"),
        (normalized_twice, "norm: fed by image; the input feeds norm, other"),
        (unfolded, "bn: a BatchNorm.*canonicalize"),
        (lambda: changed(deep(), "head", weight=np.full((3, 6), 0.1)), "head.weight: numbers that float32"),
        (lambda: changed(deep(), "0", v_threshold=0.1), "0.v_threshold: numbers that float32"),
        (lambda: dataclasses.replace(deep(), timesteps=65537), "65537 timesteps, 11 nodes, 10 edges"),
    ],
)
def test_what_nir_cannot_carry_is_refused_by_name(tmp_path, graph, message):
    graph = graph()
    if "float32" in message and "bias" in message:
        graph = changed(graph, "conv.0", bias=np.full(4, 0.1))
    with pytest.raises(TargetError, match=message):
        write_nir(graph, None, tmp_path / "m.nir")
    assert not list(tmp_path.iterdir())


def test_several_ends_are_refused(tmp_path):
    graph = residual()
    with pytest.raises(GraphError, match="ends in"):
        write_nir(graph.with_nodes(graph.nodes, graph.edges[:-1]), None, tmp_path / "m.nir")


@pytest.mark.parametrize("dt", [0.0, -1e-3, float("nan"), float("inf")])
def test_a_file_needs_a_timestep(tmp_path, dt):
    with pytest.raises(ConfigError, match="dt"):
        write_nir(deep(), None, tmp_path / "m.nir", dt=dt)


def test_metadata_have_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_METADATA", 100)
    with pytest.raises(TargetError, match="bytes of metadata"):
        write_nir(deep(), None, tmp_path / "m.nir")


def test_a_readout_with_a_gain_stays_a_node(tmp_path):
    assert layout.lay_out(deep()).readout is not None
    graph = changed(deep(), "readout", r=1001.0)
    assert layout.lay_out(graph).readout is None
    path = written(graph, tmp_path / "m.nir")
    assert isinstance(loaded(path).nodes["readout"], nir.I)
    assert described(path)["readout"] is None
    assert find_unequal(graph, read_nir(path).graph) == ""


def test_metadata_are_one_text_among_others(tmp_path):
    """Another tool may read the graph and write it again, with metadata of its own."""
    path = written(recurrent(), tmp_path / "m.nir")
    graph = loaded(path, type_check=True)
    graph.metadata["other"] = "text"
    nir.write(tmp_path / "n.nir", graph)
    assert find_unequal(recurrent(), read_nir(tmp_path / "n.nir").graph) == ""
    with h5py.File(path) as file:
        assert list(file["node/metadata"]) == [metadata.METADATA]
        json.loads(file["node/metadata/stars_deploy"][()])


def test_a_conv_of_no_bias_keeps_zeros(tmp_path):
    graph = residual()
    assert isinstance(graph.node("c1"), Conv2d)
    back = read_nir(written(changed(graph, "c1", bias=np.zeros(3)), tmp_path / "m.nir")).graph
    assert back.node("c1").bias.shape == (3,) and not back.node("c1").bias.any()
