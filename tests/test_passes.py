"""Every pass keeps what a graph computes, at padded borders as well."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stars_deploy.errors import GraphError
from stars_deploy.export.execution import run_float
from stars_deploy.graph import LIF, BatchNorm, Conv2d, Input, Integrator, Linear, Normalize, SpikingGraph
from stars_deploy.lowering.passes import PASSES, fold_batch_norm, fold_normalization, lower

SHAPE = (2, 6, 5)


def batch_norm(name, channels, rng):
    return BatchNorm(
        name=name,
        gamma=rng.normal(1, 0.3, channels),
        beta=rng.normal(0.3, 0.3, channels),
        mean=rng.normal(0, 0.5, channels),
        var=rng.uniform(0.3, 2, channels),
    )


def lif(name):
    return LIF(name=name, tau_mem=2e-3, r=2.0)


def chained(nodes, timesteps=3):
    edges = tuple((one.name, other.name) for one, other in itertools.pairwise(nodes))
    return SpikingGraph(nodes=tuple(nodes), edges=edges, timesteps=timesteps)


def normalize():
    return Normalize(name="normalize", mean=np.array([0.3, 0.7]), std=np.array([0.25, 0.4]))


def image():
    return Input(name="image", shape=SHAPE)


def random_images(samples=3):
    return np.random.default_rng(9).random((samples, *SHAPE))


@st.composite
def graphs(draw):
    """Normalise, conv (bias per channel or neuron), batch norm, LIF, then the same again or dense layers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = draw(st.sampled_from([1, 2]))
    kernel, stride, dilation = ((draw(st.integers(1, 2)), draw(st.integers(1, 2))) for _ in range(3))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    first = Conv2d(name="conv", weight=rng.normal(size=(4, 2 // groups, *kernel)), bias=rng.normal(size=4),
                   stride=stride, padding=padding, dilation=dilation, groups=groups)  # fmt: skip
    shape = chained([image(), first]).shapes["conv"]
    if draw(st.booleans()):
        first = replace(first, bias=rng.normal(size=shape))
    start = [first, batch_norm("norm", 4, rng)]
    if draw(st.booleans()):
        start = [
            Linear(name="dense", weight=rng.normal(size=(4, 60)), bias=rng.normal(size=4)),
            batch_norm("norm", 4, rng),
        ]
        shape = (4,)
    size = int(np.prod(shape))
    nodes = [image(), normalize(), *start, lif("lif1"),
             Linear(name="dense2", weight=rng.normal(size=(5, size)), bias=rng.normal(size=5)),
             batch_norm("norm2a", 5, rng), batch_norm("norm2b", 5, rng), lif("lif2"),
             Linear(name="dense3", weight=rng.normal(size=(3, 5)), bias=rng.normal(size=3)),
             Integrator(name="readout", r=1e3)]  # fmt: skip
    return chained(nodes)


def assert_same(one, other):
    """Compare the input and the spikes of every population, and the logits."""
    images = random_images()
    before, after = run_float(one, images), run_float(other, images)
    for node in one.nodes:
        if isinstance(node, (LIF, Integrator)):
            currents = [
                sum(record.values[source] for source in graph.sources(node.name))
                for graph, record in ((one, before), (other, after))
            ]
            np.testing.assert_allclose(currents[1], currents[0], rtol=1e-9, atol=1e-9)
        if isinstance(node, LIF):
            np.testing.assert_array_equal(after.values[node.name], before.values[node.name])
    np.testing.assert_allclose(after.logits, before.logits, rtol=1e-9, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(graphs())
def test_each_pass_and_both_orders_keep_the_function(graph):
    norm_free, shift_free = fold_batch_norm(graph), fold_normalization(graph)
    assert not any(isinstance(node, BatchNorm) for node in norm_free.nodes)
    assert not any(isinstance(node, Normalize) for node in shift_free.nodes)
    for rewritten in (norm_free, shift_free, fold_normalization(norm_free), fold_batch_norm(shift_free), lower(graph)):
        assert_same(graph, rewritten)
    kinds = {type(node) for node in lower(graph).nodes}
    assert kinds <= {Input, Conv2d, Linear, LIF, Integrator}


def test_padded_borders_get_a_bias_of_their_own():
    rng = np.random.default_rng(2)
    conv = Conv2d(name="conv", weight=rng.normal(size=(3, 2, 3, 3)), bias=rng.normal(size=3), padding=(1, 1))
    graph = chained([image(), normalize(), conv, lif("lif")])
    folded = lower(graph)
    bias = folded.node("conv").bias
    assert bias.shape == (3, 6, 5)
    current = run_float(graph, random_images()).values["conv"]
    np.testing.assert_allclose(run_float(folded, random_images()).values["conv"], current, rtol=1e-9, atol=1e-9)
    # With one bias a channel, that of the middle, the border would be wrong and nothing else.
    flat = folded.with_nodes(
        tuple(replace(n, bias=bias[:, 2, 2]) if n.name == "conv" else n for n in folded.nodes), folded.edges
    )
    wrong = np.abs(run_float(flat, random_images()).values["conv"] - current).max((0, 1, 2))
    assert wrong[1:-1, 1:-1].max() < 1e-9
    assert min(wrong[0].min(), wrong[-1].min(), wrong[:, 0].min(), wrong[:, -1].min()) > 1e-3


def test_without_padding_the_bias_stays_one_a_channel_at_any_size_of_the_weights():
    rng = np.random.default_rng(3)
    for size in (1.0, 1e-15, 1e9):
        conv = Conv2d(name="conv", weight=size * rng.normal(size=(3, 2, 3, 3)), bias=np.zeros(3), padding=(0, 0))
        assert lower(chained([image(), normalize(), conv, lif("lif")])).node("conv").bias.shape == (3,)
        padded = replace(conv, padding=(1, 0))
        assert lower(chained([image(), normalize(), padded, lif("lif")])).node("conv").bias.shape == (3, 6, 3)


def test_normalization_that_feeds_two_convolutions_folds_into_both():
    rng = np.random.default_rng(4)
    one, other = (
        Conv2d(name=name, weight=rng.normal(size=(2, 2, 3, 3)), bias=rng.normal(size=2), padding=(1, 1))
        for name in ("one", "other")
    )
    graph = SpikingGraph(
        nodes=(image(), normalize(), one, other, lif("lif")),
        edges=(("image", "normalize"), ("normalize", "one"), ("normalize", "other"), ("one", "lif"), ("other", "lif")),
    )
    assert_same(graph, lower(graph))


def branching(edges, *nodes):
    rng = np.random.default_rng(5)
    one, other = (
        Conv2d(name=name, weight=rng.normal(size=(2, 2, 1, 1)), bias=np.zeros(2)) for name in ("one", "other")
    )
    return SpikingGraph(nodes=(image(), one, other, *nodes), edges=edges)


def test_batch_norm_without_a_projection_of_its_own_is_refused():
    norm = batch_norm("norm", 2, np.random.default_rng(6))
    alone = chained([image(), norm, lif("lif")])
    shared = branching((("image", "one"), ("one", "norm"), ("one", "other"), ("norm", "lif"), ("other", "lif")),
                       norm, lif("lif"))  # fmt: skip
    summed = branching((("image", "one"), ("image", "other"), ("one", "norm"), ("other", "norm"), ("norm", "lif")),
                       norm, lif("lif"))  # fmt: skip
    after_spikes = chained([image(), replace(branching((("image", "one"), ("one", "other"))).node("one"), name="c"),
                            lif("lif"), norm, lif("lif2")])  # fmt: skip
    for graph, found in ((alone, "Input"), (shared, "one, other|other, norm|norm, other"), (summed, "one, other"),
                         (after_spikes, "LIF")):  # fmt: skip
        with pytest.raises(GraphError, match=f"norm: follows .*({found})"):
            fold_batch_norm(graph)
    with pytest.raises(GraphError, match="fold_batch_norm, norm: follows"):
        lower(alone)


def test_normalization_in_front_of_anything_else_is_refused():
    with pytest.raises(GraphError, match="normalize: feeds lif, a LIF"):
        fold_normalization(chained([image(), normalize(), lif("lif")]))
    # `other` also sees the image as it is: its weights cannot be those of both.
    mixed = branching((("image", "normalize"), ("normalize", "other"), ("image", "other"), ("image", "one"),
                       ("one", "lif"), ("other", "lif")), normalize(), lif("lif"))  # fmt: skip
    with pytest.raises(GraphError, match="normalize: feeds other, a Conv2d with 2 sources"):
        lower(mixed)


def test_passes_leave_a_lowered_graph_alone():
    conv = Conv2d(name="conv", weight=np.ones((1, 2, 1, 1)), bias=np.zeros(1))
    graph = lower(chained([image(), normalize(), conv, lif("lif")]))
    for step in PASSES:
        assert step(graph) == graph
