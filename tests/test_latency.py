"""Latency: by hand on small chips, and against a model in plain loops on any network."""

import numpy as np
import pytest
from chips import barrier, chip, small_chip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import Traits, graphs, random_graph
from slow_cost import SlowCounts, slow_step_times

from stars_deploy import latency
from stars_deploy.activity import measure_activity
from stars_deploy.engines import fast_engine
from stars_deploy.errors import ConfigError
from stars_deploy.hardware.mapping import map_network
from stars_deploy.latency import CAVEAT, NOT_MODELLED, estimate_latency
from stars_deploy.quantized import ConvProjection, DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.schedule import find_lags
from stars_deploy.traffic import Counter

#: Times [ns] that differ in every digit, so that no term passes for another; ends as well.
TIMES = {
    "time.synapse_conv": (1.0, 3.0, 4.0),
    "time.synapse_dense": (0.5, 5.0, 5.5),
    "time.neuron_active": (6.0, 11.0, 13.0),
    "time.neuron_inactive": (2.0, 7.0, 8.0),
    "time.spike": (0.25, 1.25, 9.0),
    "time.message_out": (0.125, 2.125, 3.0),
    "time.message_in": (0.0625, 4.0625, 6.0),
    "time.link": (0.5, 6.5, 7.5),
    "time.barrier": barrier("linear", tiles_1=10.0, tiles_6=60.0),
}
EXACT = {"model_error.latency": (1.0, 1.0, 1.0)}


def priced_chip(neurons, phases, **changes):
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return small_chip(neurons, **{**TIMES, **EXACT, "phases": phases, **named})


def estimated(graph, images, profile):
    by_sample = images.swapaxes(0, 1) if graph.input.over_time(images) else images
    activity = measure_activity(graph, by_sample, engine=fast_engine(1))
    counter = Counter(graph, map_network(graph, profile))
    return estimate_latency(graph, activity, counter), activity, counter


def slow_counts(graph, activity, counter):
    probe = activity.probe
    return [
        SlowCounts(
            graph, counter.mapping,
            {name: flags[:, sample] for name, flags in probe.sent.items()},
            {name: flags[:, sample] for name, flags in probe.active.items()},
        )
        for sample in range(len(probe.samples))
    ]  # fmt: skip


def by_corner(interval):
    return [interval.nominal, interval.low, interval.high]


PHASES = ("sequential", "overlapped")
PRICED = [priced_chip(neurons, phases) for neurons in (1, 4, 4095) for phases in PHASES]


@settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
@given(graphs(timesteps=st.integers(1, 5), batch=st.integers(1, 3), width=1), st.sampled_from(PRICED))
def test_the_latency_of_any_network_equals_slow_loops(drawn, profile):
    """Skips and delays, several cores and chips, images over time: sample by sample, step by step, core by core."""
    graph, images = drawn
    found, activity, counter = estimated(graph, images, profile)
    slow, mapping = slow_counts(graph, activity, counter), counter.mapping

    def times(corner, phases=profile.phases, *, wrap=True):
        return np.array([slow_step_times(graph, mapping, one, corner=corner, phases=phases, wrap=wrap) for one in slow])

    corners = ("nominal", "low", "high")
    steps = times("nominal")
    assert by_corner(found.per_inference) == pytest.approx([times(c).sum(axis=1).mean() for c in corners])
    assert by_corner(found.first_output) == pytest.approx([times(c, wrap=False).sum(axis=1).mean() for c in corners])
    (other,) = {*PHASES} - {profile.phases}
    assert found.other_phases_s == pytest.approx(times("nominal", other).sum(axis=1).mean())
    assert [step.seconds for step in found.steps] == pytest.approx(steps.mean(axis=0))
    images_s = steps.sum(axis=1)
    spread = (found.spread.least, found.spread.median, found.spread.p95, found.spread.most)
    assert spread == pytest.approx(tuple(np.quantile(images_s, [0, 0.5, 0.95, 1])))
    assert found.samples == len(slow)
    assert found.binding.seconds == max(step.seconds for step in found.steps)


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    graphs(timesteps=st.integers(1, 5), batch=st.integers(1, 3), width=1),
    st.sampled_from([small_chip(n, base=base) for n in (2, 4095) for base in ("loihi1", "loihi2", "loihi1-sanafe")]),
)
def test_intervals_are_ordered(drawn, profile):
    found, _, counter = estimated(*drawn, profile)
    for interval in (found.per_inference, found.first_output, found.throughput):
        assert 0 < interval.low <= interval.nominal <= interval.high
    error = profile.model_error.latency
    for interval in (found.per_inference, found.first_output):
        assert interval.low <= error.low * interval.nominal and interval.high >= error.high * interval.nominal
    if found.depth == max(find_lags(drawn[0]).values()):  # else what is beside the way to the output is left out
        assert found.first_output.nominal >= found.per_inference.nominal * (1 - 1e-12)
    assert found.throughput.nominal == pytest.approx(1 / found.per_inference.nominal)
    assert found.throughput.low == pytest.approx(1 / found.per_inference.high)
    assert found.throughput.high == pytest.approx(1 / found.per_inference.low)
    spread = found.spread
    assert spread.least <= spread.median <= spread.p95 <= spread.most
    assert spread.least <= found.per_inference.nominal * (1 + 1e-12)
    assert spread.most >= found.per_inference.nominal * (1 - 1e-12)
    layers = [core.layer for core in counter.mapping.cores]
    for step in (*found.steps, found.binding):
        assert step.layer == layers[step.core]
        assert step.term in ("synapses", "neurons", "link", "barrier")


@pytest.mark.parametrize("chunk", [1, 200, 700, 1 << 24])
def test_the_probe_may_be_looked_at_piece_by_piece(chunk, monkeypatch):
    graph, images = random_graph(Traits(batch=7, populations=3, timesteps=4), 8)
    profile = priced_chip(3, "sequential")
    whole, activity, counter = estimated(graph, images, profile)
    monkeypatch.setattr(latency, "_CHUNK", chunk)
    pieces = len(list(latency._chunks(activity, len(counter.mapping.cores))))
    assert pieces == (7 if chunk == 1 else 1 if chunk > 10000 else pieces)
    again = estimate_latency(graph, activity, counter)
    for name in ("per_inference", "first_output", "throughput"):
        assert by_corner(getattr(again, name)) == pytest.approx(by_corner(getattr(whole, name)))
    assert (again.binding.term, again.binding.core) == (whole.binding.term, whole.binding.core)
    assert [(s.term, s.core) for s in again.steps] == [(s.term, s.core) for s in whole.steps]
    assert again.spread.median == pytest.approx(whole.spread.median)
    np.testing.assert_allclose(again.core_seconds, whole.core_seconds)


# ---------------------------------------------------------------- by hand


def star(weights, *, timesteps=1, pixels=None, biases=(0, 0)):
    """One neuron that an image inhibits, before as many as there are weights; they fire where a bias makes them."""
    pixels = pixels or len(weights)
    return QuantizedGraph(
        input=QuantizedInput(name="input", shape=(pixels,)),
        populations=(
            Population(name="a", shape=(1,), bias=np.full(1, biases[0]), vth=1),
            Population(name="b", shape=(len(weights),), bias=np.full(len(weights), biases[1]), vth=1),
        ),
        projections=(
            DenseProjection(name="p", source="input", target="a", weight=-np.ones((1, pixels), int)),
            DenseProjection(name="q", source="a", target="b", weight=np.array(weights).reshape(-1, 1)),
        ),
        timesteps=timesteps,
    )


@pytest.mark.parametrize("phases", PHASES)
def test_a_step_by_hand(phases):
    # Two lit pixels at a, which stays silent; two neurons of b that do nothing. Both cores on one tile: the barrier of
    # one tile, no link.
    graph = star([1, 2])
    found, _, counter = estimated(graph, np.array([[9, 9]]), priced_chip(9, phases))
    a = 2 * (5 + 4.0625) + 11 if phases == "sequential" else 2 * (5 + 4.0625)
    assert counter.mapping.tiles == 1
    assert found.per_inference.nominal == pytest.approx((max(a, 14) + 10) * 1e-9)
    assert (found.binding.term, found.binding.layer, found.binding.core) == ("synapses", "a", 0)
    assert found.phases == phases and found.depth == 2
    # Idle chip: the pixels arrive and a is updated a timestep later; then b, which nothing reaches.
    idle = 14.0
    alone = [18.125 + 7, 11.0, idle] if phases == "sequential" else [18.125, 14.0, 14.0]
    alone = [max(idle, step) + 10 for step in alone]
    assert found.first_output.nominal == pytest.approx(sum(alone) * 1e-9)
    assert found.throughput.nominal == pytest.approx(1 / found.per_inference.nominal)
    assert found.caveat == CAVEAT == "neurocore bound, host and I/O excluded"
    assert found.not_modelled == NOT_MODELLED
    assert any("input/output" in item for item in NOT_MODELLED)
    assert found.core_seconds.shape == (1, 2)
    assert found.core_seconds[0] == pytest.approx([a * 1e-9, 14e-9])


def test_a_step_takes_the_busiest_core_of_each_image_not_of_the_mean_image():
    """Two cores that are busy for different images: the mean image would be too short."""
    graph = QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1, 1, 2)),
        populations=(Population(name="a", shape=(1, 1, 2), bias=np.zeros((1, 1, 2), int)),),
        projections=(ConvProjection(name="p", source="input", target="a", weight=np.ones((1, 1, 1, 1), int)),),
        timesteps=1,
    )
    images = np.array([[[[1, 0]]], [[[0, 1]]]])
    found, _, counter = estimated(graph, images, priced_chip(1, "sequential"))
    assert len(counter.mapping.cores) == 2
    assert found.per_inference.nominal == pytest.approx((3 + 4.0625 + 11 + 10) * 1e-9)
    assert found.core_seconds[0] == pytest.approx([(3 + 4.0625 + 11 + 7) / 2 * 1e-9] * 2)


def test_neurons_bind_where_little_arrives():
    found, _, _ = estimated(star([1] * 5), np.array([[0] * 5]), priced_chip(9, "overlapped"))
    assert (found.binding.term, found.binding.layer) == ("neurons", "b")
    assert found.per_inference.nominal == pytest.approx((5 * 7 + 10) * 1e-9)


def test_a_link_binds_where_messages_meet_on_it():
    # Four pixels to two cores on the second tile of a row: 8 messages over one link.
    graph = QuantizedGraph(
        input=QuantizedInput(name="input", shape=(4,)),
        populations=tuple(Population(name=name, shape=(1,), bias=np.zeros(1, int)) for name in "abcd"),
        projections=tuple(
            DenseProjection(name=name, source="input", target=name, weight=np.ones((1, 4), int)) for name in "cd"
        )
        + tuple(
            DenseProjection(name=name, source="c", target=name, weight=np.ones((1, 1), int), delay=1) for name in "ab"
        ),
        timesteps=1,
    )  # fmt: skip
    found, _, counter = estimated(graph, np.full((1, 4), 7), priced_chip(9, "overlapped"))
    assert counter.mapping.tiles == 2
    assert found.binding.term == "link"
    assert found.binding.layer in "cd"  # of the busiest core
    assert found.per_inference.nominal == pytest.approx((8 * 6.5 + 20) * 1e-9)  # linear between 1 and 6 tiles
    fast, _, _ = estimated(graph, np.full((1, 4), 7), priced_chip(9, "overlapped", time__link=0))
    assert fast.binding.term == "synapses"
    assert fast.per_inference.nominal == pytest.approx((4 * (5 + 4.0625) + 20) * 1e-9)


def test_the_barrier_binds_where_nothing_happens():
    found, _, _ = estimated(star([1]), np.array([[0]]), chip("loihi1", {"limits.weight_bits": 32}))
    assert found.binding.term == "barrier"
    assert found.per_inference.nominal == pytest.approx((5.3 + 113) * 1e-9)


def test_a_constant_moves_the_result_by_its_share():
    graph, images = star([1, 1], timesteps=3), np.array([[1, 1]])
    before, _, _ = estimated(graph, images, priced_chip(9, "sequential"))
    slower = barrier("linear", tiles_1=1010.0, tiles_6=1060.0)
    after, _, _ = estimated(graph, images, priced_chip(9, "sequential", time__barrier=slower))
    assert after.per_inference.nominal - before.per_inference.nominal == pytest.approx(3 * 1000e-9)
    assert after.first_output.nominal - before.first_output.nominal == pytest.approx(5 * 1000e-9)


def test_times_of_zero_are_refused():
    zero = {f"time__{name.removeprefix('time.')}": 0.0 for name in TIMES if name != "time.barrier"}
    profile = priced_chip(9, "sequential", **zero, time__barrier=barrier("step", tiles_1=0.0))
    with pytest.raises(ConfigError, match="0 s"):
        estimated(star([1]), np.array([[1]]), profile)
