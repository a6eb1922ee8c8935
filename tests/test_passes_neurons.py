"""Gains into weights, resets to 0, leaks into biases: what a population computes stays the same."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace

import numpy as np
import pytest
from random_float_graphs import find_float_difference

from stars_deploy.errors import GraphError
from stars_deploy.export.execution import initial_state, run_float, step_neuron
from stars_deploy.graph import (
    IF,
    LI,
    LIF,
    Conv2d,
    CubaLIF,
    Flatten,
    Input,
    Integrator,
    Linear,
    Pool2d,
    Scale,
    SpikingGraph,
)
from stars_deploy.lowering.neurons import brief, membrane_gain
from stars_deploy.lowering.passes import canonicalize, lower

DT = 5e-4
SHAPE = (2, 3, 3)
PLACES = np.random.default_rng(0).uniform(0.5, 1.5, SHAPE)
CHANNELS = np.broadcast_to([[[0.5]], [[1.25]]], SHAPE)
IMAGES = np.random.default_rng(1).random((4, *SHAPE))


def conv(name="conv", bias=True):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    weight = rng.uniform(-0.3, 0.6, (2, 2, 3, 3))
    return Conv2d(name=name, weight=weight, bias=rng.uniform(0, 0.3, 2) * bias, padding=(1, 1))


def dense(name="dense", bias=True, inputs=18):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return Linear(name=name, weight=rng.uniform(-0.2, 0.4, (18, inputs)), bias=rng.uniform(0, 0.3, 18) * bias)


def readout():
    return (dense("fc"), Integrator(name="out", r=1 / DT))


def chained(*nodes):
    nodes = (Input(name="image", shape=SHAPE), *nodes)
    edges = tuple(itertools.pairwise(node.name for node in nodes))
    return SpikingGraph(nodes=nodes, edges=edges, dt=DT, timesteps=8)


def assert_same(graph, other, tolerance=1e-9, name="a"):
    before, after = run_float(graph, IMAGES), run_float(other, IMAGES)
    spikes = before.values[name]
    assert not isinstance(graph.node(name), (LIF, CubaLIF, IF)) or 0.02 < spikes.mean() < 0.98
    np.testing.assert_allclose(after.values[name].reshape(spikes.shape), spikes, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(after.logits, before.logits, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("node", "gain"),
    [
        (LIF(name="a", tau_mem=4 * DT, r=2.0), 0.5),
        (LI(name="a", tau_mem=4 * DT, r=-2.0), -0.5),
        (IF(name="a", r=3.0), 3 * DT),
        (Integrator(name="a", r=3.0), 3 * DT),
        (CubaLIF(name="a", tau_syn=2 * DT, tau_mem=4 * DT, r=2.0, w_in=3.0), 0.75),
        (LIF(name="a", tau_mem=CHANNELS, r=CHANNELS), DT),  # equal but for the rounding of float64
    ],
)
def test_the_gain_is_the_first_step_of_the_potential(node, gain):
    assert membrane_gain(node, DT) == pytest.approx(gain, rel=1e-12) and isinstance(membrane_gain(node, DT), float)
    quiet = {"v_threshold": 1e9} if hasattr(node, "v_threshold") else {}
    state = initial_state(node, (1, *SHAPE))
    _, state = step_neuron(replace(node, **quiet), np.ones((1, *SHAPE)), state, DT)
    np.testing.assert_allclose(state[-1], np.full((1, *SHAPE), gain))
    np.testing.assert_allclose(membrane_gain(replace(node, r=np.asarray(node.r) * PLACES), DT), gain * PLACES)


PORTABLE = [
    (LIF(name="a", tau_mem=4 * DT, r=3.0, v_threshold=0.5), {"r": 1.0}),
    (LIF(name="a", tau_mem=PLACES * 8 * DT, r=4 * CHANNELS, v_threshold=0.5, v_leak=0.1), {"r": 1.0}),
    (LIF(name="a", tau_mem=4 * DT, r=4 * PLACES, v_threshold=0.5), {"r": 1.0}),
    (IF(name="a", r=500.0, v_threshold=PLACES), {"r": 1 / DT}),
    (CubaLIF(name="a", tau_syn=2 * DT, tau_mem=4 * DT, r=2.0, w_in=1.5, v_threshold=0.4), {"r": 4.0, "w_in": 2.0}),
    (CubaLIF(name="a", tau_syn=2 * DT * PLACES, tau_mem=4 * DT, w_in=PLACES, v_threshold=0.2),
     {"r": 4.0, "w_in": 2 * PLACES}),
    (LI(name="a", tau_mem=4 * DT, r=0.5), {"r": 1.0}),
    (Integrator(name="a", r=7.0), {"r": 1 / DT}),
]  # fmt: skip


@pytest.mark.parametrize(("node", "gains"), PORTABLE)
@pytest.mark.parametrize("before", [(conv(),), (dense(), Scale(name="s", scale=PLACES.reshape(-1))), ()])
def test_canonical_populations_have_the_gains_that_all_tools_know(node, gains, before):
    if isinstance(node, CubaLIF):
        before = tuple(replace(n, bias=0 * n.bias) if isinstance(n, (Conv2d, Linear)) else n for n in before)
    if before and isinstance(before[-1], Scale):
        before = (Flatten(name="f"), *before)
        parameters = {key: v.reshape(-1) for key, v in vars(node).items() if isinstance(v, np.ndarray)}
        node = replace(node, **parameters)
        gains = {key: np.reshape(value, -1) if np.ndim(value) else value for key, value in gains.items()}
    graph = chained(*before, node, *readout())
    canonical = canonicalize(graph)
    for name, value in gains.items():
        np.testing.assert_allclose(getattr(canonical.node("a"), name), value, rtol=1e-7)
    assert_same(graph, canonical, 1e-5)
    assert_same(canonical, lower(canonical))
    assert find_float_difference(canonicalize(canonical), canonical) == ""


def test_gains_go_where_they_fit():
    """Into a projection of its own or a scale; else a depthwise kernel for channels, or a scale for places."""
    lif = LIF(name="a", tau_mem=4 * DT, r=3.0, v_threshold=0.5)

    def names(*nodes):
        return {node.name: type(node) for node in canonicalize(chained(*nodes, *readout())).nodes[1:-2]}

    assert names(conv(), lif) == {"conv": Conv2d, "a": LIF}
    assert names(conv(), replace(lif, r=CHANNELS)) == {"conv": Conv2d, "a": LIF}
    assert names(conv(), replace(lif, r=PLACES)) == {"conv": Conv2d, "a.gain": Scale, "a": LIF}
    assert names(conv(), Scale(name="s", scale=2.0), replace(lif, r=PLACES)) == {"conv": Conv2d, "s": Scale, "a": LIF}
    assert names(lif) == names(replace(lif, r=CHANNELS)) == {"a.gain": Conv2d, "a": LIF}
    assert names(replace(lif, r=1.0)) == {"a": LIF}
    assert names(Flatten(name="f"), lif) == {"f": Flatten, "a.gain": Scale, "a": LIF}
    pool = Pool2d(name="p", kernel=(1, 1), stride=(1, 1))
    assert names(conv(), pool, lif) == {"conv": Conv2d, "p": Pool2d, "a.gain": Conv2d, "a": LIF}
    scaled = canonicalize(chained(conv(), Scale(name="s", scale=2.0), lif, *readout())).node("s")
    assert scaled.scale.shape == () and scaled.scale == 6


def test_a_projection_that_feeds_two_populations_keeps_its_weights():
    """Each population gets a gain of its own, which lowering folds into its copy of the projection."""
    first = LIF(name="a", tau_mem=4 * DT, r=3.0, v_threshold=0.5)
    graph = chained(conv(), first, *readout())
    second = replace(first, name="b", r=2.0)
    graph = graph.with_nodes((*graph.nodes, second), (*graph.edges, ("conv", "b"), ("b", "fc")))
    canonical = canonicalize(graph)
    assert {"a.gain", "b.gain"} <= {node.name for node in canonical.nodes}
    np.testing.assert_array_equal(canonical.node("conv").weight, graph.node("conv").weight.astype(np.float32))
    lowered = lower(canonical)
    assert {node.name for node in lowered.nodes} == {"image", "conv", "conv.1", "a", "b", "fc", "fc.1", "out"}
    for name in "ab":
        assert_same(graph, canonical, 1e-5, name)
        assert_same(canonical, lowered, name=name)


def test_lowered_populations_have_one_gain():
    for node, _ in PORTABLE:
        graph = chained(conv(bias=False), node, *readout())
        lowered = lower(graph)
        assert isinstance(membrane_gain(lowered.node("a"), DT), float)
        assert_same(graph, lowered)
        uneven = not isinstance(membrane_gain(node, DT), float)
        assert not uneven or membrane_gain(lowered.node("a"), DT) == pytest.approx(1)
        # One kernel serves all places of a channel: gains of places make it a matrix.
        assert isinstance(lowered.node("conv"), Linear) == uneven


@pytest.mark.parametrize("r", [0.0, np.where(PLACES > 1, 0.0, 2.0)])
def test_a_leak_without_a_gain_is_a_bias_all_the_same(r):
    graph = chained(conv(), LIF(name="a", tau_mem=4 * DT, r=r, v_leak=2 * PLACES, v_threshold=0.9), *readout())
    lowered = lower(graph)
    assert_same(graph, lowered)
    assert lowered.node("a").v_leak == 0 and np.all(np.asarray(lowered.node("a").r) != 0)


@pytest.mark.parametrize("leak", [0.4, CHANNELS, PLACES])
@pytest.mark.parametrize("before", [conv(), dense()])
def test_a_leak_becomes_a_bias_of_the_first_projection(leak, before):
    flat = isinstance(before, Linear)
    leak = np.reshape(leak, -1) if flat and np.ndim(leak) else leak
    other = replace(before, name="other", bias=np.zeros(len(before.weight)))
    lif = LIF(name="a", tau_mem=4 * DT, r=2.0, v_leak=leak, v_threshold=0.7)
    graph = chained(before, lif, *readout())
    graph = graph.with_nodes((*graph.nodes, other), (*graph.edges, ("image", "other"), ("other", "a")))
    lowered = lower(graph)
    assert_same(graph, lowered)
    assert lowered.node("a").v_leak == 0 and not lowered.node("other").bias.any()
    bias = before.bias if flat or not np.ndim(leak) else before.bias[:, None, None]
    np.testing.assert_allclose(lowered.node(before.name).bias, bias + np.asarray(leak) / 2)


def test_an_integrating_readout_leaks_into_a_bias_too():
    graph = chained(
        dense(), LIF(name="a", tau_mem=4 * DT, v_threshold=0.2), dense("fc"), LI(name="out", tau_mem=3 * DT, v_leak=0.5)
    )
    lowered = lower(graph)
    assert_same(graph, lowered)
    np.testing.assert_allclose(lowered.node("fc").bias, graph.node("fc").bias + 0.5)


RESETS = np.where(PLACES > 1, -0.3, 0.0)


@pytest.mark.parametrize(
    "node",
    [
        LIF(name="a", tau_mem=4 * DT, r=3.0, v_leak=-0.25, v_reset=-0.25, v_threshold=0.5),
        LIF(name="a", tau_mem=4 * DT, r=3.0, v_leak=PLACES - 1.6, v_reset=PLACES - 1.6, v_threshold=PLACES),
        # Neurons that are reset to 0 may rest anywhere.
        LIF(name="a", tau_mem=4 * DT, r=3.0, v_leak=np.where(RESETS, RESETS, 0.2), v_reset=RESETS, v_threshold=0.5),
        CubaLIF(name="a", tau_syn=2 * DT, tau_mem=4 * DT, r=3.0, v_leak=0.1, v_reset=0.1, v_threshold=0.6),
        IF(name="a", r=600.0, v_reset=-0.25, v_threshold=0.5),
        IF(name="a", r=600.0, v_reset=RESETS, v_threshold=0.5),
    ],
)  # fmt: skip
def test_potentials_are_measured_from_the_reset(node):
    graph = chained(conv(bias=False), node, *readout())
    lowered = lower(graph)
    assert_same(graph, lowered)
    assert lowered.node("a").v_reset == 0
    np.testing.assert_allclose(lowered.node("a").v_threshold, node.v_threshold - node.v_reset)
    assert_same(graph, canonicalize(graph), 1e-5)  # which keeps it, as other tools know it
    np.testing.assert_array_equal(canonicalize(graph).node("a").v_reset, np.float32(node.v_reset))


@pytest.mark.parametrize("kind", [LIF, CubaLIF])
def test_a_reset_away_from_rest_is_refused(kind):
    syn = {"tau_syn": DT} if kind is CubaLIF else {}
    for leak, reset, message in (
        (
            0.0,
            -0.1,
            r"shift_resets, a: v_reset -0.1 and v_leak 0; allowed: v_reset of 0, or equal to v_leak; what to do",
        ),
        (RESETS + 0.1, RESETS, r"a: v_reset -0.3 to 0 and v_leak -0.2 to 0.1"),
    ):
        node = kind(name="a", tau_mem=DT, v_leak=leak, v_reset=reset, **syn)
        with pytest.raises(GraphError, match=message):
            lower(chained(conv(bias=False), node, *readout()))


def test_a_bias_stays_in_a_current_that_lasts():
    cuba = CubaLIF(name="a", tau_syn=2 * DT, tau_mem=4 * DT, r=4.0, w_in=2.0, v_leak=0.3, v_threshold=0.6)
    mixed = replace(cuba, tau_syn=np.where(np.arange(18).reshape(SHAPE) == 4, 2 * DT, DT))
    for neuron in (cuba, mixed):
        graph = chained(conv(), neuron, *readout())
        assert_same(graph, lower(graph))
        assert lower(graph).node("conv").bias.any() and np.all(lower(graph).node("a").v_leak == 0.3)
    plain = chained(conv(bias=False), cuba, *readout())
    assert_same(plain, lower(plain))
    assert lower(plain).node("a").v_leak == 0.3  # of the membrane, where the chip has its biases


@pytest.mark.parametrize("leak", [0.0, 0.3, PLACES / 4])
def test_a_bias_into_a_current_of_one_timestep_is_one_of_the_membrane(leak):
    cuba = CubaLIF(name="a", tau_syn=DT, tau_mem=4 * DT, r=2.0, w_in=1.5, v_leak=leak, v_threshold=0.6)
    graph = chained(conv(), cuba, *readout())
    lowered = lower(graph)
    assert_same(graph, lowered)
    assert not lowered.node("conv").bias.any()
    np.testing.assert_allclose(
        lowered.node("a").v_leak, np.broadcast_to(leak + 3 * graph.node("conv").bias[:, None, None], SHAPE)
    )
    # In float32 the time constant differs from dt by a rounding: it still is one timestep.
    assert_same(canonicalize(graph), lower(canonicalize(graph)), 1e-6)


def test_gains_that_float32_makes_differ_leave_a_convolution_one():
    taus = {"tau_mem": 4 * DT * PLACES, "tau_syn": 1.5 * DT + DT * PLACES}
    cuba = CubaLIF(name="a", r=4 * PLACES, w_in=1.5 + PLACES, v_threshold=0.6, **taus)
    graph = canonicalize(chained(conv(), cuba, *readout()))
    gain = graph.node("a").r * DT / graph.node("a").tau_mem * graph.node("a").w_in * DT / graph.node("a").tau_syn
    assert 0 < np.ptp(gain) < 1e-6
    assert [node.name for node in canonicalize(graph).nodes] == ["image", "conv", "a", "fc", "out"]
    lowered = lower(graph)
    assert isinstance(lowered.node("conv"), Conv2d) and lowered.shapes["a"] == SHAPE
    assert_same(graph, lowered, 1e-6)
    # Beyond what float32 does, it is another gain for each neuron, and those are no convolution.
    uneven = chained(conv(), replace(cuba, r=4 * PLACES * (1 + 1e-5 * PLACES)), *readout())
    assert isinstance(lower(uneven).node("conv"), Linear)


def test_ranges_are_written_briefly():
    assert (brief(0.5), brief(np.array([0.5, 0.5])), brief(np.array([3.0, -1.0]))) == ("0.5", "0.5", "-1 to 3")
