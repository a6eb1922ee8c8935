"""Strangers' NIR files: every node that the float graph has, in every way that tools write it; the rest is refused."""

from __future__ import annotations

import nir
import numpy as np
import pytest
from nir_files import (
    WEIGHT,
    affine,
    chain,
    conv2d,
    deep,
    graph,
    image,
    lif,
    output,
    single,
    small,
    write_raw,
)

from stars_deploy.convolution import correlate
from stars_deploy.errors import ConfigError, FormatError
from stars_deploy.graph import IF, LI, LIF, Conv2d, CubaLIF, Delay, Flatten, Integrator, Linear, Pool2d, Scale
from stars_deploy.targets.nir_graph.reader import read_nir
from stars_deploy.targets.nir_graph.writer import write_nir


def read(path, **options):
    return read_nir(path, **{"dt": 1e-4, "timesteps": 3, **options}).graph


def one(tmp_path, fields, shape, out):
    """The graph of a file of one node between an Input of `shape` and an Output of `out`."""
    nodes = {"x": image(*shape), "n": fields, "y": output(*out)}
    return read(write_raw(tmp_path / "m.nir", nodes, chain("x", "n", "y")))


# ---------------------------------------------------------------- nodes


def test_a_dense_chain(tmp_path):
    found = read(small(tmp_path / "m.nir", fc={"bias": np.array([1, 2, 3], np.float32)}), low=-2.0, high=5.0)
    assert [type(node) for node in found.nodes] == [type(found.input), Linear, LIF]
    assert (found.input.shape, found.input.low, found.input.high) == ((4,), -2.0, 5.0)
    assert (found.dt, found.timesteps, found.labels, found.edges) == (1e-4, 3, (), (("fc", "lif"), ("x", "fc")))
    np.testing.assert_array_equal(found.node("fc").weight, WEIGHT)
    np.testing.assert_array_equal(found.node("fc").bias, [1, 2, 3])
    assert found.node("lif").tau_mem == single(1e-3) and found.output.name == "lif"


def test_every_population(tmp_path):
    values = {name: np.arange(1, 4) * 0.25 for name in ("r", "v_leak", "v_threshold", "w_in")}
    lif_only = {name: values[name] for name in ("r", "v_leak", "v_threshold")}
    reset, tau = -np.arange(1, 4) * 0.5, np.array([1, 2, 3]) * 1e-3
    expected = {
        "LIF": (LIF, {**lif_only, "v_reset": reset, "tau": tau}),
        "CubaLIF": (CubaLIF, {**values, "v_reset": reset, "tau_mem": tau, "tau_syn": tau * 2}),
        "IF": (IF, {"r": values["r"], "v_threshold": values["v_threshold"], "v_reset": reset}),
        "LI": (LI, {"r": values["r"], "v_leak": values["v_leak"], "tau": tau}),
        "I": (Integrator, {"r": values["r"]}),
    }
    for kind, (expected_kind, fields) in expected.items():
        node = one(tmp_path, {"type": kind, **fields}, (3,), (3,)).node("n")
        assert type(node) is expected_kind
        for name, value in fields.items():
            np.testing.assert_array_equal(getattr(node, "tau_mem" if name == "tau" else name), value)


def test_what_is_left_out_has_a_value(tmp_path):
    cuba = {"type": "CubaLIF", **dict.fromkeys(("tau_syn", "tau_mem", "r", "v_leak", "v_threshold"), np.ones(2))}
    node = one(tmp_path, cuba, (2,), (2,)).node("n")
    assert (node.w_in, node.v_reset) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, 0.5),
        (np.array([0.5]), 0.5),
        (np.array([[0.5]]), 0.5),
        (np.full((1, 2, 1, 3), 0.5), 0.5),
        (np.array([1.0, 2.0, 3.0]), np.broadcast_to([1.0, 2.0, 3.0], (2, 1, 3))),
        (np.array([[1.0], [2.0]]).reshape(2, 1, 1), np.broadcast_to([[[1.0]], [[2.0]]], (2, 1, 3))),
        (np.arange(6.0).reshape(1, 2, 1, 3) + 1, np.arange(6.0).reshape(2, 1, 3) + 1),
    ],
)
def test_parameters_of_one_value_or_what_spreads(tmp_path, value, expected):
    """sinabs writes parameters without axes, norse of one element, snnTorch with the batch it was traced with."""
    node = one(tmp_path, lif(2, 1, 3, r=None) | {"r": value}, (2, 1, 3), (2, 1, 3)).node("n")
    np.testing.assert_array_equal(node.r, expected)
    assert np.shape(node.r) == np.shape(expected)


def test_elementwise_nodes(tmp_path):
    scale = one(tmp_path, {"type": "Scale", "scale": np.array([1.0, 2, 3])}, (3,), (3,)).node("n")
    np.testing.assert_array_equal(scale.scale, [1, 2, 3])
    assert isinstance(scale, Scale)
    found = one(tmp_path, {"type": "Delay", "delay": np.array([0, 2e-4, 1e-4])}, (3,), (3,))
    assert isinstance(found.node("n"), Delay) and found.delay_steps("n").tolist() == [0, 2, 1]


def test_a_bias_with_axes_of_one_element_around_it(tmp_path):
    fields = {**affine(np.ones((3, 2))), "bias": np.array([1.0, 2, 3]).reshape(1, 3, 1)}
    assert one(tmp_path, fields, (2,), (3,)).node("n").bias.tolist() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["SumPool2d", "AvgPool2d"])
def test_pools(tmp_path, kind):
    fields = {"type": kind, "kernel_size": np.array([2, 3]), "stride": np.array([1, 2]), "padding": np.array([1, 0])}
    found = one(tmp_path, fields, (3, 4, 7), (3, 5, 3))
    assert found.node("n") == Pool2d(name="n", kernel=(2, 3), stride=(1, 2), padding=(1, 0), average=kind[0] == "A")
    # snnTorch writes one number for both axes.
    found = one(tmp_path, {"type": kind, "kernel_size": 2, "stride": 2, "padding": [0, 0]}, (3, 4, 8), (3, 2, 4))
    assert found.node("n").kernel == found.node("n").stride == (2, 2)


def test_convolutions(tmp_path):
    weight = np.random.default_rng(0).normal(size=(4, 1, 3, 2)).astype(np.float32)
    fields = conv2d(weight, stride=[2, 1], padding=[1, 0], dilation=[1, 2], groups=2, input_shape=[6, 5])
    found = one(tmp_path, {**fields, "bias": np.arange(4.0)}, (2, 6, 5), (4, 3, 3))
    conv = found.node("n")
    assert (conv.stride, conv.padding, conv.dilation, conv.groups) == ((2, 1), (1, 0), (1, 2), 2)
    np.testing.assert_array_equal(conv.weight, weight)
    np.testing.assert_array_equal(conv.bias, np.arange(4))
    # One number for both axes; no shape stated.
    found = one(tmp_path, conv2d(weight, stride=1, padding=1, dilation=1, groups=2), (2, 6, 5), (4, 6, 6))
    assert found.node("n").padding == (1, 1)


@pytest.mark.parametrize("dilation", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("kernel", [(3, 5), (2, 4), (1, 2), (3, 2)])
def test_same_padding(tmp_path, kernel, dilation):
    """As torch: ``dilation (kernel - 1)`` zeros on each axis, the odd one behind."""
    rng = np.random.default_rng(1)
    weight, images = single(rng.normal(size=(2, 2, *kernel))), rng.normal(size=(2, 2, 7, 6))
    fields = conv2d(weight, padding="same", dilation=list(dilation))
    if dilation[0] == 3 and kernel[0] == 2:
        with pytest.raises(FormatError, match=r"padding: 'same' for a kernel of .*odd size"):
            one(tmp_path, fields, (2, 7, 6), (2, 7, 6))
        return
    found = one(tmp_path, fields, (2, 7, 6), (2, 7, 6))
    conv = found.node("n")
    assert found.shapes["n"] == (2, 7, 6)
    total = [gap * (size - 1) for gap, size in zip(dilation, kernel, strict=True)]
    padded = np.pad(images, [(0, 0), (0, 0), *((all_ // 2, all_ - all_ // 2) for all_ in total)])
    expected = correlate(padded, weight, (1, 1), (0, 0), dilation, 1)
    got = correlate(images, conv.weight, conv.stride, conv.padding, conv.dilation, 1)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_valid_padding(tmp_path):
    conv = one(tmp_path, conv2d(np.ones((1, 1, 3, 2)), padding="valid"), (1, 4, 4), (1, 2, 3)).node("n")
    assert conv.padding == (0, 0) and conv.weight.shape == (1, 1, 3, 2)


def test_convolutions_of_one_axis(tmp_path):
    weight = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    fields = {**conv2d(weight), "type": "Conv1d", "stride": 2, "padding": 1, "dilation": 1, "input_shape": 9}
    nodes = {"x": image(2, 9), "c": fields, "l": lif(3, 4, tau=2e-3), "f": {"type": "Flatten", **FLAT}}
    nodes |= {"fc": affine(np.ones((2, 12))), "y": output(2)}
    found = read(write_raw(tmp_path / "m.nir", nodes, chain("x", "c", "l", "f", "fc", "y")))
    conv = found.node("c")
    assert found.input.shape == (2, 1, 9) and found.shapes["l"] == (3, 1, 4)
    assert (conv.stride, conv.padding, conv.dilation) == ((1, 2), (0, 1), (1, 1))
    np.testing.assert_array_equal(conv.weight[:, :, 0], weight)
    fields = {**fields, "weight": weight[:, :, :3], "stride": 1, "padding": "same"}
    assert one(tmp_path, fields, (2, 9), (3, 9)).shapes["n"] == (3, 1, 9)


FLAT = {"start_dim": 0, "end_dim": -1}


@pytest.mark.parametrize(
    ("first", "last", "stated"),
    [(0, -1, (2, 3, 2)), (0, 2, None), (-3, -1, (1, 2, 3, 2)), (1, -1, None), (1, 2, (2, 3, 2)), (0, 1, None)],
)
def test_flattening_before_a_dense_layer_is_whole(tmp_path, first, last, stated):
    """NIR's default of start_dim is 1, which leaves the channels apart: a dense layer of all inputs does not mind."""
    flat = {"type": "Flatten", "start_dim": first, "end_dim": last, "input_type": stated and np.array(stated)}
    nodes = {"x": image(2, 3, 2), "f": flat, "fc": affine(np.ones((2, 12))), "y": output(2)}
    found = read(write_raw(tmp_path / "m.nir", nodes, chain("x", "f", "fc", "y")))
    assert isinstance(found.node("f"), Flatten) and found.shapes["fc"] == (2,)


def test_flattening_some_axes_is_refused_elsewhere(tmp_path):
    nodes = {"x": image(2, 3, 2), "f": {"type": "Flatten", **FLAT, "start_dim": 1}, "l": lif(2, 6), "y": output(2, 6)}
    with pytest.raises(FormatError, match=r"f: leaves axes apart before l \(LIF\)"):
        read(write_raw(tmp_path / "m.nir", nodes, chain("x", "f", "l", "y")))
    nodes["x"] = image(1, 3, 4)  # one channel: nothing is left apart
    nodes["l"], nodes["y"] = lif(12), output(12)
    assert read(write_raw(tmp_path / "m.nir", nodes, chain("x", "f", "l", "y"))).shapes["l"] == (12,)


def test_a_batch_of_one_is_no_axis(tmp_path):
    """Tools that are traced with a sample state its shape, batch included."""
    found = read(small(tmp_path / "m.nir", x=image(1, 4), y=output(1, 3)))
    assert found.input.shape == (1, 1, 4) and found.shapes["lif"] == (3,)
    found = one(tmp_path, conv2d(np.ones((1, 2, 1, 1))), (1, 2, 3, 4), (1, 1, 3, 4))
    assert found.input.shape == (2, 3, 4)


# ---------------------------------------------------------------- graphs


def test_an_output_of_a_projection_is_summed(tmp_path):
    nodes = {"x": image(4), "readout": affine(WEIGHT), "y": output(3)}
    found = read(write_raw(tmp_path / "m.nir", nodes, chain("x", "readout", "y")))
    assert found.output == Integrator(name="readout_2", r=1e4)
    nodes = {"x": image(4), "a": affine(WEIGHT), "b": affine(WEIGHT), "y": output(3)}
    found = read(write_raw(tmp_path / "m.nir", nodes, chain("x", "a", "y") + chain("x", "b", "y")))
    assert sorted(found.sources(found.output.name)) == ["a", "b"]


def test_branches_add_up_and_repeated_edges_do_not(tmp_path):
    nodes = {"x": image(4), "a": affine(WEIGHT), "b": affine(WEIGHT), "l": lif(3), "y": output(3)}
    edges = chain("x", "a", "l", "y") + chain("x", "b", "l") + (("a", "l"), ("x", "a"))
    found = read(write_raw(tmp_path / "m.nir", nodes, edges))
    assert found.sources("l") == ("a", "b") and len(found.edges) == 4


LOOP = {"x": image(4), "fc": affine(WEIGHT), "lif": lif(3), "w": affine(np.eye(3)), "y": output(3)}
LOOP_EDGES = chain("x", "fc", "lif", "y") + chain("lif", "w", "lif")


def test_loops_say_when_their_spikes_arrive(tmp_path):
    path = write_raw(tmp_path / "m.nir", LOOP, LOOP_EDGES)
    with pytest.raises(
        FormatError, match=r"a loop without a delay: lif -> w -> lif;.*--recurrent-delay 1 if, as in snn"
    ):
        read(path)
    found = read(path, recurrent_delay=2)
    assert found.sources("w") == ("lif_delay",) and found.sources("lif_delay") == ("lif",)
    assert found.delay_steps("lif_delay") == 2 and found.output.name == "lif"


def test_loops_with_a_delay_are_read_as_they_are(tmp_path):
    nodes = {**LOOP, "d": {"type": "Delay", "delay": np.full(3, 1e-4)}}
    edges = chain("x", "fc", "lif", "y") + chain("lif", "w", "d", "lif")
    found = read(write_raw(tmp_path / "m.nir", nodes, edges), recurrent_delay=1)
    assert [type(node) for node in found.nodes].count(Delay) == 1
    nodes["d"] = {"type": "Delay", "delay": np.array([1e-4, 0, 1e-4])}  # one neuron is not late
    with pytest.raises(FormatError, match="a loop without a delay: lif -> w -> d -> lif"):
        read(write_raw(tmp_path / "m.nir", nodes, edges))


def test_several_loops(tmp_path):
    """A population onto itself, two of one population (which share a delay), and one over two populations."""
    nodes = {**LOOP, "v": affine(np.eye(3)), "u": affine(np.eye(3)), "b": affine(np.eye(3)), "lif2": lif(3)}
    edges = chain("x", "fc", "lif", "u", "lif2", "y") + chain("lif2", "w", "lif") + chain("lif2", "v", "lif")
    edges += (("lif", "lif"), ("b", "lif"), ("lif2", "b"), ("lif", "b"))
    found = read(write_raw(tmp_path / "m.nir", nodes, edges), recurrent_delay=1)
    delays = {node.name: set(found.targets(node.name)) for node in found.nodes if isinstance(node, Delay)}
    # b has two sources: what they add up to is late, since either may be.
    assert delays == {"lif2_delay": {"w", "v"}, "lif_delay": {"lif"}, "b_delay": {"lif"}}
    assert found.output.name == "lif2"


def test_graphs_inside_are_laid_flat(tmp_path):
    """snnTorch keeps a recurrent layer as a graph of its own."""
    inner = {"input": image(3), "lif": lif(3), "w_rec": affine(np.eye(3)), "output": output(3)}
    edges = chain("input", "lif", "output") + chain("lif", "w_rec", "lif")
    nodes = {"x": image(4), "fc": affine(WEIGHT), "rnn": graph(inner, edges), "y": output(3)}
    path = write_raw(tmp_path / "m.nir", nodes, chain("x", "fc", "rnn", "y"))
    found = read(path, recurrent_delay=1)
    assert {node.name for node in found.nodes} == {"x", "fc", "rnn.lif", "rnn.w_rec", "rnn.lif_delay"}
    assert found.output.name == "rnn.lif" and set(found.sources("rnn.lif")) == {"fc", "rnn.w_rec"}
    # One inside another, and one that only passes on.
    nothing = graph({"i": image(3), "o": output(3)}, [("i", "o")])
    middle = graph({"i": image(3), "g": nothing, "h": graph(inner, edges), "o": output(3)}, chain("i", "g", "h", "o"))
    nodes = {"x": image(4), "fc": affine(WEIGHT), "rnn": middle, "y": output(3)}
    found = read(write_raw(tmp_path / "m.nir", nodes, chain("x", "fc", "rnn", "y")), recurrent_delay=1)
    assert set(found.sources("rnn.h.lif")) == {"fc", "rnn.h.w_rec"} and found.output.name == "rnn.h.lif"


def test_what_nir_writes_is_read(tmp_path):
    """The library's own classes and writer."""
    one = np.ones(3, np.float32)
    nodes = {
        "in": nir.Input(np.array([1, 4, 4])),
        "c": nir.Conv2d((4, 4), np.ones((2, 1, 3, 3), np.float32), 1, 1, 1, 1, np.zeros(2, np.float32)),
        "i": nir.IF(r=np.ones((2, 4, 4)), v_threshold=np.full((2, 4, 4), 0.5)),
        "p": nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "f": nir.Flatten({"input": np.array([2, 2, 2])}, 0, -1),
        "l": nir.Linear(np.ones((3, 8), np.float32)),
        "cu": nir.CubaLIF(tau_syn=one, tau_mem=one, r=one, v_leak=0 * one, v_threshold=one),
        "s": nir.Scale(one),
        "d": nir.Delay(1e-4 * one),
        "li": nir.LI(tau=one, r=one, v_leak=0 * one),
        "out": nir.Output(np.array([3])),
    }
    nir.write(tmp_path / "m.nir", nir.NIRGraph(nodes, list(chain(*nodes))))
    found = read(tmp_path / "m.nir")
    kinds = [type(node).__name__ for node in found.nodes]
    assert kinds == ["Input", "Conv2d", "IF", "Pool2d", "Flatten", "Linear", "CubaLIF", "Scale", "Delay", "LI"]
    assert isinstance(found.node("c"), Conv2d) and found.delay_steps("d").tolist() == [1, 1, 1]


def test_shapes_that_nir_inferred_wrongly_do_not_count(tmp_path):
    """Behind a 3x5 kernel nir 1.0.8 writes what a 3x3 kernel would have left: (1, 2, 4) of (1, 4, 6)."""
    flat = {"type": "Flatten", **FLAT, "input_type": np.array([1, 2, 4])}
    nodes = {"x": image(1, 4, 6), "c": conv2d(np.ones((1, 1, 3, 5))), "f": flat, "y": output(8)}
    found = read(write_raw(tmp_path / "m.nir", nodes, chain("x", "c", "f", "y")))
    assert found.shapes["c"] == (1, 2, 2)
    nodes["c"] = conv2d(np.ones((1, 1, 3, 3)))
    flat["input_type"] = np.array([1, 2, 2])
    with pytest.raises(FormatError, match=r"f/input_type: states \(1, 2, 2\); allowed: \(1, 2, 4\)"):
        read(write_raw(tmp_path / "m.nir", nodes, chain("x", "c", "f", "y")))


# ---------------------------------------------------------------- what a file does not say


def test_a_stranger_says_neither_dt_nor_timesteps(tmp_path):
    path = small(tmp_path / "m.nir")
    with pytest.raises(FormatError, match=r"NIR holds no dt;.*--dt: 1e-4 .*snnTorch or SpikingJelly, 1e-3 of norse"):
        read_nir(path, timesteps=4)
    with pytest.raises(FormatError, match=r"how many timesteps one inference takes;.*--timesteps"):
        read_nir(path, dt=1e-4)


def test_our_own_file_says_its_dt(tmp_path):
    path = tmp_path / "m.nir"
    write_nir(deep(), None, path)
    assert read_nir(path, dt=1e-3).graph.dt == 1e-3
    with pytest.raises(ConfigError, match=r"dt: 0.0001 s; allowed: 0.001 s, which .*leave out --dt"):
        read_nir(path, dt=1e-4)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dt": 0.0}, "dt: 0.0"),
        ({"dt": float("nan")}, "dt: nan"),
        ({"timesteps": 0}, "timesteps: 0"),
        ({"timesteps": 1 << 20}, "timesteps: 1048576"),
        ({"recurrent_delay": -1}, "recurrent_delay: -1"),
        ({"recurrent_delay": 1 << 20}, "recurrent_delay"),
        ({"low": 1.0, "high": 1.0}, "low, high"),
        ({"high": float("inf")}, "low, high"),
    ],
)
def test_options_have_a_range(tmp_path, option, message):
    with pytest.raises(ConfigError, match=message):
        read(small(tmp_path / "m.nir"), **option)
