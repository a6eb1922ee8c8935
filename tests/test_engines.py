"""Engines: what counts while it runs and what records every spike give the same measurements and traces."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import Traits, graphs, random_graph

from stars_deploy.engines import fast_engine, recording_engine
from stars_deploy.errors import TargetError
from stars_deploy.synops import merge_sums
from stars_deploy.targets.base import SpikeRecord
from stars_deploy.targets.reference import run_reference


def assert_same_sums(one, other):
    for kind in ("sent", "active"):
        assert list(getattr(one, kind)) == list(getattr(other, kind))
        for name, array in getattr(one, kind).items():
            np.testing.assert_array_equal(getattr(other, kind)[name], array, err_msg=name)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(graphs(timesteps=st.integers(1, 8), batch=st.integers(1, 5), width=1), st.sampled_from([1, 2]))
def test_both_engines_measure_and_trace_the_same(drawn, threads):
    graph, images = drawn
    fast, slow = fast_engine(threads).prepare(graph), recording_engine(run_reference).prepare(graph)
    for per_neuron in (False, True):
        one, other = fast.measure(images, per_neuron), slow.measure(images, per_neuron)
        np.testing.assert_array_equal(one.classes, other.classes)
        assert list(one.counts) == list(other.counts)
        for name, counts in one.counts.items():
            for kind in ("spikes", "spike_synops", "input_synops", "dense_synops", "active"):
                assert getattr(counts, kind).tolist() == getattr(other.counts[name], kind).tolist(), (name, kind)
        assert (one.sums is None) == (other.sums is None) == (not per_neuron)
    assert_same_sums(one.sums, other.sums)
    mine, theirs = fast.trace(images), slow.trace(images)
    for kind in ("spikes", "active"):
        assert set(getattr(mine, kind)) == set(getattr(theirs, kind)) == {p.name for p in graph.populations}
        for name, flags in getattr(theirs, kind).items():
            assert getattr(mine, kind)[name].dtype == bool
            np.testing.assert_array_equal(getattr(mine, kind)[name], flags, err_msg=name)
    for name, flags in mine.active.items():
        assert (flags | ~mine.spikes[name]).all()  # who fires is active
        np.testing.assert_array_equal(flags.sum(axis=1), one.sums.active[name])


def test_measuring_again_starts_from_nothing():
    graph, images = random_graph(Traits(batch=4, populations=3, loops=1), 6)
    runner = fast_engine(2).prepare(graph)
    first = runner.measure(images, True)
    runner.trace(images)
    again = runner.measure(images, True)
    assert_same_sums(first.sums, again.sums)
    assert all(first.sums.sent[name] is not again.sums.sent[name] for name in first.sums.sent)
    half = runner.measure(images[:2], True), runner.measure(images[2:], True)
    assert_same_sums(first.sums, merge_sums([one.sums for one in half]))
    assert_same_sums(first.sums, again.sums)  # merging changes nothing of what it merges


def test_sums_are_merged_where_all_are_known():
    graph, images = random_graph(Traits(batch=2, populations=2), 6)
    sums = fast_engine(1).prepare(graph).measure(images, True).sums
    assert merge_sums([]) is None
    assert merge_sums([sums, None]) is None
    assert merge_sums([sums]) is sums
    assert_same_sums(merge_sums([sums, sums, sums]), type(sums)(
        sent={name: 3 * counts for name, counts in sums.sent.items()},
        active={name: 3 * counts for name, counts in sums.active.items()},
    ))  # fmt: skip


def test_a_record_must_be_of_the_network():
    graph, images = random_graph(Traits(batch=2, populations=2, timesteps=4), 6)

    def partial(network, batch):
        record = run_reference(network, batch)
        return SpikeRecord(spikes={"p1": record.spikes["p1"]}, potential=record.potential)

    def short(network, batch):
        return run_reference(network.with_timesteps(3), batch)

    for execute, message in ((partial, r"p2.*no spikes"), (short, r"p1.*\(3, 2")):
        for act in ("measure", "trace"):
            runner = recording_engine(execute).prepare(graph)
            with pytest.raises(TargetError, match=message):
                runner.measure(images, False) if act == "measure" else runner.trace(images)
