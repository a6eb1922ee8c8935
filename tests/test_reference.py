"""The NumPy reference against an independently written simulator of Python integers, exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import graphs

from stars_deploy.errors import QuantizationError
from stars_deploy.precision import Precision
from stars_deploy.quantized import (
    VTH_NEVER,
    ConvProjection,
    DenseProjection,
    Population,
    QuantizedGraph,
    QuantizedInput,
)
from stars_deploy.targets.reference import run_reference

M = 2**23


def leaked(state, decay):
    return (1 if state >= 0 else -1) * (abs(state) * (4096 - decay) // 4096)


def of_neuron(values, place):
    """The value that a scalar or an array holds for the neuron at `place`."""
    return int(values[place]) if np.ndim(values) else int(values)


def synapses_into(graph, name, place):
    """Yield (source population, source neuron, weight, delay) for every synapse of one neuron."""
    for projection in graph.projections:
        if projection.target != name:
            continue
        shape = graph.shape_of(projection.source)
        if isinstance(projection, DenseProjection):
            for column, source in enumerate(np.ndindex(*shape)):
                delay = of_neuron(projection.delay, (place[0], column))
                yield projection.source, source, int(projection.weight[place[0], column]), delay
            continue
        channel, y, x = place
        outputs, inputs, rows, columns = projection.weight.shape
        first = channel // (outputs // projection.groups) * inputs
        for c, j, i in np.ndindex(inputs, rows, columns):
            source_y = y * projection.stride[0] + j * projection.dilation[0] - projection.padding[0]
            source_x = x * projection.stride[1] + i * projection.dilation[1] - projection.padding[1]
            if 0 <= source_y < shape[1] and 0 <= source_x < shape[2]:
                source = (first + c, source_y, source_x)
                yield projection.source, source, int(projection.weight[channel, c, j, i]), projection.delay


class ScalarNeuron:
    """One neuron of one sample, in Python integers."""

    def __init__(self, graph, population, place):
        self.name, self.place = population.name, place
        self.synapses = [synapse for synapse in synapses_into(graph, population.name, place) if synapse[2]]
        self.decays = of_neuron(population.decay_u, place), of_neuron(population.decay_v, place)
        self.threshold, self.bias = of_neuron(population.vth, place) * 64, int(population.bias[place])
        self.interval, self.offset = population.reset_interval, population.reset_offset
        self.u = self.v = 0

    def advance(self, time, emitted, image_bias):
        """Return 1 if the neuron fires at `time` = 1, 2, ...; `emitted` maps (population, time) to {place: value}."""
        if self.interval and time % self.interval == self.offset % self.interval:
            self.u = self.v = 0
        arriving = sum(w * emitted[source, time - d][place] for source, place, w, d in self.synapses if time - d >= 1)
        self.u = leaked(self.u, self.decays[0]) + arriving * 64
        if self.u > M:
            self.u -= 2 * M
        elif self.u <= -M:
            self.u += 2 * M
        self.v = leaked(self.v, self.decays[1]) + self.u + (self.bias + image_bias) * 64
        self.v = min(max(self.v, 1 - M), M - 1)
        fires = self.v > self.threshold
        if fires:
            self.v = 0
        return int(fires)


def scalar_run(graph, image):
    """Spikes {(population, time): {place: 0 or 1}} and final potentials of one sample, (*shape) or (T, *shape)."""
    emitted = {}
    layers = [[ScalarNeuron(graph, p, place) for place in np.ndindex(*p.shape)] for p in graph.populations]
    for time in range(1, graph.timesteps + 1):
        frame = image[time - 1] if image.ndim > len(graph.input.shape) else image
        pixels = {place: int(frame[place]) for place in np.ndindex(*graph.input.shape)}
        emitted[graph.input.name, time] = pixels
        for population, neurons in zip(graph.populations, layers, strict=True):
            biased = graph.input.biases == population.name
            emitted[population.name, time] = {
                neuron.place: neuron.advance(time, emitted, pixels[neuron.place] if biased else 0) for neuron in neurons
            }
    return emitted, [neuron.v for neuron in layers[-1]]


def assert_exact(graph, images):
    """Compare every spike and the final potentials; return the reference's record."""
    record = run_reference(graph, images)
    batch = images.shape[-len(graph.input.shape) - 1]
    samples = np.moveaxis(images, -len(graph.input.shape) - 1, 0)
    for population in graph.populations:
        assert record.spikes[population.name].shape == (graph.timesteps, batch, *population.shape)
    for sample, image in enumerate(samples):
        emitted, potential = scalar_run(graph, image)
        for population in graph.populations:
            got = record.spikes[population.name]
            for step in range(graph.timesteps):
                spikes = emitted[population.name, step + 1]
                wrong = [place for place, value in spikes.items() if got[(step, sample, *place)] != bool(value)]
                assert not wrong, (population.name, step, sample, wrong)
        assert record.potential[sample].tolist() == potential
    return record


SHORT = st.one_of(st.integers(1, 8), st.sampled_from([4, 1, 12]))


@settings(max_examples=300, deadline=None)
@given(graphs(timesteps=SHORT, batch=st.integers(1, 4), width=1))
def test_equals_scalar_simulator(drawn):
    assert_exact(*drawn)


def single(weight, timesteps=1, **fields):
    """One neuron behind a one-pixel image."""
    population = Population(**{"name": "n", "shape": (1,), "bias": np.array([0]), **fields})
    projection = DenseProjection(
        name="w",
        source="image",
        target="n",
        weight=np.array([[weight]]),
        precision=Precision(bits=32, signed=True),
    )
    image = QuantizedInput(name="image", shape=(1, 1, 1))
    return QuantizedGraph(input=image, populations=(population,), projections=(projection,), timesteps=timesteps)


@pytest.mark.parametrize(
    ("weight", "potential"),
    [
        (2**17 - 1, M - 64),
        (2**17, M - 1),  # a current of +2**23 survives, and the potential is clipped
        (2**17 + 1, 64 - M),  # wrapped once
        (-(2**17) + 1, 64 - M),
        (-(2**17), M - 1),  # -2**23 becomes +2**23
        (3 * 2**17, M - 1),
        (3 * 2**17 + 1, M - 1),  # one wrap only: still outside, and clipped
    ],
)
def test_wrap_and_clip(weight, potential):
    images = np.array([1, 0]).reshape(2, 1, 1, 1)
    record = assert_exact(single(weight), images)
    assert record.potential.tolist() == [[potential], [0]]


def test_threshold_is_strict_and_resets_the_membrane_not_the_current():
    images = np.array([1, 2, 3]).reshape(3, 1, 1, 1)
    record = assert_exact(single(10, timesteps=3, vth=20, decay_u=0), images)
    # 10 then 10 + 10 ...: currents 1, 2, 3 times the input; spikes only above 20 (in units of 64)
    assert record.spikes["n"][:, :, 0].T.tolist() == [
        [False, True, True],
        [False, True, True],
        [True, True, True],
    ]


def test_decay_rounds_toward_zero():
    images = np.array([1, 3]).reshape(2, 1, 1, 1)
    up, down = (run_reference(single(sign, timesteps=4, decay_v=1), images).potential for sign in (1, -1))
    assert (up == -down).all() and (up > 0).all()


def test_delay_shifts_by_whole_timesteps():
    plain = single(5, timesteps=4)
    delayed = QuantizedGraph(
        input=plain.input,
        populations=plain.populations,
        projections=(DenseProjection(name="w", source="image", target="n", weight=np.array([[5]]), delay=3),),
        timesteps=4,
    )
    images = np.array([1, 2]).reshape(2, 1, 1, 1)
    assert run_reference(plain, images).potential.tolist() == [[4 * 5 * 64], [8 * 5 * 64]]
    assert assert_exact(delayed, images).potential.tolist() == [[5 * 64], [10 * 64]]


def test_each_synapse_has_its_own_delay():
    """Weights 1, 10, 100, 1000 that arrive 0, 1, 2 and (of 4 timesteps) 4 steps late."""
    plain = single(1, timesteps=4, decay_v=4096)
    image = QuantizedInput(name="image", shape=(1, 2, 2))
    precision = Precision(bits=11, signed=True)
    late = DenseProjection(
        name="w",
        source="image",
        target="n",
        weight=np.array([[1, 10, 100, 1000]]),
        precision=precision,
        delay=np.array([[0, 1, 2, 4]]),
    )
    graph = replace(plain, input=image, projections=(late,))
    images = np.array([[1, 1, 1, 1], [2, 0, 3, 1]]).reshape(2, 1, 2, 2)
    for timesteps, potentials in ((1, [1, 2]), (2, [11, 2]), (3, [111, 302]), (4, [111, 302]), (5, [1111, 1302])):
        record = assert_exact(graph.with_timesteps(timesteps), images)
        assert record.potential.ravel().tolist() == [64 * value for value in potentials]


def test_a_frame_for_each_timestep():
    graph = single(1, timesteps=3, decay_v=4096)
    frames = np.array([[1, 2], [3, 4], [5, 6]]).reshape(3, 2, 1, 1, 1)
    assert assert_exact(graph, frames).potential.tolist() == [[64 * 5], [64 * 6]]
    late = replace(graph, projections=(replace(graph.projections[0], delay=2),))
    assert assert_exact(late, frames).potential.tolist() == [[64 * 1], [64 * 2]]
    # As many samples as timesteps: the axes of the image alone tell which is meant.
    assert run_reference(graph, frames[:, 0]).potential.tolist() == [[64 * 1], [64 * 3], [64 * 5]]


@pytest.mark.parametrize(
    ("interval", "offset", "expected"),
    [
        (0, 3, [1, 2, 3, 4, 5, 6]),
        (3, 0, [1, 2, 1, 2, 3, 1]),  # before the updates of timesteps 3 and 6
        (3, 1, [1, 2, 3, 1, 2, 3]),
        (3, 5, [1, 1, 2, 3, 1, 2]),  # an offset counts modulo the interval
        (1, 7, [1, 1, 1, 1, 1, 1]),
        (9, 9, [1, 2, 3, 4, 5, 6]),
        (9, 4, [1, 2, 3, 1, 2, 3]),
    ],
)
@pytest.mark.parametrize("state", ["current", "membrane"])
def test_reset_comes_before_the_update_and_keeps_what_arrives(state, interval, offset, expected):
    decays = {"decay_u": 0, "decay_v": 4096} if state == "current" else {"decay_u": 4096, "decay_v": 0}
    images = np.array([1, 2]).reshape(2, 1, 1, 1)
    found = []
    for timesteps in range(1, 7):
        graph = single(1, timesteps=timesteps, reset_interval=interval, reset_offset=offset, **decays)
        found.append(assert_exact(graph, images).potential.ravel().tolist())
    assert found == [[64 * value, 128 * value] for value in expected]


def test_a_reset_does_not_clear_what_is_in_flight():
    plain = single(5, timesteps=3, reset_interval=3)
    late = replace(plain, projections=(replace(plain.projections[0], delay=2),))
    images = np.array([1, 2]).reshape(2, 1, 1, 1)
    assert assert_exact(late, images).potential.tolist() == [[5 * 64], [10 * 64]]


def test_each_neuron_has_its_own_threshold():
    graph = single(1, timesteps=1, decay_v=4096)
    population = replace(graph.output, shape=(3,), bias=np.zeros(3, int), vth=np.array([4, 5, VTH_NEVER]))
    projection = replace(graph.projections[0], weight=np.ones((3, 1), int))
    graph = replace(graph, populations=(population,), projections=(projection,))
    record = assert_exact(graph, np.array([5, 6]).reshape(2, 1, 1, 1))
    assert record.spikes[population.name][0].tolist() == [[True, False, False], [True, True, False]]
    assert population.fires and not replace(population, vth=VTH_NEVER).fires


def test_each_neuron_has_its_own_decays():
    decays = np.array([[[0, 2048]], [[4096, 1024]]])
    image = QuantizedInput(name="image", shape=(1, 1, 2))
    weight = np.ones((2, 1, 1, 1), int)
    projection = ConvProjection(name="w", source="image", target="n", weight=weight)
    images = np.array([[16, 16], [32, 0]]).reshape(2, 1, 1, 2)
    for name, expected in (("decay_u", [16 * 3, 28, 16, 37]), ("decay_v", [16 * 3, 28, 16, 37])):
        other = {"decay_u": "decay_v", "decay_v": "decay_u"}[name]
        fields = {name: decays, other: 4096, "shape": (2, 1, 2), "bias": np.zeros((2, 1, 2), int)}
        population = Population(name="n", **fields)
        graph = QuantizedGraph(input=image, populations=(population,), projections=(projection,), timesteps=3)
        record = assert_exact(graph, images)
        first = [64 * value for value in expected]
        assert record.potential.tolist() == [first, [2 * first[0], 0, 2 * first[2], 0]]


def biased(timesteps=1, **fields):
    """Two neurons whose biases the image is, and a third behind them."""
    neurons = Population(**{"name": "n", "shape": (1, 1, 2), "bias": np.zeros((1, 1, 2), int), **fields})
    return QuantizedGraph(
        input=QuantizedInput(name="image", shape=(1, 1, 2), precision=Precision(bits=16, signed=True), biases="n"),
        populations=(neurons, Population(name="out", shape=(1,), bias=np.array([0]))),
        projections=(DenseProjection(name="w", source="n", target="out", weight=np.array([[3, 5]])),),
        timesteps=timesteps,
    )


def test_the_image_as_bias():
    graph = biased(timesteps=3, vth=20)
    images = np.array([[10, 21], [-5, 2**15 - 1], [11, -(2**15)]]).reshape(3, 1, 1, 2)
    record = assert_exact(graph, images)
    fired = record.spikes["n"].reshape(3, 3, 2)
    assert fired[:, 0].T.tolist() == [[False, False, True], [True, True, True]]  # 10, 20, 30: strictly above 20
    assert fired[:, 1].T.tolist() == [[False, False, False], [True, True, True]]
    assert fired[:, 2].T.tolist() == [[False, True, False], [False, False, False]]
    assert record.potential.tolist() == [[64 * (3 + 15)], [64 * 15], [64 * 3]]
    frames = np.stack([images, 0 * images, 0 * images])
    assert assert_exact(graph, frames).potential.tolist() == [[64 * 5], [64 * 5], [0]]


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.uint64])
@pytest.mark.parametrize(
    "graph", [single(3, vth=20, decay_u=0, timesteps=2), biased(2, vth=20)], ids=["spikes", "bias"]
)
def test_any_integer_type_of_image(dtype, graph):
    images = np.array([[20, 7], [200, 21]]).reshape(2, 1, 1, 2)[..., : graph.input.shape[-1]]
    expected, got = run_reference(graph, images), run_reference(graph, images.astype(dtype))
    assert got.potential.tolist() == expected.potential.tolist()
    assert all((got.spikes[name] == expected.spikes[name]).all() for name in expected.spikes)


def test_refuses_another_number_of_frames_than_timesteps():
    graph = single(1, timesteps=3)
    for frames in (2, 4):
        with pytest.raises(QuantizationError, match=f"image: {frames} frames; allowed: 3, one for each timestep"):
            run_reference(graph, np.zeros((frames, 2, 1, 1, 1), int))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 1, 1), int),
        np.zeros((1, 1, 2, 1, 1, 1), int),
        np.zeros((2, 1, 2, 1), int),
        np.full((1, 1, 1, 1), 256),
        np.full((1, 1, 1, 1), -1),
        np.zeros((1, 1, 1, 1)),
        np.zeros((1, 1, 1, 1), bool),
    ],
    ids=["axes", "more axes", "shape", "above", "below", "floats", "bool"],
)
def test_refuses_images_that_do_not_fit(images):
    with pytest.raises(QuantizationError, match="image"):
        run_reference(single(1), images)


def test_classes_take_the_lowest_index_of_equals():
    record = run_reference(single(1), np.array([0, 1]).reshape(2, 1, 1, 1))
    silent = {"out": np.zeros((1, 2, 3), bool)}
    tied = type(record)(spikes=silent, potential=np.array([[3, 7, 7], [-1, -1, -5]]))
    assert tied.classes().tolist() == [1, 0]
