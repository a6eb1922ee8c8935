"""Activities: the sums of every neuron and a probe of whole samples equal the reference's record; their file."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import Traits, graphs, random_graph
from slow_cost import synapses_with_delays

from stars_deploy.activity import PROBE_SAMPLES, Activity, load_activity, measure_activity, save_activity
from stars_deploy.engines import fast_engine, recording_engine
from stars_deploy.errors import ArtifactError, ConfigError, DataError
from stars_deploy.simulate import run_evaluation
from stars_deploy.targets.reference import run_reference

FEW = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


def by_sample(graph, images):
    """Return images as evaluation sets have them: samples first."""
    return images.swapaxes(0, 1) if graph.input.over_time(images) else images


def slow_activity(graph, images):
    """Return {name: sent}, {name: active}, (T, B, neurons) each, from the reference's record, synapse by synapse."""
    record = run_reference(graph, images)
    over_time = graph.input.over_time(images)
    steps, samples = graph.timesteps, images.shape[1 if over_time else 0]
    frames = images if over_time else np.stack([images] * steps)
    shown = (frames != 0).reshape(steps, samples, -1)
    sent = {graph.input.name: shown & (not graph.input.biases)}
    sent.update({name: spikes.reshape(steps, samples, -1) for name, spikes in record.spikes.items()})
    active = {name: sent[name].copy() for name in record.spikes}
    for projection in graph.projections:
        for source, target, weight, delay in synapses_with_delays(graph, projection):
            for step in range(delay, steps):
                if weight:
                    active[projection.target][step, :, target] |= sent[projection.source][step - delay, :, source]
    return sent, active


def assert_same_activity(expected, got):
    one, other = expected.evaluation, got.evaluation
    assert replace(one, predictions=None, sums=None) == replace(other, predictions=None, sums=None)
    np.testing.assert_array_equal(one.predictions, other.predictions)
    np.testing.assert_array_equal(expected.probe.samples, got.probe.samples)
    for mine, theirs in ((expected.sums, got.sums), (expected.probe, got.probe)):
        for kind in ("sent", "active"):
            assert list(getattr(mine, kind)) == list(getattr(theirs, kind))
            for name, array in getattr(mine, kind).items():
                assert getattr(theirs, kind)[name].dtype == array.dtype
                np.testing.assert_array_equal(getattr(theirs, kind)[name], array, err_msg=name)


def assert_measured(graph, images, activity):
    """Compare an activity with what the reference did."""
    sent, active = slow_activity(graph, images)
    for mine, sums, probe in ((sent, activity.sums.sent, activity.probe.sent),
                              (active, activity.sums.active, activity.probe.active)):  # fmt: skip
        assert set(mine) == set(sums) == set(probe)
        for name, flags in mine.items():
            shape = graph.shape_of(name)
            assert sums[name].shape == (graph.timesteps, *shape)
            assert np.issubdtype(sums[name].dtype, np.integer) and probe[name].dtype == bool
            np.testing.assert_array_equal(sums[name].reshape(graph.timesteps, -1), flags.sum(axis=1), err_msg=name)
            np.testing.assert_array_equal(probe[name], flags[:, activity.probe.samples], err_msg=name)


@FEW
@given(graphs(timesteps=st.integers(1, 6), batch=st.integers(1, 4), width=1), st.sampled_from([1, 2]))
def test_the_activity_of_any_network_is_that_of_the_reference(drawn, threads):
    """Frames over time, images that set biases, delays, loops and resets; both kinds of engines; one thread and two."""
    graph, images = drawn
    fast = measure_activity(graph, by_sample(graph, images), engine=fast_engine(threads))
    assert_measured(graph, images, fast)
    slow = measure_activity(graph, by_sample(graph, images), engine=recording_engine(run_reference))
    assert_same_activity(slow, fast)


@FEW
@given(graphs(timesteps=st.integers(2, 12), batch=st.integers(1, 5), width=1), st.integers(1, 2), st.floats(1, 3))
def test_little_memory_slices_samples_and_time_and_changes_nothing(drawn, threads, roomier):
    graph, images = drawn
    expected = measure_activity(graph, by_sample(graph, images), engine=fast_engine(1))
    memory = 64
    while True:
        engine = fast_engine(threads, memory=int(memory * roomier))
        try:
            got = measure_activity(graph, by_sample(graph, images), engine=engine)
            break
        except ConfigError as error:
            assert error.where == "memory"
            memory = int(1.2 * memory) + 1
    assert_same_activity(expected, got)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_small_batches_change_nothing(batch):
    graph, images = random_graph(Traits(batch=5, populations=3, loops=1, delays="array"), 9)
    pixels = 32 * images[0].size
    whole = measure_activity(graph, images)
    assert_same_activity(whole, measure_activity(graph, images, image_memory=batch * pixels))


def test_counts_are_those_of_an_evaluation():
    graph, images = random_graph(Traits(batch=6, populations=3), 21)
    labels = run_reference(graph, images).classes()
    activity = measure_activity(graph, images, labels)
    plain = run_evaluation(graph, images, labels)
    assert activity.evaluation.accuracy == 1.0
    assert activity.evaluation.layers == plain.layers
    assert activity.evaluation.totals() == plain.totals()
    for layer in plain.layers:
        assert [n / 6 for n in activity.sums.active[layer.name].reshape(4, -1).sum(axis=1)] == pytest.approx(
            layer.active_per_step
        )
    assert plain.sums is None
    with pytest.raises(ArtifactError, match="per_neuron"):
        _ = Activity(evaluation=plain, probe=activity.probe).sums


def test_the_probe_is_spread_evenly():
    graph, images = random_graph(Traits(batch=9, populations=2), 3)
    probe = measure_activity(graph, images, probe_samples=5).probe
    assert probe.samples.tolist() == [0, 2, 4, 6, 8]
    assert measure_activity(graph, images, probe_samples=1).probe.samples.tolist() == [0]
    assert measure_activity(graph, images, probe_samples=99).probe.samples.tolist() == list(range(9))
    assert PROBE_SAMPLES == 128


def test_the_probe_takes_a_quarter_of_the_memory_at_most():
    graph, images = random_graph(Traits(batch=9, populations=2), 3)
    neurons = int(np.prod(graph.input.shape)) + 2 * sum(population.size for population in graph.populations)
    for samples, memory in ((3, 4 * 3 * 4 * neurons), (2, 4 * 3 * 4 * neurons - 1), (1, 1)):
        assert len(measure_activity(graph, images, memory=memory).probe.samples) == samples


@pytest.mark.parametrize("frames", [False, True])
def test_no_engine_is_given_more_samples_than_it_takes(frames):
    graph, images = random_graph(Traits(batch=7, populations=2, frames=frames), 3)
    given_samples = []

    def execute(network, batch):
        given_samples.append(batch.shape[1 if frames else 0])
        return run_reference(network, batch)

    engine = replace(recording_engine(execute), samples=3)
    activity = measure_activity(graph, by_sample(graph, images), engine=engine)
    assert given_samples == [3, 3, 1] * 2
    assert_same_activity(measure_activity(graph, by_sample(graph, images)), activity)


def test_what_an_evaluation_refuses_is_refused():
    graph, images = random_graph(Traits(batch=3, populations=2), 3)
    with pytest.raises(DataError, match="no images"):
        measure_activity(graph, images[:0])
    with pytest.raises(DataError, match="labels"):
        measure_activity(graph, images, [0])


# ---------------------------------------------------------------- its file


@pytest.fixture(scope="module", params=["plain", "frames", "biased"])
def measured(request):
    kept = Traits(
        batch=5, populations=3, timesteps=5, frames=request.param == "frames", biased_by_image=request.param == "biased"
    )
    graph, images = random_graph(kept, 17)
    return measure_activity(graph, by_sample(graph, images), np.zeros(5, int), probe_samples=3)


def test_a_file_holds_all_of_an_activity(measured, tmp_path):
    save_activity(tmp_path / "activity.npz", measured)
    assert [file.name for file in tmp_path.iterdir()] == ["activity.npz"]
    assert_same_activity(measured, load_activity(tmp_path / "activity.npz"))
    unlabelled = replace(measured, evaluation=replace(measured.evaluation, accuracy=None))
    save_activity(tmp_path / "activity.npz", unlabelled)
    assert load_activity(tmp_path / "activity.npz").evaluation.accuracy is None


def test_nothing_else_is_taken_for_an_activity(measured, tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        load_activity(tmp_path / "none.npz")
    path = tmp_path / "activity.npz"
    save_activity(path, measured)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"not a zip", whole[:-40] + b"\0" * 40):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="not readable"):
            load_activity(path)
    np.savez(path, head=np.zeros(3))
    with pytest.raises(ArtifactError, match="not readable"):
        load_activity(path)
    np.savez(path, head=np.array([{"schema": 1}], dtype=object))
    with pytest.raises(ArtifactError, match="not readable"):
        load_activity(path)


def test_each_part_must_be_there(measured, tmp_path):
    path, other = tmp_path / "activity.npz", tmp_path / "other.npz"
    save_activity(path, measured)
    with np.load(path) as archive:
        arrays = dict(archive)
    for missing in arrays:
        np.savez(other, **{name: array for name, array in arrays.items() if name != missing})
        with pytest.raises(ArtifactError, match="not readable"):
            load_activity(other)


def test_another_schema_is_refused(measured, tmp_path):
    path = tmp_path / "activity.npz"
    save_activity(path, measured)
    with np.load(path) as archive:
        arrays = dict(archive)
    head = json.loads(arrays["head"].tobytes())
    arrays["head"] = np.frombuffer(json.dumps({**head, "schema": 99}).encode(), np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(ArtifactError, match="schema 99"):
        load_activity(path)
    assert zipfile.is_zipfile(path)
