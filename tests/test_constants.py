"""Biases of synaptic currents: synapses from one neuron that fires at every timestep."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from stars_deploy.bounds import bound_population, prove_bounds
from stars_deploy.engine import run_fast
from stars_deploy.errors import QuantizationError, TargetError
from stars_deploy.export.calibration import calibrate_graph
from stars_deploy.export.execution import run_float
from stars_deploy.export.quantization import quantize_graph
from stars_deploy.graph import Conv2d, CubaLIF, Input, Integrator, Linear, Normalize, SpikingGraph
from stars_deploy.lowering.dequantization import dequantize
from stars_deploy.lowering.layers import float_layers
from stars_deploy.lowering.passes import canonicalize, lower
from stars_deploy.lowering.rounding import Rounding, round_graph, rounding_of
from stars_deploy.precision import Precision
from stars_deploy.quantized import ConvProjection, DenseProjection, QuantizedInput, find_difference
from stars_deploy.targets import TARGETS
from stars_deploy.targets.base import compare_records
from stars_deploy.targets.onnx_model import OnnxTarget
from stars_deploy.targets.reference import project, run_reference

DT = 1e-3
SHAPE = (2, 5, 4)
EIGHT = Precision(bits=8, signed=True)


def cuba(name, **options):
    return CubaLIF(**{"name": name, "tau_syn": 2 * DT, "tau_mem": 4 * DT, "r": 4.0, "w_in": 2.0, **options})


def chained(*nodes, timesteps=8):
    edges = tuple(itertools.pairwise(node.name for node in nodes))
    return SpikingGraph(nodes=nodes, edges=edges, dt=DT, timesteps=timesteps)


def convolved(seed=0, each=True, rows=3):
    """Image, convolution, population, dense population, readout: biases into both currents."""
    rng = np.random.default_rng(seed)
    bias = rng.normal(0.05, 0.15, (3, 5, 4) if each else 3)
    conv = Conv2d(name="conv", weight=rng.normal(0.05, 0.2, (3, 2, rows, 3)), bias=bias, padding=(rows // 2, 1))
    dense = Linear(name="dense", weight=rng.normal(0.02, 0.15, (6, 60)), bias=rng.normal(0.05, 0.1, 6))
    last = Linear(name="last", weight=rng.normal(0, 0.5, (3, 6)), bias=rng.normal(0, 0.5, 3))
    return chained(Input(name="image", shape=SHAPE), conv, cuba("first", v_leak=0.2), dense,
                   cuba("second", tau_syn=3 * DT, w_in=3.0), last, Integrator(name="out", r=1 / DT))  # fmt: skip


def images(samples=40, seed=3):
    return np.random.default_rng(seed).random((samples, *SHAPE))


def test_layers_have_the_bias_of_all_projections_with_the_gain_of_weights():
    graph = convolved()
    twin = replace(graph.node("conv"), name="twin", bias=np.arange(3.0))
    graph = graph.with_nodes((*graph.nodes, twin), (*graph.edges, ("image", "twin"), ("twin", "first")))
    first = replace(graph.node("first"), r=8.0, w_in=3.0)
    graph = graph.with_nodes(tuple(first if node.name == "first" else node for node in graph.nodes), graph.edges)
    layer, dense, last = float_layers(graph)
    expected = 3.0 * (graph.node("conv").bias + np.arange(3.0)[:, None, None])
    np.testing.assert_allclose(layer.current_bias.values, expected, rtol=1e-12)
    np.testing.assert_allclose(layer.projections[0].weight, 3.0 * graph.node("conv").weight, rtol=1e-12)
    np.testing.assert_allclose(layer.bias, 0.2 / 4)  # v_leak, and nothing else
    np.testing.assert_allclose(dense.current_bias.values, graph.node("dense").bias)
    assert last.current_bias is None
    names = [(b.source, b.feed, b.name) for b in (layer.current_bias, dense.current_bias)]
    assert names == [("ones", "ones.input", "first.bias"), ("ones", "ones.input", "second.bias")]


def rounding(scales, projections, bits=8, **options):
    precisions = dict.fromkeys(projections, EIGHT)
    source = QuantizedInput(name="image", shape=SHAPE, precision=Precision(bits=bits, signed=False), scale=1.0)
    return Rounding(input=source, scales=scales, precisions=precisions, **options)


SCALES = {"ones": 1.0, "first": 300.0, "second": 250.0, "out": 50.0}
PROJECTIONS = ("ones.input", "conv", "dense", "last", "first.bias", "second.bias")


def test_one_neuron_that_always_fires_drives_every_current():
    graph = convolved()
    scales = {**SCALES, "first": 600.0}
    made = round_graph(graph, rounding(scales, PROJECTIONS, resets={"ones": (3, 1), "first": (2, 0)}))
    ones = made.populations[0]
    assert (ones.name, ones.shape, ones.vth, ones.bias.tolist()) == ("ones", (1, 1, 1), 1, [[[2]]])
    assert (ones.decay_u, ones.decay_v, ones.scale, ones.reset_interval) == (4096, 4096, 1.0, 3)
    feed, *_, conv, dense = made.projections
    assert isinstance(feed, ConvProjection) and isinstance(conv, ConvProjection) and isinstance(dense, DenseProjection)
    assert (feed.source, feed.weight.shape, feed.weight.any()) == ("image", (1, *SHAPE), False)
    one = np.ones((1, 1, 1, 1), np.int64)
    bias = np.rint(600 * graph.node("conv").bias)
    assert np.array_equal(project(conv, one)[0], np.clip(bias, -128, 127)) and (np.abs(bias) > 127).any()
    assert not np.array_equal(project(conv, one)[0], project(conv, one)[0, :, ::-1])
    assert np.array_equal(project(dense, one)[0], np.rint(250 * graph.node("dense").bias))
    record = run_reference(made, np.zeros((2, *SHAPE), np.int64))
    assert record.spikes["ones"].all()  # resets included
    assert find_difference(round_graph(graph, rounding_of(made)), made) == ""


def test_a_flat_network_needs_no_picture_of_one_neuron():
    dense = Linear(name="dense", weight=np.eye(3), bias=np.array([0.25, -0.5, 0.125]))
    graph = chained(Input(name="image", shape=(3,)), dense, cuba("n"))
    quantized = quantize_graph(graph, 8, 1)
    assert [(item.name, item.weight.shape) for item in quantized.projections] == [
        ("ones.input", (1, 3)), ("dense", (3, 3)), ("n.bias", (3, 1))
    ]  # fmt: skip
    assert quantized.populations[0].shape == (1,)


def test_names_that_are_taken_stay_theirs():
    dense = Linear(name="ones.input", weight=np.eye(3), bias=np.ones(3))
    last = Linear(name="ones.bias", weight=np.eye(3), bias=np.zeros(3))
    graph = chained(Input(name="image", shape=(3,)), dense, cuba("ones"), last, Integrator(name="out", r=1 / DT))
    quantized = quantize_graph(graph, 8, 1)
    assert [item.name for item in quantized.populations] == ["ones.1", "ones", "out"]
    assert [item.name for item in quantized.projections] == ["ones.1.input", "ones.input", "ones.bias", "ones.bias.1"]
    assert find_difference(round_graph(graph, rounding_of(quantized)), quantized) == ""


def test_current_and_membrane_are_those_of_the_float_network_where_nothing_is_truncated():
    """Numbers are powers of two, leaks 1/2 and 1/4, few timesteps: integers times a step are the floats, exactly."""
    rng = np.random.default_rng(0)
    for shape, build in (((3, 5, 4), Conv2d), ((6,), Linear)):
        weight = rng.integers(-8, 9, (3, 2, 3, 3) if build is Conv2d else (6, 40)) / 8
        bias = rng.integers(-64, 65, shape) / 64
        options = {"padding": (1, 1)} if build is Conv2d else {}
        neuron = cuba("n", tau_mem=2 * DT, r=2.0, v_threshold=1e6, v_leak=0.5)
        graph = chained(Input(name="image", shape=SHAPE), build(name="w", weight=weight, bias=bias, **options), neuron,
                        timesteps=4)  # fmt: skip
        source = QuantizedInput(name="image", shape=SHAPE, precision=Precision(bits=4, signed=False), scale=1.0)
        precisions = dict.fromkeys(("ones.input", "w", "n.bias"), EIGHT)
        low = graph.with_nodes(
            tuple(replace(n, v_threshold=2047.0) if n is neuron else n for n in graph.nodes), graph.edges
        )
        made = round_graph(low, Rounding(input=source, scales={"ones": 1.0, "n": 64.0}, precisions=precisions))
        shown = rng.integers(0, 16, (5, *SHAPE))
        reference = run_reference(made, shown).potential / (64 * 64)
        u = v = np.zeros((5, *shape))
        current = run_float(chained(*graph.nodes[:2], Integrator(name="sum", r=1 / DT), timesteps=1), shown).logits
        for _ in range(4):
            u = u / 2 + current.reshape(u.shape)
            v = v / 2 + u + 0.25
        assert np.array_equal(reference, v.reshape(5, -1))
        assert np.ptp(reference) > 1 and bias.any()


def with_integers(graph, quantized, biases):
    """The float network with the weights and biases of the integer one."""
    synapses, nodes = {item.name: item for item in quantized.projections}, {}
    for name, target, bias in zip(("conv", "dense"), ("first", "second"), biases, strict=True):
        scale, unit = quantized.population(target).scale, quantized.input.scale if name == "conv" else 1.0
        one = np.ones((1, 1, 1, 1), np.int64)
        nodes[name] = replace(graph.node(name), weight=synapses[name].weight * unit / scale,
                              bias=project(synapses[bias], one)[0] / scale)  # fmt: skip
    return graph.with_nodes(tuple(nodes.get(node.name, node) for node in graph.nodes), graph.edges)


@pytest.mark.parametrize("graph", [convolved(), convolved(1, each=False), convolved(2, rows=1)])
@pytest.mark.parametrize("input_bits", [8, 4])
def test_rates_are_those_of_the_float_network(graph, input_bits):
    calibration = calibrate_graph(graph, images(), 8, input_bits)
    assert [layer.name for layer in calibration.layers] == ["first", "second", "out"]
    assert max(layer.current_error for layer in calibration.layers) < 0.04
    quantized = quantize_graph(graph, 8, calibration.input_bits, calibration.shares)
    prove_bounds(quantized)
    assert find_difference(round_graph(graph, rounding_of(quantized)), quantized) == ""
    record, made = run_float(graph, images(seed=4)), run_reference(quantized, quantized.input.quantize(images(seed=4)))
    for layer in calibration.layers[:2]:
        assert 0.05 < record.rate(layer.name) < 0.95
        assert abs(made.spikes[layer.name].mean() - record.rate(layer.name)) < 0.02
        assert np.mean(made.spikes[layer.name] != record.values[layer.name]) < 0.1
        assert abs(layer.quantized_rate - layer.rate) < 0.02
    rounded = with_integers(graph, quantized, ("first.bias", "second.bias"))
    shown = quantized.input.quantize(images(seed=4)) / quantized.input.scale
    for name, spikes in run_float(rounded, shown).values.items():
        if name in ("first", "second"):  # thresholds are rounded, and states truncated
            assert np.mean(made.spikes[name] != spikes) < 0.005
    # Weights into the first layer have more than a few steps, although its bias meets no payload.
    weight = {item.name: np.abs(item.weight).max() for item in quantized.projections}
    assert weight["conv"] > 30


def test_the_scale_leaves_room_for_the_bias():
    graph = convolved()
    loud = graph.with_nodes(
        tuple(replace(n, bias=40 * n.bias) if n.name == "dense" else n for n in graph.nodes), graph.edges
    )
    quantized = quantize_graph(loud, 8, 8)
    bias = {item.name: item for item in quantized.projections}["second.bias"]
    assert (bias.precision.bits, np.abs(bias.weight).max()) == (8, 127)
    steps = np.rint(quantized.population("second").scale * loud.node("dense").bias)
    assert np.array_equal(bias.weight[:, 0], steps)
    # A share of the largest weight is one of the largest bias.
    shared = quantize_graph(loud, 8, 8, {"second": 0.5})
    assert shared.population("second").scale == pytest.approx(2 * quantized.population("second").scale)
    wide = {item.name: item for item in quantize_graph(loud, 8, 5).projections}["first.bias"]
    assert (wide.precision.bits, wide.precision.signed) == (13, True)


def test_a_normalisation_in_front_of_a_current_is_such_a_bias(tmp_path):
    graph = convolved(1, each=False)
    norm = Normalize(name="norm", mean=np.array([0.4, 0.6]), std=np.array([0.5, 0.4]))
    nodes = (graph.nodes[0], norm, *graph.nodes[1:])
    graph = canonicalize(chained(*nodes))
    low = lower(graph)
    assert low.node("conv").bias.shape == (3, 5, 4)  # the padding is no mean pixel
    quantized = quantize_graph(low, 8, 8)
    record, made = run_float(graph, images()), run_reference(quantized, quantized.input.quantize(images()))
    shown = quantized.input.quantize(images()) / quantized.input.scale
    assert 0.05 < record.rate("first") < 0.95
    # That is what 24 bits leave: in float, the same weights and biases do nearly the same.
    rounded = run_float(with_integers(low, quantized, ("first.bias", "second.bias")), shown).values
    assert all(np.mean(made.spikes[name] != rounded[name]) < 0.005 for name in ("first", "second"))
    assert abs(made.spikes["first"].mean() - record.rate("first")) < 0.02
    TARGETS["nir"].write(quantized, tmp_path / "m.nir", origin=graph)
    assert find_difference(TARGETS["nir"].read(tmp_path / "m.nir", 8), quantized) == ""


def test_bounds_know_that_each_neuron_has_one_bias():
    graph = convolved()
    made = round_graph(graph, rounding(SCALES, PROJECTIONS))
    bias = made.projections[4]
    alone = replace(
        made,
        populations=(made.populations[0], replace(made.population("first"), decay_v=4096, decay_u=4096)),
        projections=(made.projections[0], bias),
        timesteps=1,
    )
    found = bound_population(alone, alone.output)
    assert (found.u_low, found.u_high) == (64 * bias.weight.min(), 64 * bias.weight.max())
    current = 64 * project(bias, np.ones((1, 1, 1, 1), np.int64))
    assert (current.min(), current.max()) == (found.u_low, found.u_high)
    # A kernel that some neurons see nothing of, or with a stride, is bound by all of its weights.
    for options in ({"padding": (5, 4)}, {"padding": (6, 5), "stride": (2, 2)}):
        odd = replace(bias, **options)
        shape = odd.output_shape((1, 1, 1))
        other = replace(alone.output, shape=shape, bias=np.zeros(shape, int), vth=99)
        bounds = bound_population(replace(alone, populations=(made.populations[0], other), projections=(
            made.projections[0], odd)), other)  # fmt: skip
        sums = np.maximum(odd.weight, 0).sum((1, 2, 3)).max()
        assert bounds.u_high == 64 * sums


@pytest.mark.parametrize("mode", ["sequence", "step"])
def test_onnx_carries_them_and_netx_says_why_not(mode, tmp_path):
    quantized, target = quantize_graph(convolved(), 8, 8), OnnxTarget(mode=mode)
    target.write(quantized, tmp_path / "m.onnx")
    assert find_difference(target.read(tmp_path / "m.onnx", 8), quantized) == ""
    shown = quantized.input.quantize(images(5))
    comparison = compare_records(run_reference(quantized, shown), target.execute(tmp_path / "m.onnx", shown, 8))
    assert (comparison.mismatches, comparison.compared_spikes) == (0, 8 * 5 * (1 + 60 + 6 + 3))
    fast = compare_records(run_reference(quantized, shown), run_fast(quantized, shown))
    assert fast.mismatches == 0
    with pytest.raises(TargetError, match="first: 2 projections enter it"):
        TARGETS["netx"].write(quantized, tmp_path / "m.net")


def test_integers_alone_do_not_become_floats():
    with pytest.raises(QuantizationError, match=r"ones\.input\.weight: all weights are 0"):
        dequantize(quantize_graph(convolved(), 8, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": {k: v for k, v in SCALES.items() if k != "ones"}}, r"rounding\.scales: nothing for ones"),
        ({"projections": PROJECTIONS[1:]}, r"rounding\.precisions: nothing for ones\.input"),
        ({"projections": PROJECTIONS[:-1]}, r"rounding\.precisions: nothing for second\.bias"),
    ],
)
def test_a_rounding_without_them_does_not_fit(changes, message):
    with pytest.raises(QuantizationError, match=message):
        round_graph(convolved(), rounding(**{"scales": SCALES, "projections": PROJECTIONS, **changes}))
