"""The layers of a lowered graph: what is folded into them, in which order, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from float_networks import DT, FIRING, KINDS, images, network

from stars_deploy.errors import GraphError, QuantizationError
from stars_deploy.export.execution import run_float
from stars_deploy.graph import (
    IF,
    LI,
    LIF,
    BatchNorm,
    Conv2d,
    CubaLIF,
    Delay,
    Input,
    Integrator,
    Linear,
    Normalize,
    SpikingGraph,
)
from stars_deploy.lowering.layers import float_layers, per_output


def stepped(graph, frames):
    """What the equations of the layers make of `frames`: the spikes of each population, and the last potential."""
    layers = float_layers(graph)
    sent = {graph.input.name: list(frames), **{layer.name: [] for layer in layers}}
    u = {layer.name: np.zeros((frames.shape[1], *layer.shape)) for layer in layers}
    v = {name: np.zeros_like(state) for name, state in u.items()}
    for step, layer in itertools.product(range(graph.timesteps), layers):
        total = np.zeros_like(u[layer.name])
        for item in layer.projections:
            source = np.zeros((frames.shape[1], int(np.prod(graph.shapes[item.source]))))
            for element, delay in enumerate(np.broadcast_to(item.delay, source.shape[1:])):
                if step >= delay:
                    source[:, element] = sent[item.source][step - delay].reshape(source.shape)[:, element]
            total += item.project(item.weight, source.reshape(-1, *graph.shapes[item.source]))
        drive = layer.current_bias.values if layer.current_bias else 0.0
        u[layer.name] = (1 - layer.leak_u) * u[layer.name] + total + drive
        v[layer.name] = (1 - layer.leak_v) * v[layer.name] + u[layer.name] + layer.bias
        spikes = v[layer.name] > (np.inf if layer.threshold is None else layer.threshold)
        v[layer.name] = np.where(spikes, 0, v[layer.name])
        sent[layer.name].append(spikes.astype(float))
    return {name: np.stack(values) for name, values in sent.items()}, v[layers[-1].name]


@pytest.mark.parametrize("kinds", [*itertools.permutations(KINDS), (CubaLIF,) * 3])
@pytest.mark.parametrize("each", [True, False])
def test_layers_do_what_the_float_graph_does(kinds, each):
    for seed, readout in enumerate((Integrator, LI)):
        graph = network(seed, kinds, readout, each=each, timesteps=7)
        frames = images(frames=7) if seed else np.broadcast_to(images(), (7, *images().shape))
        record = run_float(graph, frames)
        sent, potential = stepped(graph, frames)
        for name in FIRING:
            assert 0.05 < record.rate(name) < 0.95
            assert np.array_equal(sent[name], record.values[name])
        np.testing.assert_allclose(potential / 7, record.logits, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kinds", [(LIF, CubaLIF, CubaLIF), (CubaLIF,) * 3])
def test_biases_of_currents_do_what_they_do_in_the_float_graph(kinds):
    rng = np.random.default_rng(8)
    graph = network(3, kinds, Integrator)
    biases = {name: {"bias": rng.normal(0.05, 0.1, graph.node(name).bias.shape)} for name in ("conv2", "skip", "dense")}
    graph = changed(graph, **biases)
    frames = np.broadcast_to(images(), (graph.timesteps, *images().shape))
    record, (sent, _) = run_float(graph, frames), stepped(graph, frames)
    for name in FIRING:
        assert 0.05 < record.rate(name) < 0.95
        assert np.array_equal(sent[name], record.values[name])


@pytest.mark.parametrize(
    ("neuron", "gain", "leak_v", "leak_u", "threshold"),
    [
        (LIF(name="n", tau_mem=8e-3, r=3.0, v_threshold=0.7), 0.75, 0.25, 1.0, 0.7),
        (IF(name="n", r=100.0, v_threshold=0.2), 0.2, 0.0, 1.0, 0.2),
        (LI(name="n", tau_mem=4e-3, r=3.0), 1.5, 0.5, 1.0, None),
        (Integrator(name="n", r=100.0), 0.2, 0.0, 1.0, None),
        (CubaLIF(name="n", tau_mem=8e-3, tau_syn=4e-3, r=3.0, w_in=5.0, v_threshold=0.9), 3.75 / 2, 0.25, 0.5, 0.9),
    ],
)
def test_gains_and_leaks_of_each_kind(neuron, gain, leak_v, leak_u, threshold):
    weight = np.array([[0.5, -2.0], [1.0, 3.0]])
    bias = np.zeros(2) if isinstance(neuron, CubaLIF) else np.array([1.0, -4.0])
    nodes = (Input(name="image", shape=(2,)), Linear(name="w", weight=weight, bias=bias), neuron)
    graph = SpikingGraph(nodes=nodes, edges=(("image", "w"), ("w", "n")), dt=2e-3)
    (layer,) = float_layers(graph)
    np.testing.assert_allclose(layer.projections[0].weight, gain * weight, rtol=1e-15)
    np.testing.assert_allclose(layer.bias, gain * bias, rtol=1e-15)
    assert (layer.leak_v, layer.leak_u, layer.threshold) == (leak_v, leak_u, threshold)
    assert (layer.name, layer.shape, layer.projections[0].largest) == ("n", (2,), 3 * gain)


def test_biases_of_all_projections_add_up_and_that_of_a_current_is_its_leak_potential():
    graph = network(kinds=(LIF, LIF, CubaLIF))
    layers = {layer.name: layer for layer in float_layers(graph)}
    second, gain = graph.node("second"), DT / graph.node("second").tau_mem * graph.node("second").r
    assert [item.name for item in layers["second"].projections] == ["conv2", "skip"]
    expected = (graph.node("conv2").bias + graph.node("skip").bias) * gain
    np.testing.assert_allclose(layers["second"].bias, expected, rtol=1e-12)
    assert np.ptp(second.v_threshold) > 0
    third = graph.node("third")
    np.testing.assert_allclose(layers["third"].bias, third.v_leak * DT / third.tau_mem, rtol=1e-12)
    by_channel = changed(graph, skip={"bias": np.arange(4.0)}, conv2={"bias": np.zeros(4)})
    layers = {layer.name: layer for layer in float_layers(by_channel)}
    np.testing.assert_allclose(layers["second"].bias, np.arange(4.0)[:, None, None] * gain, rtol=1e-12)


def test_delays_are_one_number_or_one_for_each_element_of_the_source():
    graph = network(3)
    delays = {item.name: item.delay for layer in float_layers(graph) for item in layer.projections}
    assert [delays[name] for name in ("conv1", "conv2", "dense", "last")] == [0, 0, 0, 0]
    assert type(delays["skip"]) is int
    assert delays["skip"] == round(float(graph.node("skip_delay").delay) / DT)
    assert delays["early"].tolist() == np.rint(graph.node("early_delay").delay / DT).reshape(-1).tolist()
    assert len(set(delays["early"].tolist())) > 2


def test_the_output_comes_last_and_sources_before_their_targets():
    graph = network()
    reversed_nodes = graph.with_nodes(graph.nodes[::-1], graph.edges[::-1])
    for one in (graph, reversed_nodes):
        assert [layer.name for layer in float_layers(one)] == ["first", "second", "third", "readout"]
    # An output that feeds a loop, and is the first of its nodes.
    assert {layer.name: [item.source for item in layer.projections] for layer in float_layers(graph)} == {
        "first": ["image"], "second": ["first", "image"], "third": ["second", "third"], "readout": ["third", "first"],
    }  # fmt: skip
    looped = SpikingGraph(
        nodes=(lif("x"), IMAGE, pointwise("a"), pointwise("back"), Delay(name="d", delay=np.array(1e-3))),
        edges=pairs("image>a a>x x>d d>back back>x"),
    )
    (layer,) = float_layers(looped)
    assert [(item.name, item.source, item.delay) for item in layer.projections] == [("a", "image", 0), ("back", "x", 1)]


def test_what_float32_makes_of_equal_numbers_counts_as_equal():
    tau = np.full((2, 4, 4), 2e-3)
    tau[0, 0, 0] *= 1 + 1e-7
    neuron = LIF(name="x", tau_mem=tau, r=2.0)
    graph = SpikingGraph(nodes=(IMAGE, pointwise("a"), neuron), edges=pairs("image>a a>x"))
    np.testing.assert_allclose(float_layers(graph)[0].projections[0].weight, 1.0, rtol=2e-7)
    # A time constant of dt, rounded down.
    short = replace(graph, nodes=(IMAGE, pointwise("a"), LIF(name="x", tau_mem=1e-3 * (1 - 5e-8))))
    assert float_layers(short)[0].leak_v == 1.0


def test_numbers_of_each_neuron_are_shaped_like_the_weights():
    dense, conv = np.zeros((3, 5)), np.zeros((2, 1, 3, 3))
    assert per_output(2.5, dense) == 2.5
    assert per_output(np.array([1.0, 2.0, 3.0]), dense).shape == (3, 1)
    even = np.broadcast_to(np.array([4.0, 5.0]).reshape(2, 1, 1), (2, 6, 7))
    assert per_output(even, conv).tolist() == [[[[4.0]]], [[[5.0]]]]
    uneven = even.copy()
    uneven[1, 2, 3] = 5.1
    assert per_output(uneven, conv) is None
    assert per_output(np.zeros((2, 6, 7)), conv).tolist() == [[[[0.0]]], [[[0.0]]]]


IMAGE = Input(name="image", shape=(2, 4, 4))
NORM = BatchNorm(name="norm", gamma=np.ones(2), beta=np.zeros(2), mean=np.zeros(2), var=np.ones(2))
SHIFT = Normalize(name="shift", mean=np.zeros(2), std=np.ones(2))
CUBA = CubaLIF(name="x", tau_mem=2e-3, tau_syn=2e-3)


def pointwise(name, **options):
    return Conv2d(**{"name": name, "weight": np.ones((2, 2, 1, 1)), "bias": np.zeros(2), **options})


def lif(name, **options):
    return LIF(**{"name": name, "tau_mem": 2e-3, "r": 2.0, **options})


def delay(values):
    return Delay(name="d", delay=np.asarray(values) * 1e-3)


def pairs(edges):
    return tuple(tuple(edge.split(">")) for edge in edges.split())


def changed(graph, **nodes):
    """The graph with the fields in ``nodes[name]`` replaced."""
    return graph.with_nodes(
        tuple(replace(node, **nodes[node.name]) if node.name in nodes else node for node in graph.nodes), graph.edges
    )


UNEVEN = np.arange(1.0, 33.0).reshape(2, 4, 4)


@pytest.mark.parametrize(
    ("nodes", "edges", "message"),
    [
        ([SHIFT, pointwise("a"), lif("x")], None, "shift: a Normalize.*lower the graph first"),
        ([pointwise("a"), NORM, lif("x")], None, "norm: a BatchNorm.*lower the graph first"),
        ([lif("x")], None, r"x: is fed by image \(Input\); allowed: Conv2d or Linear"),
        ([pointwise("a"), delay(1), lif("x")], None, r"x: is fed by d \(Delay\); allowed: Conv2d or Linear"),
        ([pointwise("a"), pointwise("b"), lif("x")],
         None, r"b: is fed by a \(Conv2d\); allowed: one input or population that fires"),
        ([pointwise("a"), Integrator(name="x"), pointwise("b"), lif("y")], None, r"b: is fed by x \(Integrator\)"),
        ([pointwise("a"), LI(name="x", tau_mem=1.0), pointwise("b"), lif("y")], None, r"b: is fed by x \(LI\)"),
        ([delay(1), Delay(name="e", delay=np.array(0.0)), pointwise("a"), lif("x")], None, r"e: is fed by d \(Delay\)"),
        ([delay(UNEVEN), pointwise("a"), lif("x")],
         None, "d: delays from 1 to 32 timesteps into a; allowed: one delay before a convolution"),
        ([pointwise("a"), pointwise("b"), pointwise("c"), lif("x"), lif("y"), lif("z")],
         "image>a image>b a>x b>y x>c y>c c>z", r"c: is fed by x \(LIF\), y \(LIF\); allowed: one input or"),
        ([pointwise("a"), lif("x"), lif("y"), pointwise("b"), pointwise("c"), lif("z")],
         "image>a a>x a>y x>b y>c b>z c>z", "a: feeds x, y; allowed: one population"),
        ([pointwise("a"), lif("x", tau_mem=0.9e-3)], None, "x.tau_mem: 0.0009 s; allowed: at least dt = 0.001 s"),
        ([pointwise("a"), replace(CUBA, tau_syn=0.9e-3)], None, "x.tau_syn: 0.0009 s"),
        ([pointwise("a"), LI(name="x", tau_mem=1e-3 * (0.5 + UNEVEN))], None, None),
        ([pointwise("a"), LI(name="x", tau_mem=1e-3 * (UNEVEN - 0.5))], None, "x.tau_mem: 0.0005 s"),
        ([pointwise("a"), lif("x", v_leak=0.1)], None, "x: v_leak 0.1, v_reset 0.0; allowed: 0 and 0"),
        ([pointwise("a"), LI(name="x", tau_mem=1.0, v_leak=0.1)], None, "x: v_leak 0.1"),
        ([pointwise("a"), lif("x", v_reset=-0.1)], None, "x: .* v_reset -0.1"),
        ([pointwise("a"), IF(name="x", v_reset=-0.1)], None, "x: .* v_reset -0.1"),
        ([pointwise("a"), replace(CUBA, v_reset=-0.1)], None, "x: .* v_reset -0.1"),
        ([pointwise("a"), lif("x", r=UNEVEN)], None, "x.r: a gain that differs within a channel of a"),
    ],
)  # fmt: skip
def test_graphs_that_are_not_layers_are_refused_by_name(nodes, edges, message):
    nodes = (IMAGE, *nodes)
    edges = pairs(edges) if edges else tuple((a.name, b.name) for a, b in itertools.pairwise(nodes))
    if message is None:  # a leak that differs within a channel is no gain once r makes up for it
        nodes = (*nodes[:-1], replace(nodes[-1], r=nodes[-1].tau_mem))
        assert float_layers(SpikingGraph(nodes=nodes, edges=edges))[0].leak_v.shape == (2, 4, 4)
        return
    with pytest.raises(QuantizationError, match=message):
        float_layers(SpikingGraph(nodes=nodes, edges=edges))


@pytest.mark.parametrize(
    ("nodes", "edges", "message"),
    [
        ([pointwise("a"), lif("x"), pointwise("b")], "image>a a>x x>b", r"graph: ends in b \(Conv2d\)"),
        ([], "", r"graph: ends in image \(Input\)"),
        ([pointwise("a"), pointwise("b"), lif("x"), lif("y")],
         "image>a image>b a>x b>y", r"graph: ends in x \(LIF\), y \(LIF\)"),
        ([pointwise("a"), pointwise("b"), pointwise("c"), delay(1), lif("x"), lif("y")],
         "image>a image>b a>x b>y y>d d>c c>y", "b: leads nowhere; allowed: a path to x"),
    ],
)  # fmt: skip
def test_graphs_without_one_output_are_refused(nodes, edges, message):
    with pytest.raises(GraphError, match=message):
        float_layers(SpikingGraph(nodes=(IMAGE, *nodes), edges=pairs(edges)))
