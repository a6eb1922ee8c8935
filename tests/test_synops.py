"""Counting against loops over every pair of neurons, on random projections and random spikes."""

import itertools

import numpy as np
import pytest
import random_graphs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stars_deploy.precision import Precision
from stars_deploy.quantized import ConvProjection, DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.synops import connections, count_batch, fan_out, wire_up
from stars_deploy.targets.base import SpikeRecord
from stars_deploy.targets.reference import run_reference


def synapses(projection, shape):
    """Yield (target neuron, source neuron, weight) for every synapse between neurons that exist."""
    if isinstance(projection, DenseProjection):
        sources = list(np.ndindex(*shape))
        for target, row in enumerate(projection.weight):
            for source, weight in zip(sources, row, strict=True):
                yield (target,), source, int(weight)
        return
    out, per_group, rows, columns = projection.weight.shape
    _, height, width = projection.output_shape(shape)
    for o, y, x, c, ky, kx in itertools.product(*map(range, (out, height, width, per_group, rows, columns))):
        row = y * projection.stride[0] + ky * projection.dilation[0] - projection.padding[0]
        column = x * projection.stride[1] + kx * projection.dilation[1] - projection.padding[1]
        if 0 <= row < shape[1] and 0 <= column < shape[2]:
            channel = o // (out // projection.groups) * per_group + c
            yield (o, y, x), (channel, row, column), int(projection.weight[o, c, ky, kx])


def brute_force(graph, record, images):
    """Return {population: {count: [per step]}}, one synapse, sample and timestep at a time."""
    result = {}
    for population in graph.populations:
        counts = {key: [0] * graph.timesteps for key in ("spikes", "spike_synops", "input_synops", "dense", "active")}
        fired = record.spikes[population.name]
        wires = [
            (
                projection.source,
                target,
                source,
                weight,
                np.ravel(projection.delay)[number * (np.size(projection.delay) > 1)],
            )
            for projection in graph.into(population.name)
            for number, (target, source, weight) in enumerate(synapses(projection, graph.shape_of(projection.source)))
        ]
        for step, sample in itertools.product(range(graph.timesteps), range(fired.shape[1])):
            reached = set()
            for name, target, source, weight, delay in wires:
                if step < delay:
                    continue
                graded = name == graph.input.name
                over_time = images if images.ndim > len(graph.input.shape) + 1 else [images] * graph.timesteps
                emitted = (over_time if graded else record.spikes[name])[step - delay]
                if emitted[(sample, *source)]:
                    counts["dense"][step] += 1
                    if weight:
                        counts["input_synops" if graded else "spike_synops"][step] += 1
                        reached.add(target)
            firing = {tuple(map(int, index)) for index in np.argwhere(fired[step, sample])}
            counts["spikes"][step] += len(firing)
            counts["active"][step] += len(reached | firing)
        result[population.name] = counts
    return result


def assert_counted(graph, record, images):
    """Compare every count of every population and timestep with the enumeration."""
    counted = count_batch(graph, wire_up(graph), record, images)
    expected = brute_force(graph, record, images)
    assert list(counted) == list(expected)
    for name, counts in expected.items():
        assert counted[name].spikes.tolist() == counts["spikes"]
        assert counted[name].spike_synops.tolist() == counts["spike_synops"]
        assert counted[name].input_synops.tolist() == counts["input_synops"]
        assert counted[name].dense_synops.tolist() == counts["dense"]
        assert counted[name].active.tolist() == counts["active"]


def sparse_weights(rng, shape):
    return rng.integers(-3, 4, shape) * (rng.random(shape) < 0.6)


@st.composite
def convolutions(draw, source="input", target="conv"):
    groups = draw(st.integers(1, 2))
    per_group, out = draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pair), draw(pair), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    least = [max(1, dilation[axis] * (kernel[axis] - 1) + 1 - 2 * padding[axis]) for axis in (0, 1)]
    shape = (groups * per_group, *(draw(st.integers(size, size + 3)) for size in least))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    projection = ConvProjection(
        name=f"{source}-{target}",
        source=source,
        target=target,
        weight=sparse_weights(rng, (out, per_group, *kernel)),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        delay=draw(st.integers(0, 2)),
    )
    return projection, shape, rng


@given(convolutions())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_fan_out_of_any_convolution_equals_the_enumeration(case):
    projection, shape, _ = case
    expected, stored = np.zeros(shape, int), np.zeros(shape, int)
    for _, source, weight in synapses(projection, shape):
        stored[source] += 1
        expected[source] += weight != 0
    np.testing.assert_array_equal(fan_out(projection, shape), expected)
    np.testing.assert_array_equal(fan_out(projection, shape, stored=True), stored)
    assert connections(projection, shape) == stored.sum()


@given(convolutions(), st.integers(0, 4), st.integers(1, 3))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_counts_of_random_graphs_equal_brute_force(case, late, timesteps):
    conv, shape, rng = case
    hidden = conv.output_shape(shape)
    size, pixels = int(np.prod(hidden)), int(np.prod(shape))
    graph = QuantizedGraph(
        input=QuantizedInput(name="input", shape=shape),
        populations=(
            Population(name="conv", shape=hidden, vth=5, bias=np.zeros(hidden, int)),
            Population(name="out", shape=(3,), bias=np.zeros(3, int)),
        ),
        projections=(
            conv,
            DenseProjection(name="read", source="conv", target="out", weight=sparse_weights(rng, (3, size))),
            DenseProjection(
                name="skip", source="input", target="out", weight=sparse_weights(rng, (3, pixels)), delay=late
            ),
            DenseProjection(name="loop", source="out", target="out", weight=sparse_weights(rng, (3, 3)), delay=1),
        ),
        timesteps=timesteps,
    )
    images = rng.integers(0, 3, (2, *shape))
    record = SpikeRecord(
        spikes={p.name: rng.random((timesteps, 2, *p.shape)) < 0.4 for p in graph.populations},
        potential=np.zeros((2, 3), np.int64),
    )
    assert_counted(graph, record, images)


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(random_graphs.graphs(timesteps=st.integers(1, 6), batch=st.integers(1, 3), width=1))
def test_counts_of_any_graph_equal_brute_force(drawn):
    """Delays of each synapse, loops, frames over time, signed and wide payloads, images that are biases."""
    graph, images = drawn
    assert_counted(graph, run_reference(graph, images), images)


def test_counts_of_a_negative_pixel_a_frame_and_a_delay_of_each_synapse():
    graph = QuantizedGraph(
        input=QuantizedInput(name="input", shape=(3,), precision=Precision(bits=8, signed=True)),
        populations=(Population(name="out", shape=(2,), bias=np.zeros(2, int), vth=0),),
        projections=(
            DenseProjection(
                name="p",
                source="input",
                target="out",
                weight=np.array([[1, 0, -1], [1, 1, 1]]),
                delay=np.array([[0, 1, 1], [2, 3, 0]]),
            ),
        ),
        timesteps=3,
    )
    frames = np.array([[-1, 0, 0], [0, 7, 0], [0, 0, 5]]).reshape(3, 1, 3)
    record = run_reference(graph, frames)
    counted = count_batch(graph, wire_up(graph), record, frames)["out"]
    # -1: to out 0 at once and to out 1 two steps later; 7: a zero weight, a weight after the end; 5: out 1
    assert counted.input_synops.tolist() == [1, 0, 2]
    assert counted.dense_synops.tolist() == [1, 0, 3]
    assert counted.spike_synops.tolist() == [0, 0, 0]
    assert counted.active.tolist() == [1, 0, 1]  # the second neuron, reached twice in the last timestep


def test_an_image_that_is_a_bias_sends_no_message():
    graph = QuantizedGraph(
        input=QuantizedInput(name="image", shape=(2,), precision=Precision(bits=16, signed=True), biases="input"),
        populations=(
            Population(name="input", shape=(2,), bias=np.zeros(2, int), vth=3),
            Population(name="out", shape=(1,), bias=np.zeros(1, int)),
        ),
        projections=(DenseProjection(name="p", source="input", target="out", weight=np.array([[1, 2]])),),
        timesteps=2,
    )
    images = np.array([[9, -9], [2, 5]])
    counted = count_batch(graph, wire_up(graph), run_reference(graph, images), images)
    assert counted["input"].spikes.tolist() == counted["input"].active.tolist() == [2, 3]
    assert counted["out"].spike_synops.tolist() == [2, 3]
    assert all(not counts.input_synops.any() for counts in counted.values())


@pytest.mark.parametrize(("delay", "expected"), [(0, [2, 2, 2]), (1, [0, 2, 2]), (2, [0, 0, 2]), (3, [0, 0, 0])])
def test_a_message_that_arrives_after_the_last_timestep_meets_no_weight(delay, expected):
    graph = QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1, 1, 2)),
        populations=(Population(name="out", shape=(2,), bias=np.zeros(2, int)),),
        projections=(
            DenseProjection(name="p", source="input", target="out", weight=np.array([[1, 0], [2, 3]]), delay=delay),
        ),
        timesteps=3,
    )
    record = SpikeRecord(spikes={"out": np.zeros((3, 1, 2), bool)}, potential=np.zeros((1, 2), np.int64))
    counted = count_batch(graph, wire_up(graph), record, np.array([[[[9, 0]]]]))
    assert counted["out"].input_synops.tolist() == expected
    assert counted["out"].active.tolist() == expected  # both neurons hear the one lit pixel


def test_padding_is_never_counted():
    projection = ConvProjection(name="p", source="a", target="b", weight=np.ones((1, 1, 3, 3), int), padding=(1, 1))
    np.testing.assert_array_equal(fan_out(projection, (1, 3, 3))[0], [[4, 6, 4], [6, 9, 6], [4, 6, 4]])
    assert connections(projection, (1, 3, 3)) == 49  # not 81
