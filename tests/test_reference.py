"""The NumPy reference against an independently written simulator of Python integers, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stars_deploy.errors import QuantizationError
from stars_deploy.precision import Precision
from stars_deploy.quantized import ConvProjection, DenseProjection, Population, QuantizedGraph, QuantizedInput
from stars_deploy.targets.reference import run_reference

M = 2**23


def leaked(state, decay):
    return (1 if state >= 0 else -1) * (abs(state) * (4096 - decay) // 4096)


def scalar_input(projection, shape, values, place):
    """Sum of the synapses of the neuron at `place`; `values` maps places of the source to numbers."""
    total = 0
    if isinstance(projection, DenseProjection):
        for column, source in enumerate(np.ndindex(*shape)):
            total += int(projection.weight[place[0], column]) * values[source]
        return total
    channel, y, x = place
    outputs, inputs, rows, columns = projection.weight.shape
    first = channel // (outputs // projection.groups) * inputs
    for c in range(inputs):
        for j in range(rows):
            for i in range(columns):
                source_y = y * projection.stride[0] + j * projection.dilation[0] - projection.padding[0]
                source_x = x * projection.stride[1] + i * projection.dilation[1] - projection.padding[1]
                if 0 <= source_y < shape[1] and 0 <= source_x < shape[2]:
                    total += int(projection.weight[channel, c, j, i]) * values[(first + c, source_y, source_x)]
    return total


def scalar_run(graph, image):
    """Spikes {population: [T] of {place: 0 or 1}} and final potentials of one sample."""
    history = {graph.input.name: [{p: int(image[p]) for p in np.ndindex(*graph.input.shape)}] * graph.timesteps}
    u = {p.name: dict.fromkeys(np.ndindex(*p.shape), 0) for p in graph.populations}
    v = {p.name: dict.fromkeys(np.ndindex(*p.shape), 0) for p in graph.populations}
    for population in graph.populations:
        history[population.name] = []
    for step in range(graph.timesteps):
        for population in graph.populations:
            name, spikes = population.name, {}
            for place in np.ndindex(*population.shape):
                arriving = 0
                for projection in graph.projections:
                    if projection.target == name and step - projection.delay >= 0:
                        shape = graph.shape_of(projection.source)
                        values = history[projection.source][step - projection.delay]
                        arriving += scalar_input(projection, shape, values, place)
                current = leaked(u[name][place], population.decay_u) + arriving * 64
                if current > M:
                    current -= 2 * M
                elif current <= -M:
                    current += 2 * M
                u[name][place] = current
                potential = leaked(v[name][place], population.decay_v) + current + int(population.bias[place]) * 64
                potential = min(max(potential, 1 - M), M - 1)
                spikes[place] = int(potential > population.vth * 64)
                v[name][place] = 0 if spikes[place] else potential
            history[name].append(spikes)
    return history, v[graph.populations[-1].name]


def assert_exact(graph, images):
    record = run_reference(graph, images)
    for sample, image in enumerate(images):
        history, potential = scalar_run(graph, image)
        for population in graph.populations:
            got = record.spikes[population.name]
            assert got.shape == (graph.timesteps, len(images), *population.shape)
            for step, spikes in enumerate(history[population.name]):
                wrong = [place for place, value in spikes.items() if got[(step, sample, *place)] != bool(value)]
                assert not wrong, (population.name, step, sample, wrong)
        assert record.potential[sample].tolist() == [potential[p] for p in np.ndindex(*graph.populations[-1].shape)]
    return record


DECAYS = st.one_of(st.sampled_from([0, 1, 4095, 4096]), st.integers(0, 4096))


@st.composite
def convolutions(draw, rng, name, source, shape, target, high):
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if shape[0] % g == 0]))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    kernel = [
        draw(st.integers(1, min(3, (shape[axis + 1] + 2 * padding[axis] - 1) // dilation[axis] + 1))) for axis in (0, 1)
    ]
    weight = rng.integers(-high, high + 1, (groups * draw(st.integers(1, 2)), shape[0] // groups, *kernel))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    return ConvProjection(
        name=name,
        source=source,
        target=target,
        weight=weight,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        precision=Precision(bits=21, signed=True),
    )


def full(rng, name, source, size, target, features, high, delay=0):
    weight = rng.integers(-high, high + 1, (features, size))
    precision = Precision(bits=21, signed=True)
    return DenseProjection(name=name, source=source, target=target, weight=weight, precision=precision, delay=delay)


@st.composite
def graphs(draw):
    """Up to four populations: conv or dense, residual sums, delays, self-connections, values that wrap and clip."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shapes = {"image": (draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5)))}
    populations, projections = [], []
    for index in range(draw(st.integers(1, 4))):
        name, source = f"p{index}", draw(st.sampled_from(list(shapes)))
        shape, high = shapes[source], draw(st.sampled_from([7, 127, 2**12, 2**18]))
        if len(shape) == 3 and draw(st.booleans()):
            entering = [draw(convolutions(rng, f"{name}.a", source, shape, name, high))]
        else:
            entering = [full(rng, f"{name}.a", source, int(np.prod(shape)), name, draw(st.integers(1, 4)), high)]
        made = entering[0].output_shape(shape)
        twins = [other for other, size in shapes.items() if size == shape]
        if draw(st.booleans()):  # a second path with the same geometry, from any source of that shape
            other, delay = draw(st.sampled_from(twins)), draw(st.integers(0, 2))
            fields = {**entering[0].__dict__, "name": f"{name}.b", "source": other, "delay": delay}
            fields["weight"] = rng.permutation(entering[0].weight.reshape(-1)).reshape(entering[0].weight.shape)
            entering.append(type(entering[0])(**fields))
        if len(made) == 1 and draw(st.booleans()):  # back to itself
            entering.append(full(rng, f"{name}.c", name, made[0], name, made[0], high, delay=draw(st.integers(1, 3))))
        biases = draw(st.sampled_from([1, 100, 2**15 - 1]))
        vth = draw(st.one_of(st.sampled_from([0, 1, 2**17 - 1, 2**17]), st.integers(0, 2**17)))
        bias = rng.integers(-biases - 1, biases + 1, made)
        populations.append(
            Population(name=name, shape=made, decay_u=draw(DECAYS), decay_v=draw(DECAYS), vth=vth, bias=bias)
        )
        projections += entering
        shapes[name] = made
    graph = QuantizedGraph(
        input=QuantizedInput(name="image", shape=shapes["image"]),
        populations=tuple(populations),
        projections=tuple(projections),
        timesteps=draw(st.integers(1, 8)),
    )
    return graph, rng.integers(0, 256, (draw(st.integers(1, 5)), *shapes["image"]))


@settings(max_examples=100, deadline=None)
@given(graphs())
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


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 1, 1), int), np.zeros((2, 1, 2, 1), int), np.full((1, 1, 1, 1), 256), np.zeros((1, 1, 1, 1))],
    ids=["axes", "shape", "range", "floats"],
)
def test_refuses_images_that_do_not_fit(images):
    with pytest.raises(QuantizationError, match="image"):
        run_reference(single(1), images)


def test_classes_take_the_lowest_index_of_equals():
    record = run_reference(single(1), np.array([0, 1]).reshape(2, 1, 1, 1))
    tied = type(record)(spikes={}, potential=np.array([[3, 7, 7], [-1, -1, -5]]))
    assert tied.classes().tolist() == [1, 0]
