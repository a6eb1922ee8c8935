"""Synapses on cores and the messages that reach them, against every synapse listed one by one."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from chips import small_chip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import graphs
from slow_cost import cores_of, synapses_with_delays

from stars_deploy.hardware.fans import OUTSIDE, find_fans, find_route
from stars_deploy.hardware.mapping import map_network
from stars_deploy.quantized import ConvProjection, DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.synops import fan_out

CHIPS = [small_chip(neurons) for neurons in (1, 2, 3, 5, 8, 20, 4095)]
MANY = settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))


def drawn_graphs():
    return graphs(timesteps=st.integers(1, 3), batch=1, width=1, images="empty")


def fans_by_enumeration(graph, mapping):
    """Return {(source, target, delay, core, neuron): [effective, stored]}, and a (source, neuron, core) a message."""
    home, counts, messages = cores_of(graph, mapping), defaultdict(lambda: [0, 0]), set()
    for projection in graph.projections:
        for source, target, weight, delay in synapses_with_delays(graph, projection):
            core = home[projection.target, target]
            key = (projection.source, projection.target, delay, core, source)
            counts[key][0] += weight != 0
            counts[key][1] += 1
            if weight:
                messages.add((projection.source, source, core))
    return dict(counts), messages


@MANY
@given(drawn_graphs(), st.sampled_from(CHIPS))
def test_every_synapse_is_on_the_core_of_its_target(drawn, profile):
    """Strides, padding, dilation, groups, delays of each synapse, several projections into one population."""
    graph, _ = drawn
    mapping = map_network(graph, profile)
    expected, _ = fans_by_enumeration(graph, mapping)
    found = defaultdict(lambda: [0, 0])
    for fan in mapping.fans:
        assert len(set(fan.sources.tolist())) == len(fan.sources)
        assert (fan.stored >= fan.effective).all() and (fan.stored > 0).all()
        assert fan.dense == (len(graph.shape_of(fan.target)) == 1)
        for neuron, effective, stored in zip(fan.sources.tolist(), fan.effective, fan.stored, strict=True):
            found[fan.source, fan.target, fan.delay, fan.core, neuron][0] += int(effective)
            found[fan.source, fan.target, fan.delay, fan.core, neuron][1] += int(stored)
    assert dict(found) == expected


@MANY
@given(drawn_graphs(), st.sampled_from(CHIPS))
def test_fans_of_all_cores_add_up_to_the_fan_out(drawn, profile):
    graph, _ = drawn
    mapping = map_network(graph, profile)
    home = [core.layer for core in mapping.cores]
    for projection in graph.projections:
        shape = graph.shape_of(projection.source)
        total = np.zeros((2, int(np.prod(shape))), int)
        for core, layer in enumerate(home):
            if layer == projection.target:
                for fan in find_fans(graph, projection, core, mapping.cores[core].box):
                    total[0, fan.sources] += fan.effective
                    total[1, fan.sources] += fan.stored
        np.testing.assert_array_equal(total[0], fan_out(projection, shape).ravel())
        np.testing.assert_array_equal(total[1], fan_out(projection, shape, stored=True).ravel())


@MANY
@given(drawn_graphs(), st.sampled_from(CHIPS))
def test_a_spike_sends_one_message_to_each_core_that_it_reaches(drawn, profile):
    """Also where several projections, or several delays, lead from one population to the same core."""
    graph, _ = drawn
    mapping = map_network(graph, profile)
    home = cores_of(graph, mapping)
    _, expected = fans_by_enumeration(graph, mapping)
    found = [(route.source, neuron, route.core) for route in mapping.routes for neuron in route.sources.tolist()]
    assert len(found) == len(set(found))
    assert set(found) == expected
    for route in mapping.routes:
        assert bool(len(route.starts)) == bool(len(route.sources))
        ends = [*route.starts[1:].tolist(), len(route.sources)][: len(route.starts)]
        assert route.source_cores.tolist() == sorted(set(route.source_cores.tolist()))
        for core, first, last in zip(route.source_cores.tolist(), route.starts.tolist(), ends, strict=True):
            assert first < last
            places = {home.get((route.source, neuron), OUTSIDE) for neuron in route.sources[first:last].tolist()}
            assert places == {core}


@MANY
@given(drawn_graphs(), st.sampled_from(CHIPS))
def test_axons_are_neurons_or_pixels_whose_channels_share_one(drawn, profile):
    graph, _ = drawn
    mapping = map_network(graph, profile)
    home = cores_of(graph, mapping)
    _, messages = fans_by_enumeration(graph, mapping)
    into, out = defaultdict(set), defaultdict(set)
    for source, neuron, core in messages:
        shape = graph.shape_of(source)
        convolved = len(graph.shape_of(mapping.cores[core].layer)) == 3
        axon = neuron % (shape[1] * shape[2]) if convolved else neuron
        into[core].add((source, axon))
        if (source, neuron) in home:
            out[home[source, neuron]].add((core, axon))
    for core in mapping.cores:
        assert core.axons_in == len(into[core.index])
        assert core.axons_out == len(out[core.index])


def test_a_convolution_cut_in_two_by_hand():
    """3 taps over 5 pixels with padding: each core sees its own 2 or 3 positions and their neighbours."""
    weight = np.array([1, 0, 2]).reshape(1, 1, 1, 3)
    graph = QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1, 1, 5)),
        populations=(Population(name="out", shape=(1, 1, 5), bias=np.zeros((1, 1, 5), int)),),
        projections=(ConvProjection(name="p", source="input", target="out", weight=weight, padding=(0, 1)),),
        timesteps=1,
    )
    (left,) = find_fans(graph, graph.projections[0], 4, ((0, 1), (0, 1), (0, 2)))
    assert (left.core, left.delay, left.dense, left.source, left.target) == (4, 0, False, "input", "out")
    # Output 0 looks at pixels 0 (weight 0) and 1 (2); output 1 at 0 (1), 1 (0), 2 (2).
    assert left.sources.tolist() == [0, 1, 2]
    assert left.effective.tolist() == [1, 1, 1]
    assert left.stored.tolist() == [2, 2, 1]
    (right,) = find_fans(graph, graph.projections[0], 5, ((0, 1), (0, 1), (4, 5)))
    assert (right.sources.tolist(), right.effective.tolist(), right.stored.tolist()) == ([3, 4], [1, 0], [1, 1])
    route = find_route(graph, (right,), {"out": np.zeros(5, int)})
    assert (route.sources.tolist(), route.source_cores.tolist()) == ([3], [OUTSIDE])  # pixel 4 meets a zero only
    assert (route.axons.tolist(), route.axons_in, route.core) == ([1], 1, 5)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_two_projections_between_the_same_populations_share_a_message(kind):
    """As a residual sum of two convolutions, or a fast and a slow synapse."""
    shape = (2, 2, 2) if kind == "conv" else (3,)

    def between(name, weight, delay):
        if kind == "conv":
            weight = np.array(weight[:2])[:, None, None, None] * np.ones((2, 2, 1, 1), int)
            return ConvProjection(name=name, source="a", target="b", weight=weight, delay=delay)
        return DenseProjection(name=name, source="a", target="b", weight=np.diag(weight), delay=delay)

    size = int(np.prod(shape))
    first = np.ones((size, 4), int) if kind == "dense" else np.ones((2, 1, 1, 1), int)
    entering = (DenseProjection if kind == "dense" else ConvProjection)(
        name="in", source="input", target="a", weight=first
    )
    graph = QuantizedGraph(
        input=QuantizedInput(name="input", shape=(4,) if kind == "dense" else (1, 2, 2)),
        populations=tuple(Population(name=name, shape=shape, bias=np.zeros(shape, int)) for name in "ab"),
        projections=(entering, between("fast", [1, 2, 0], 0), between("slow", [3, 0, 0], 2)),
        timesteps=3,
    )
    mapping = map_network(graph, small_chip(100))
    messages = Counter(neuron for route in mapping.routes if route.source == "a" for neuron in route.sources.tolist())
    reaching = range(8) if kind == "conv" else (0, 1)
    assert messages == dict.fromkeys(reaching, 1)
    assert mapping.cores[1].axons_in == mapping.cores[0].axons_out == (4 if kind == "conv" else 2)
