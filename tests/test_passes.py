"""Every pass keeps what a graph computes, at padded borders as well."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_float_graphs import find_float_difference, float_graphs

from stars_deploy.errors import GraphError
from stars_deploy.export.execution import initial_state, run_float, step_neuron
from stars_deploy.graph import (
    IF,
    LI,
    LIF,
    NEURONS,
    SPIKING,
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
from stars_deploy.lowering.folding import fold_batch_norm, fold_normalization
from stars_deploy.lowering.neurons import membrane_gain
from stars_deploy.lowering.passes import CANONICAL, LOWERED, canonicalize, lower

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
def test_both_forms_of_a_students_graph_keep_the_function(graph):
    norm_free = fold_batch_norm(graph)
    assert not any(isinstance(node, BatchNorm) for node in norm_free.nodes)
    for rewritten in (norm_free, lower(norm_free), lower(graph)):
        assert_same(graph, rewritten)
    assert {type(node) for node in lower(graph).nodes} <= {Input, Conv2d, Linear, LIF, Integrator}
    assert {type(node) for node in canonicalize(graph).nodes} <= {Input, Normalize, Conv2d, Linear, LIF, Integrator}


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


def test_canonical_graphs_keep_the_normalization_that_all_images_pass():
    rng = np.random.default_rng(7)
    conv = Conv2d(name="conv", weight=rng.normal(size=(2, 2, 3, 3)), bias=rng.normal(size=2), padding=(1, 1))
    graph = chained([image(), normalize(), conv, lif("lif")])
    assert fold_normalization(graph) is graph
    assert isinstance(canonicalize(graph).node("normalize"), Normalize)
    # One behind a population, or beside an image that goes another way, is none of the images.
    behind = chained([image(), lif("first"), normalize(), conv, lif("lif")])
    both = graph.with_nodes((*graph.nodes, replace(conv, name="raw")), (*graph.edges, ("image", "raw"), ("raw", "lif")))
    for other in (behind, both):
        folded = canonicalize(other)
        assert not any(isinstance(node, Normalize) for node in folded.nodes)
        np.testing.assert_allclose(
            run_float(folded, random_images()).values["conv"],
            run_float(other, random_images()).values["conv"] * 2,  # r = 2 is in the weights
            rtol=1e-6,
            atol=1e-6,
        )


def test_canonical_graphs_refuse_a_normalization_that_cannot_be_folded():
    first, other = lif("first"), lif("lif")
    with pytest.raises(GraphError, match="fold_normalization, normalize: feeds lif, a LIF"):
        canonicalize(chained([image(), first, normalize(), other]))
    # `other` also sees the image as it is: its weights cannot be those of both. Lowered, it becomes two.
    mixed = branching((("image", "normalize"), ("normalize", "other"), ("image", "other"), ("image", "one"),
                       ("one", "lif"), ("other", "lif")), normalize(), lif("lif"))  # fmt: skip
    with pytest.raises(GraphError, match=r"normalize: feeds other, a Conv2d with 2 sources; allowed: .* nothing else"):
        canonicalize(mixed)
    assert_same(mixed, lower(mixed))
    assert [node.name for node in lower(mixed).nodes] == ["image", "one", "other", "other.1", "lif"]


@settings(max_examples=200, deadline=None)
@given(float_graphs())
def test_lowered_random_graphs_compute_the_same(drawn):
    graph, images = drawn
    lowered = lower(graph)
    assert_lowered(lowered)
    record = run_float(graph, images)
    assume(margin(graph, record) > 1e-9)
    assert_same_spikes(graph, record, run_float(lowered, images), 1e-9)
    assert lowered.output.name == "readout" == [n.name for n in lowered.ordered() if isinstance(n, NEURONS)][-1]


@settings(max_examples=150, deadline=None)
@given(float_graphs(raw=False))
def test_canonical_random_graphs_compute_the_same_in_float32_numbers(drawn):
    graph, images = drawn
    canonical = canonicalize(graph)
    record = run_float(graph, images)
    again = run_float(canonical, images)
    if margin(graph, record) > 3e-5:
        assert_same_spikes(graph, record, again, 1e-4)
    assert find_float_difference(canonicalize(canonical), canonical) == ""
    for node in canonical.nodes:
        assert not isinstance(node, BatchNorm)
        for item in fields(node):
            value = getattr(node, item.name)
            if isinstance(value, (float, np.ndarray)):
                np.testing.assert_array_equal(np.float32(value).astype(np.float64), value)
    assert_portable(canonical)
    # What the file holds is what is lowered, and nothing is lost on the way.
    assume(margin(canonical, again) > 1e-9)
    assert_same_spikes(canonical, again, run_float(lower(canonical), images), 1e-9)


def assert_lowered(graph):
    """Check what :func:`lower` promises."""
    for node in graph.nodes:
        sources, targets = ([graph.node(name) for name in names(node.name)] for names in (graph.sources, graph.targets))
        if isinstance(node, (Conv2d, Linear)):
            assert len(sources) == len(targets) == 1
            assert isinstance(sources[0], (Input, Delay, *NEURONS)) and isinstance(targets[0], NEURONS)
            lasting = np.any(np.abs(getattr(targets[0], "tau_syn", 0.0) / graph.dt - 1) > 1e-6)
            assert not node.bias.any() or not isinstance(targets[0], CubaLIF) or lasting
        elif isinstance(node, Delay):
            assert isinstance(graph.node(graph.sources(node.name)[0]), (Input, *NEURONS)) and len(sources) == 1
            assert isinstance(targets[0], (Conv2d, Linear)) and len(targets) == 1 and node.delay.any()
            assert isinstance(targets[0], Linear) or np.ptp(node.delay) == 0
        else:
            assert isinstance(node, (Input, *NEURONS))
            if not isinstance(node, Input):
                assert sources and all(isinstance(source, (Conv2d, Linear)) for source in sources)
                assert isinstance(membrane_gain(node, graph.dt), float)
                assert not np.any(getattr(node, "v_reset", 0))
                assert isinstance(node, CubaLIF) or not np.any(getattr(node, "v_leak", 0))


def assert_portable(graph):
    """Check the gains that all tools know, in float32."""
    for node in graph.nodes:
        if isinstance(node, (LIF, LI)):
            assert node.r == 1
        elif isinstance(node, CubaLIF):
            np.testing.assert_array_equal(node.r, np.float32(node.tau_mem / np.float64(graph.dt)))
            np.testing.assert_array_equal(node.w_in, np.float32(node.tau_syn / np.float64(graph.dt)))
        elif isinstance(node, (IF, Integrator)):
            assert node.r == np.float32(1 / graph.dt)


def margin(graph, record):
    """Return the least distance of a potential from its threshold."""
    least = np.inf
    for node in graph.nodes:
        if not isinstance(node, SPIKING):
            continue
        state = initial_state(node, record.values[node.name].shape[1:])
        quiet = replace(node, v_threshold=1e300)
        for step in range(graph.timesteps):
            current = sum(record.values[source][step] for source in graph.sources(node.name))
            potential = step_neuron(quiet, current, state, graph.dt)[1][-1]
            least = min(least, np.abs(potential - node.v_threshold).min())
            state = step_neuron(node, current, state, graph.dt)[1]
    return least


def assert_same_spikes(graph, before, after, tolerance):
    for node in graph.nodes:
        if isinstance(node, SPIKING):
            spikes = before.values[node.name]
            np.testing.assert_array_equal(after.values[node.name].reshape(spikes.shape), spikes)
    largest = 1 + np.abs(before.logits).max()
    np.testing.assert_allclose(after.logits, before.logits, rtol=0, atol=tolerance * largest)


def test_a_failing_pass_is_named_and_the_remedy_kept():
    with pytest.raises(GraphError, match=r"require_one_end, graph: ends in conv .* what to do: append an Integrator"):
        lower(chained([image(), Conv2d(name="conv", weight=np.ones((1, 2, 1, 1)), bias=np.zeros(1))]))


def test_numbers_that_float32_cannot_hold_are_refused():
    conv = Conv2d(name="conv", weight=np.full((1, 2, 1, 1), 1e39), bias=np.zeros(1))
    with pytest.raises(GraphError, match=r"round_parameters, conv\.weight: 2 of 2 values are NaN or infinite"):
        canonicalize(chained([image(), conv, LIF(name="lif", tau_mem=1e-3)]))
    with pytest.raises(GraphError, match=r"fold_gains, lif\.tau_mem: 0.0 s; allowed: more than 0 s"):
        canonicalize(chained([image(), LIF(name="lif", tau_mem=1e-50)]))


def test_passes_leave_their_own_form_alone():
    conv = Conv2d(name="conv", weight=np.ones((1, 2, 1, 1)), bias=np.zeros(1))
    graph = lower(chained([image(), normalize(), conv, lif("lif")]))
    for step in LOWERED:
        assert find_float_difference(step(graph), graph) == ""
    canonical = canonicalize(chained([image(), normalize(), conv, lif("lif")]))
    for step in CANONICAL:
        assert find_float_difference(step(canonical), canonical) == ""


@settings(max_examples=30, deadline=None)
@given(float_graphs())
def test_lowering_a_lowered_graph_changes_nothing(drawn):
    lowered = lower(drawn[0])
    again = lower(lowered)
    assert [(type(node), node.name) for node in again.nodes] == [(type(node), node.name) for node in lowered.nodes]
    assert find_float_difference(again, lowered) == ""
