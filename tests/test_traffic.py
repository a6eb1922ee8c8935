"""What cores do, against plain loops over synapses and messages, and against the counts of layers."""

import numpy as np
import pytest
from chips import small_chip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import graphs
from slow_cost import SlowCounts

from stars_deploy.activity import measure_activity
from stars_deploy.engines import fast_engine
from stars_deploy.hardware.mapping import map_network
from stars_deploy.quantized import DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.traffic import Counter, count_sums

CHIPS = [small_chip(neurons) for neurons in (1, 3, 8, 4095)]
SOME = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


def drawn_graphs():
    return graphs(timesteps=st.integers(1, 6), batch=st.integers(1, 4), width=1)


def measured(drawn, profile):
    """Return the graph, its activity and a counter of it on a chip."""
    graph, images = drawn
    by_sample = images.swapaxes(0, 1) if graph.input.over_time(images) else images
    activity = measure_activity(graph, by_sample, engine=fast_engine(1))
    return graph, activity, Counter(graph, map_network(graph, profile))


def as_array(counts, steps, cores):
    """Return counts of (timestep, core) as an array."""
    array = np.zeros((steps, cores), int)
    for (step, core), count in counts.items():
        array[step, core] = count
    return array


@SOME
@given(drawn_graphs(), st.sampled_from(CHIPS))
def test_each_sample_by_slow_loops(drawn, profile):
    graph, activity, counter = measured(drawn, profile)
    probe, steps, cores = activity.probe, graph.timesteps, len(counter.mapping.cores)
    traffic = counter.count(probe.sent, probe.active)
    for sample in range(len(probe.samples)):
        sent, active = ({n: flags[:, sample] for n, flags in kind.items()} for kind in (probe.sent, probe.active))
        slow = SlowCounts(graph, counter.mapping, sent, active)
        for name, counts in (
            ("synops_conv", slow.conv),
            ("synops_dense", slow.dense),
            ("stored_synops", slow.stored),
            ("active", slow.active),
            ("spikes", slow.spikes),
        ):
            expected = as_array(counts, steps, cores)
            np.testing.assert_array_equal(getattr(traffic, name)[:, sample], expected, err_msg=name)
        assert list(traffic.messages) == [graph.input.name, *(p.name for p in graph.populations)]
        for source, messages in traffic.messages.items():
            links = counter.links(source)
            for step in range(steps):
                assert messages.sent[step, sample] == slow.messages[source, step]
                assert messages.east_west[step, sample] == slow.east_west[source, step]
                assert messages.north_south[step, sample] == slow.north_south[source, step]
                loads = {link: int(n) for link, n in zip(links, messages.on_links[step, sample], strict=True) if n}
                assert loads == {k[2]: n for k, n in slow.links.items() if k[:2] == (source, step)}
                for core in range(cores):
                    assert messages.received_by[step, sample, core] == slow.received[source, step, core]
                    assert messages.sent_by[step, sample, core] == slow.sent_by[source, step, core]


@SOME
@given(drawn_graphs(), st.sampled_from(CHIPS))
def test_cores_add_up_to_layers(drawn, profile):
    graph, activity, counter = measured(drawn, profile)
    traffic, evaluation = count_sums(counter, activity), activity.evaluation
    for layer in evaluation.layers:
        own = [core.index for core in counter.mapping.cores if core.layer == layer.name]
        for counts, means in (
            (traffic.synops, layer.synops_per_step),
            (traffic.stored_synops, layer.dense_synops_per_step),
            (traffic.active, layer.active_per_step),
            (traffic.spikes, layer.spikes_per_step),
        ):
            assert counts.shape == (graph.timesteps, 1, len(counter.mapping.cores))
            total = counts[:, 0, own].sum(axis=1)
            assert total.tolist() == [round(mean * evaluation.samples) for mean in means]
        assert traffic.neurons[own].sum() == layer.neurons
    pairs = {"synops": traffic.synops, "dense_synops": traffic.stored_synops, "active_updates": traffic.active,
             "spikes": traffic.spikes}  # fmt: skip
    for name, counts in pairs.items():
        assert counts.sum() / evaluation.samples == pytest.approx(evaluation.totals()[name])


@SOME
@given(drawn_graphs(), st.sampled_from(CHIPS))
def test_messages_add_up(drawn, profile):
    graph, activity, counter = measured(drawn, profile)
    traffic = count_sums(counter, activity)
    for source, messages in traffic.messages.items():
        np.testing.assert_array_equal(messages.on_links.sum(axis=2), messages.east_west + messages.north_south)
        np.testing.assert_array_equal(messages.received_by.sum(axis=2), messages.sent)
        from_outside = source == graph.input.name
        np.testing.assert_array_equal(messages.sent_by.sum(axis=2), messages.sent * (not from_outside))
    np.testing.assert_array_equal(traffic.messages_in, sum(one.received_by for one in traffic.messages.values()))
    np.testing.assert_array_equal(traffic.messages_out, sum(one.sent_by for one in traffic.messages.values()))


@SOME
@given(drawn_graphs(), st.sampled_from(CHIPS))
def test_sums_over_samples_are_the_traffic_of_the_sums(drawn, profile):
    """Counting is linear: samples one by one, or their sums at once."""
    _, activity, counter = measured(drawn, profile)
    assert len(activity.probe.samples) == activity.evaluation.samples
    together = count_sums(counter, activity)
    apart = counter.count(activity.probe.sent, activity.probe.active)
    for name in ("synops_conv", "synops_dense", "stored_synops", "active", "spikes", "messages_in", "messages_out"):
        np.testing.assert_array_equal(getattr(apart, name).sum(axis=1), getattr(together, name)[:, 0], err_msg=name)
    for source, messages in together.messages.items():
        np.testing.assert_array_equal(apart.messages[source].on_links.sum(axis=1), messages.on_links[:, 0])


def test_messages_and_hops_by_hand():
    """Two senders on two tiles, two listeners: a message for each core that is reached, not for each synapse."""
    graph = QuantizedGraph(
        input=QuantizedInput(name="input", shape=(2,)),
        populations=(
            Population(name="a", shape=(4,), bias=np.zeros(4, int)),
            Population(name="b", shape=(2,), bias=np.zeros(2, int)),
        ),
        projections=(
            DenseProjection(name="p", source="input", target="a", weight=np.array([[1, 0], [1, 0], [0, 0], [0, 1]])),
            DenseProjection(name="q", source="a", target="b", weight=np.array([[1, 1, 0, 0], [1, 0, 0, 2]])),
        ),
        timesteps=1,
    )
    profile = small_chip(1, mesh__cores_per_tile=1, mesh__columns=3, mesh__rows=4)
    counter = Counter(graph, map_network(graph, profile))
    # a0 at (0, 0), a1 at (1, 0), a2 at (2, 0); back: a3 at (2, 1), b0 at (1, 1), b1 at (0, 1).
    sent = {"input": np.array([[[1, 1]]]), "a": np.array([[[1, 1, 1, 1]]]), "b": np.array([[[0, 1]]])}
    active = {"a": np.array([[[1, 1, 0, 1]]]), "b": np.array([[[1, 1]]])}
    traffic = counter.count(sent, active)
    assert traffic.synops_dense[0, 0].tolist() == [1, 1, 0, 1, 2, 2]
    assert traffic.stored_synops[0, 0].tolist() == [2, 2, 2, 2, 4, 4]
    assert not traffic.synops_conv.any()
    assert traffic.messages_in[0, 0].tolist() == [1, 1, 0, 1, 2, 2]
    assert traffic.messages_out[0, 0].tolist() == [2, 1, 0, 1, 0, 0]  # b1 fires, and nobody listens
    entering, inner, last = traffic.messages.values()
    assert (entering.sent, entering.east_west, entering.north_south) == (3, 0 + 1 + 2, 0 + 0 + 1)
    # a0 to b0 (1, 1) and b1 (0, 1); a1 to b0 (0, 1); a3 to b1 (2, 0).
    assert (inner.sent, inner.east_west, inner.north_south) == (4, 1 + 0 + 0 + 2, 1 + 1 + 1 + 0)
    loads = dict(zip(counter.links("a"), inner.on_links[0, 0].tolist(), strict=True))
    assert loads == {
        ((0, 0), (1, 0)): 1, ((1, 0), (1, 1)): 2, ((0, 0), (0, 1)): 1, ((2, 1), (1, 1)): 1, ((1, 1), (0, 1)): 1,
    }  # fmt: skip
    assert last.sent == 0 and counter.links("b") == ()
