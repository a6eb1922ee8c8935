import json
from dataclasses import replace

import numpy as np
import pytest

from stars_deploy.engines import fast_engine, recording_engine
from stars_deploy.errors import ConfigError, DataError, QuantizationError, TargetError
from stars_deploy.quantized import ConvProjection, DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.simulate import run_evaluation
from stars_deploy.targets.base import SpikeRecord
from stars_deploy.targets.reference import run_reference


@pytest.fixture(scope="module")
def hand_graph():
    """Two pixels (8 bit) onto two neurons that fire at once when their sum exceeds 10, onto two readouts."""
    return QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1, 1, 2), scale=100.0),
        populations=(
            Population(name="hidden", shape=(2,), decay_v=4096, vth=10, bias=np.zeros(2, int)),
            Population(name="out", shape=(2,), bias=np.array([0, 1])),
        ),
        projections=(
            DenseProjection(name="p", source="input", target="hidden", weight=np.array([[1, 0], [1, 1]])),
            DenseProjection(name="q", source="hidden", target="out", weight=np.array([[4, 5], [0, 3]])),
        ),
        timesteps=2,
    )


@pytest.fixture(scope="module")
def random_graph():
    rng = np.random.default_rng(3)
    conv = ConvProjection(
        name="c", source="input", target="conv", weight=rng.integers(-9, 10, (3, 1, 3, 3)), padding=(1, 1)
    )
    return QuantizedGraph(
        input=QuantizedInput(name="input", shape=(1, 5, 4)),
        populations=(
            Population(name="conv", shape=(3, 5, 4), decay_v=400, vth=900, bias=np.zeros((3, 5, 4), int)),
            Population(name="out", shape=(4,), bias=np.zeros(4, int)),
        ),
        projections=(
            conv,
            DenseProjection(name="r", source="conv", target="out", weight=rng.integers(-9, 10, (4, 60))),
        ),
        timesteps=3,
    )


@pytest.fixture(scope="module")
def seven_images():
    return np.random.default_rng(5).integers(0, 256, (7, 1, 5, 4))


def test_a_network_counted_by_hand(hand_graph):
    # Pixels (20, 0): both neurons fire at both timesteps. Pixels (0, 20): the second neuron only. (0, 0): nothing.
    images = np.array([[[[0.2, 0.0]]], [[[0.0, 0.2]]], [[[0.0, 0.0]]]])
    evaluation = run_evaluation(hand_graph, images, [0, 0, 0], batch_size=2)
    hidden, out = evaluation.layers
    assert hidden.spikes_per_step == (1.0, 1.0)  # 3 spikes of 3 samples at each timestep
    assert hidden.input_synops_per_step == (1.0, 1.0)  # 2 + 1 + 0 non-zero weights met
    assert hidden.dense_synops_per_step == pytest.approx((4 / 3, 4 / 3))
    assert hidden.spike_synops_per_step == (0.0, 0.0)
    assert hidden.active_per_step == (1.0, 1.0)  # 2 + 1 + 0
    assert hidden.firing_rate == 0.5
    # Neuron 0 meets 1 weight, neuron 1 meets 2: 3 + 2 + 0 synops at each timestep.
    assert out.spike_synops_per_step == pytest.approx((5 / 3, 5 / 3))
    assert out.synops_per_step == out.spike_synops_per_step
    assert out.active_per_step == pytest.approx((4 / 3, 4 / 3))
    totals = evaluation.totals()
    assert evaluation.input_messages == pytest.approx(4 / 3)  # one lit pixel x 2 timesteps in two of three samples
    assert totals["input_messages"] == evaluation.input_messages
    assert totals["spikes"] == 2
    assert totals["synops"] == pytest.approx(2 + 10 / 3)
    assert totals["neuron_updates"] == 8
    assert totals["active_updates"] == pytest.approx(2 * (1 + 4 / 3))
    assert totals["inactive_updates"] == pytest.approx(8 - 2 * (1 + 4 / 3))
    assert totals["dense_synops"] == pytest.approx(2 * 4 / 3 + sum(out.dense_synops_per_step))
    assert hidden.totals()["neuron_updates"] == 4 and out.totals()["synops"] == pytest.approx(10 / 3)
    # Readouts gain (9, 3 + 1), (5, 3 + 1) and (0, 1) a timestep: the third answers 1 by its bias.
    assert evaluation.predictions.tolist() == [0, 0, 1]
    assert evaluation.accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_do_not_change_the_result(random_graph, seven_images, batch_size):
    whole = run_evaluation(random_graph, seven_images, batch_size=7)
    split = run_evaluation(random_graph, seven_images, batch_size=batch_size)
    assert split.layers == whole.layers
    assert split.input_messages == whole.input_messages
    np.testing.assert_array_equal(split.predictions, whole.predictions)
    assert whole.totals()["spikes"] > 0
    assert len(set(whole.predictions.tolist())) > 1  # the samples differ, so an order mix-up would show


def test_answers_are_those_of_the_reference(random_graph, seven_images):
    record = run_reference(random_graph, seven_images)
    evaluation = run_evaluation(random_graph, seven_images, record.classes(), batch_size=2)
    assert evaluation.accuracy == 1.0
    assert evaluation.totals()["spikes"] == sum(spikes.sum() for spikes in record.spikes.values()) / 7


def test_float_images_equal_their_integers(random_graph, seven_images):
    floats = run_evaluation(random_graph, seven_images / 255.0, batch_size=3)
    assert floats.layers == run_evaluation(random_graph, seven_images.astype(np.uint8), batch_size=3).layers


def test_without_labels_there_is_no_accuracy(random_graph, seven_images):
    assert run_evaluation(random_graph, seven_images).accuracy is None


def test_timesteps_replace_those_of_the_graph(random_graph, seven_images):
    evaluation = run_evaluation(random_graph, seven_images, timesteps=5)
    expected = run_reference(random_graph.with_timesteps(5), seven_images)
    assert evaluation.timesteps == 5
    assert evaluation.input_messages == 5 * np.count_nonzero(seven_images) / 7
    assert evaluation.layers[0].spikes_per_step == tuple(expected.spikes["conv"].reshape(5, -1).sum(axis=1) / 7)


def test_progress_is_told_after_each_batch(random_graph, seven_images):
    told = []
    run_evaluation(random_graph, seven_images, batch_size=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 7), (6, 7), (7, 7)]


def test_the_recording_engine_counts_what_the_fast_one_counts(random_graph, seven_images):
    fast = run_evaluation(random_graph, seven_images, engine=fast_engine(threads=2))
    slow = run_evaluation(random_graph, seven_images, engine=recording_engine(run_reference))
    assert fast.layers == slow.layers and fast.input_messages == slow.input_messages
    np.testing.assert_array_equal(fast.predictions, slow.predictions)


def test_a_frame_for_each_timestep(random_graph, seven_images):
    still = np.repeat(seven_images[:, None], random_graph.timesteps, axis=1)
    moving = still.copy()
    moving[:, 1:] = 0
    for engine in (fast_engine(), recording_engine(run_reference)):
        same, fading = (run_evaluation(random_graph, frames, engine=engine, batch_size=3) for frames in (still, moving))
        assert same.layers == run_evaluation(random_graph, seven_images).layers
        assert same.input_messages == run_evaluation(random_graph, seven_images).input_messages
        assert fading.input_messages == same.input_messages / random_graph.timesteps
        assert fading.layers[0].input_synops_per_step[1:] == (0.0,) * (random_graph.timesteps - 1)
    with pytest.raises(DataError, match="timesteps"):
        run_evaluation(random_graph, still[:, 1:])


def test_another_engine_can_execute(random_graph, seven_images):
    def silent(graph, images):
        record = run_reference(graph, images)
        return SpikeRecord(
            spikes={name: np.zeros_like(spikes) for name, spikes in record.spikes.items()}, potential=record.potential
        )

    evaluation = run_evaluation(random_graph, seven_images, engine=recording_engine(silent))
    assert evaluation.totals()["spikes"] == 0
    assert evaluation.totals()["spike_synops"] == 0
    assert evaluation.totals()["input_synops"] > 0


def test_an_engine_that_returns_too_little_is_refused(random_graph, seven_images):
    def short(graph, images):
        return run_reference(graph.with_timesteps(2), images)

    def partial(graph, images):
        record = run_reference(graph, images)
        return replace(record, spikes={"conv": record.spikes["conv"]})

    with pytest.raises(TargetError, match=r"conv.*\(2, 7, 3, 5, 4\).*\(3, 7, 3, 5, 4\)"):
        run_evaluation(random_graph, seven_images, engine=recording_engine(short))
    with pytest.raises(TargetError, match=r"out.*no spikes"):
        run_evaluation(random_graph, seven_images, engine=recording_engine(partial))


def test_the_totals_of_layers_are_json_and_add_up(random_graph, seven_images):
    evaluation = run_evaluation(random_graph, seven_images)
    totals = json.loads(json.dumps(evaluation.totals(), allow_nan=False))
    assert {"synops", "dense_synops", "neuron_updates", "active_updates", "inactive_updates", "spikes"} <= set(totals)
    assert [layer.name for layer in evaluation.layers] == ["conv", "out"]
    for name, total in totals.items():
        if name != "input_messages":
            assert sum(layer.totals()[name] for layer in evaluation.layers) == pytest.approx(total)
    assert evaluation.layers[0].neurons == 60


@pytest.mark.parametrize("engine", [fast_engine(1), fast_engine(2), recording_engine(run_reference)])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_every_neuron_is_counted_where_asked_for(random_graph, seven_images, engine, batch_size):
    record = run_reference(random_graph, seven_images)
    counted = run_evaluation(random_graph, seven_images, engine=engine, per_neuron=True, batch_size=batch_size)
    assert list(counted.sums.sent) == ["input", "conv", "out"] and list(counted.sums.active) == ["conv", "out"]
    for name, spikes in record.spikes.items():
        np.testing.assert_array_equal(counted.sums.sent[name], spikes.sum(axis=1))
    np.testing.assert_array_equal(counted.sums.sent["input"], [(seven_images != 0).sum(axis=0)] * 3)
    for layer in counted.layers:
        means = counted.sums.active[layer.name].reshape(3, -1).sum(axis=1) / 7
        assert means.tolist() == pytest.approx(layer.active_per_step)
    plain = run_evaluation(random_graph, seven_images, engine=engine, batch_size=batch_size)
    assert plain.sums is None and plain.layers == counted.layers


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 1, 5, 4)), "no images"),
        (np.zeros((3, 1, 4, 5)), r"shape \(3, 1, 4, 5\)"),
        (np.zeros((1, 5, 4)), r"shape \(1, 5, 4\)"),
        (np.zeros((2, 1, 5, 4), dtype=complex), "dtype complex"),
        ([[1.0], [1.0, 2.0]], "not an array"),
    ],
)
def test_images_that_do_not_fit_are_refused(random_graph, images, message):
    with pytest.raises(DataError, match=message):
        run_evaluation(random_graph, images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0] * 6, r"shape \(6,\)"),
        ([0] * 8, r"shape \(8,\)"),
        ([0.0] * 7, "float64"),
        ([0, 1, 2, 3, 0, 1, 4], "classes from 0 to 4.*0 to 3"),
        ([0, 1, 2, 3, 0, 1, -1], "classes from -1 to 3"),
    ],
)
def test_labels_that_do_not_fit_are_refused(random_graph, seven_images, labels, message):
    with pytest.raises(DataError, match=message):
        run_evaluation(random_graph, seven_images, labels)


def test_pixels_out_of_range_are_refused(random_graph, seven_images):
    with pytest.raises(QuantizationError, match="0 to 255"):
        run_evaluation(random_graph, seven_images / 100.0)
    with pytest.raises(QuantizationError, match="0 to 255"):
        run_evaluation(random_graph, seven_images + 1000)


@pytest.mark.parametrize("option", [{"timesteps": 0}, {"timesteps": -1}, {"batch_size": 0}])
def test_options_below_one_are_refused(random_graph, seven_images, option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        run_evaluation(random_graph, seven_images, **option)
