"""The chip's time: how far layers lag, and what a chip does in each of its timesteps."""

from dataclasses import replace

import numpy as np
import pytest
from chips import small_chip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import graphs
from slow_cost import slow_lags

from stars_deploy.activity import measure_activity
from stars_deploy.engines import fast_engine
from stars_deploy.hardware.mapping import map_network
from stars_deploy.quantized import DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.schedule import Clock, find_lags
from stars_deploy.traffic import Counter


def chain(*names, delays=None, extra=(), timesteps=2):
    """One neuron a population, each driven by the one before; `extra` has (source, target, delay) of others."""
    delays = delays or {}
    pairs = [(a, b, delays.get((a, b), 0)) for a, b in zip(("input", *names[:-1]), names, strict=True)]
    return QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1,)),
        populations=tuple(Population(name=name, shape=(1,), bias=np.zeros(1, int)) for name in names),
        projections=tuple(
            DenseProjection(name=f"{a}-{b}.{delay}", source=a, target=b, weight=np.ones((1, 1), int), delay=delay)
            for a, b, delay in (*pairs, *extra)
        ),
        timesteps=timesteps,
    )


@pytest.mark.parametrize(
    ("graph", "lags"),
    [
        (chain("a"), [0, 1]),
        (chain("a", "b", "c"), [0, 1, 2, 3]),
        (chain("a", "b", "c", delays={("a", "b"): 1}), [0, 1, 1, 2]),  # the delay is the timestep that it takes
        (chain("a", "b", "c", delays={("a", "b"): 5}), [0, 1, 1, 2]),
        (chain("a", "b", delays={("input", "a"): 1}), [0, 1, 2]),  # nothing is updated before it was written
        (chain("a", "b", "c", extra=[("a", "c", 0)]), [0, 1, 2, 3]),
        (chain("a", "b", "c", extra=[("input", "c", 3), ("c", "a", 1)]), [0, 1, 2, 3]),
        (chain("a", "b", "c", delays={("b", "c"): 2}, extra=[("a", "c", 0)]), [0, 1, 2, 2]),
    ],
)
def test_lags_are_the_longest_way_without_delays(graph, lags):
    assert list(find_lags(graph).values()) == lags
    assert find_lags(graph) == slow_lags(graph)


def test_delays_of_each_synapse_lag_if_one_of_them_has_none():
    graph = chain("a", "b")
    for delay, lag in (([[0, 2]], 2), ([[1, 2]], 1)):
        wide = replace(
            graph,
            populations=(Population(name="a", shape=(2,), bias=np.zeros(2, int)), graph.populations[1]),
            projections=(
                DenseProjection(name="p", source="input", target="a", weight=np.ones((2, 1), int)),
                DenseProjection(name="q", source="a", target="b", weight=np.ones((1, 2), int), delay=np.array(delay)),
            ),
        )
        assert find_lags(wide)["b"] == lag


def clock_of(graph):
    return Clock(graph, Counter(graph, map_network(graph, small_chip(1))))


def traffic_of(clock, **sent):
    """Traffic of one sample in which populations send at the timesteps given; whoever sends is active as well."""
    steps = clock.graph.timesteps
    names = [clock.graph.input.name, *(population.name for population in clock.graph.populations)]
    flags = {name: np.isin(np.arange(steps), sent.get(name, [])).reshape(steps, 1, 1) for name in names}
    return clock.counter.count(flags, {name: flags[name] for name in names[1:]})


def test_the_first_inference_by_hand():
    """input fires at t = 0 and 2, a at 0 and 1, b at 2, of 3: layers lag by 1 and 2."""
    clock = clock_of(chain("a", "b", timesteps=3))
    alone = clock.first_inference(traffic_of(clock, input=[0, 2], a=[0, 1], b=[2]))
    assert clock.depth == 2
    assert alone.spikes[:, 0].tolist() == [[0, 0], [1, 0], [1, 0], [0, 0], [0, 1]]
    assert alone.active.tolist() == alone.spikes.tolist()
    assert alone.synops_dense[:, 0].tolist() == [[1, 0], [0, 1], [1, 1], [0, 0], [0, 0]]  # when the source fires
    assert alone.messages_in[:, 0].tolist() == [[1, 0], [0, 1], [1, 1], [0, 0], [0, 0]]
    assert alone.messages_out[:, 0].tolist() == [[0, 0], [1, 0], [1, 0], [0, 0], [0, 0]]
    assert not alone.synops_conv.any()


def test_a_busy_chip_works_on_two_inferences_at_once():
    clock = clock_of(chain("a", "b", timesteps=3))
    busy = clock.steady(traffic_of(clock, input=[0, 2], a=[0, 1], b=[2]))
    assert busy.spikes[:, 0].tolist() == [[0, 0], [1, 1], [1, 0]]  # b's t = 2 is the chip's 4, and 4 mod 3 = 1
    assert busy.synops_dense[:, 0].tolist() == [[1, 0], [0, 1], [1, 1]]
    assert busy.messages_out[:, 0].tolist() == [[0, 0], [1, 0], [1, 0]]


def test_the_first_inference_ends_with_the_output():
    """A population beside the way to the output may be deeper, but nobody waits for it."""
    graph = QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1,)),
        populations=tuple(Population(name=name, shape=(1,), bias=np.zeros(1, int)) for name in ("a", "b", "c", "out")),
        projections=tuple(
            DenseProjection(name=f"{a}-{b}", source=a, target=b, weight=np.ones((1, 1), int))
            for a, b in (("input", "a"), ("a", "b"), ("b", "c"), ("a", "out"))
        ),
        timesteps=4,
    )
    clock = clock_of(graph)
    assert clock.depth == 2
    alone = clock.first_inference(traffic_of(clock, input=[0], a=[0], b=[0, 3], c=[0, 1, 2, 3], out=[3]))
    assert alone.spikes.shape[0] == 4 + 2
    assert alone.spikes[:, 0].tolist() == [
        [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 1, 1, 1]
    ]  # fmt: skip


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    graphs(timesteps=st.integers(1, 6), batch=st.integers(1, 3), width=1),
    st.sampled_from([small_chip(neurons) for neurons in (1, 4, 4095)]),
)
def test_a_busy_chip_does_all_that_the_graph_does(drawn, profile):
    graph, images = drawn
    by_sample = images.swapaxes(0, 1) if graph.input.over_time(images) else images
    probe = measure_activity(graph, by_sample, engine=fast_engine(1)).probe
    counter = Counter(graph, map_network(graph, profile))
    clock, traffic = Clock(graph, counter), counter.count(probe.sent, probe.active)
    busy = clock.steady(traffic)
    for name in ("synops_conv", "synops_dense", "messages_in", "active", "spikes", "messages_out"):
        np.testing.assert_array_equal(getattr(busy, name).sum(axis=0), getattr(traffic, name).sum(axis=0), err_msg=name)
    loads = sum(one.on_links.sum(axis=2) for one in traffic.messages.values())
    np.testing.assert_array_equal(busy.on_links.sum(axis=(0, 2)), loads.sum(axis=0))
    alone = clock.first_inference(traffic)
    assert alone.spikes.shape == (graph.timesteps + clock.depth, *traffic.spikes.shape[1:])
    last = [core.index for core in counter.mapping.cores if core.layer == graph.output.name]
    np.testing.assert_array_equal(alone.spikes[clock.depth :, :, last], traffic.spikes[:, :, last])
    assert not alone.spikes[: clock.depth][:, :, last].any()
