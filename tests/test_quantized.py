"""The integer graph: what exists is what the chip can hold."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from stars_deploy.errors import GraphError, QuantizationError
from stars_deploy.precision import Precision, check_range
from stars_deploy.quantized import (
    ConvProjection,
    DenseProjection,
    Population,
    QuantizedGraph,
    QuantizedInput,
    find_difference,
)


@pytest.mark.parametrize(
    ("bits", "signed", "low", "high"), [(8, True, -128, 127), (8, False, 0, 255), (1, False, 0, 1), (1, True, -1, 0)]
)
def test_precision_range(bits, signed, low, high):
    precision = Precision(bits=bits, signed=signed)
    assert (precision.low, precision.high) == (low, high)
    precision.check(np.array([low, high]), "w")
    for outside in (low - 1, high + 1):
        with pytest.raises(QuantizationError, match=f"w: values from .*{outside}.*allowed: {low} to {high}"):
            precision.check(np.array([0, outside]), "w")


@pytest.mark.parametrize("fields", [{"bits": 0}, {"bits": 33}, {"bits": 8, "rounding": "up"}])
def test_precision_refuses(fields):
    with pytest.raises(QuantizationError, match="precision"):
        Precision(**{"signed": True, **fields})


def test_check_range_of_nothing():
    check_range(np.zeros(0), 1, 2, "empty")


# ---------------------------------------------------------------- input


def test_input_quantizes_to_nearest():
    source = QuantizedInput(name="x", shape=(1, 1, 3), precision=Precision(bits=4, signed=False), scale=15.0)
    images = np.array([[0.0, 0.5, 1.0], [0.1, 0.49, 0.0334]]).reshape(2, 1, 1, 3)
    assert source.quantize(images).reshape(2, 3).tolist() == [[0, 8, 15], [2, 7, 1]]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 1, 1, 2)), "images of shape"),
        (np.zeros((1, 1, 3)), "images of shape"),
        (np.full((1, 1, 1, 3), np.nan), "NaN or infinite"),
        (np.full((1, 1, 1, 3), -np.inf), "NaN or infinite"),
        (np.full((1, 1, 1, 3), 1.01), "x: values from 258"),
        (np.full((1, 1, 1, 3), -0.01), "x: values from -3"),
    ],
)
def test_input_refuses_images(images, message):
    with pytest.raises(QuantizationError, match=message):
        QuantizedInput(name="x", shape=(1, 1, 3)).quantize(images)


@pytest.mark.parametrize("precision", [Precision(bits=25, signed=False), Precision(bits=32, signed=True)])
def test_input_refuses_precision(precision):
    with pytest.raises(QuantizationError, match=r"x\.precision.*1 to 24 bits"):
        QuantizedInput(name="x", shape=(1, 1, 3), precision=precision)


@pytest.mark.parametrize(
    "precision",
    [Precision(bits=16, signed=False), Precision(bits=15, signed=True), Precision(bits=17, signed=True)],
)
def test_input_refuses_precision_of_biases(precision):
    with pytest.raises(QuantizationError, match=r"x\.precision: .*allowed: signed, 16 bits, for a bias"):
        QuantizedInput(name="x", shape=(1, 1, 3), precision=precision, biases="n")


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (-1, 2, 3)])
def test_nothing_has_an_empty_shape(shape):
    with pytest.raises(QuantizationError, match=r"x: shape \(.*at least one axis"):
        QuantizedInput(name="x", shape=shape)
    with pytest.raises(QuantizationError, match=r"n: shape \(.*at least one axis"):
        Population(name="n", shape=shape, bias=np.zeros([max(size, 0) for size in shape], int))


@pytest.mark.parametrize("shape", [(3,), (1, 3, 1)])
def test_input_over_time(shape):
    source = QuantizedInput(name="x", shape=shape, precision=Precision(bits=24, signed=True), scale=-100.0, offset=2.5)
    frames = np.linspace(-5, 5, 24).reshape(4, 2, *shape)
    assert source.quantize(frames).tolist() == np.rint(-100 * frames + 2.5).astype(int).tolist()
    assert source.quantize(frames[1]).tolist() == source.quantize(frames)[1].tolist()
    assert source.over_time(frames) and not source.over_time(frames[0])
    assert not source.fits(shape) and not source.fits((1, *frames.shape)) and not source.fits((2, *shape[:-1], 4))
    edge = np.array([-(2**23), 2**23 - 1, 0]).reshape(1, *shape)
    exact = replace(source, scale=1.0, offset=0.0)
    assert exact.quantize(edge.astype(float)).tolist() == edge.tolist()
    with pytest.raises(QuantizationError, match=r"x: values from .*8388608"):
        exact.quantize(edge + np.array([0.0, 1.0, 0.0]).reshape(shape))


def test_input_offset_is_rounded_with_the_pixel():
    source = QuantizedInput(name="x", shape=(2,), scale=1.0, offset=0.5)
    assert source.quantize([[0.0, 0.9], [1.0, 1.1]]).tolist() == [[0, 1], [2, 2]]


# ---------------------------------------------------------------- populations and projections


def population(**fields):
    return Population(**{"name": "n", "shape": (2,), "bias": np.array([1, -2]), **fields})


def test_population():
    one = population(shape=(2, 3, 1), bias=np.arange(6).reshape(2, 3, 1))
    assert (one.size, one.fires) == (6, False)
    assert population(vth=2**17 - 1).fires and population(vth=np.array([2**17, 5])).fires
    assert one.bias.dtype == np.int64 and not one.bias.flags.writeable
    with pytest.raises(FrozenInstanceError):
        one.vth = 3


@pytest.mark.parametrize("name", ["decay_u", "decay_v", "vth"])
def test_population_has_one_value_or_one_a_neuron(name):
    uneven, even = np.array([4096, 0]), np.array([7, 7])
    one = population(**{name: uneven})
    assert getattr(one, name).tolist() == [4096, 0] and not getattr(one, name).flags.writeable
    uneven[0] = 5
    assert getattr(one, name).tolist() == [4096, 0]
    for value in (even, 7, np.int16(7), np.array(7)):
        kept = getattr(population(**{name: value}), name)
        assert kept == 7 and type(kept) is int
    alone = population(shape=(1,), bias=np.array([0]), **{name: np.array([9])})
    assert type(getattr(alone, name)) is int


@pytest.mark.parametrize(
    ("decay", "leaks"), [(4096, False), (4095, True), (np.array([4096, 4096]), False), (np.array([4096, 4095]), True)]
)
def test_population_leaks(decay, leaks):
    assert population(decay_u=decay).leaks_current is leaks


def test_population_resets():
    def times(**fields):
        return [time for time in range(1, 9) if population(**fields).resets_at(time)]

    assert times() == times(reset_offset=3) == []
    assert times(reset_interval=3) == times(reset_interval=3, reset_offset=9) == [3, 6]
    assert times(reset_interval=3, reset_offset=1) == times(reset_interval=3, reset_offset=7) == [1, 4, 7]
    assert times(reset_interval=1, reset_offset=5) == list(range(1, 9))
    assert times(reset_interval=20, reset_offset=5) == [5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay_u": np.array([1, 4097])}, r"n\.decay_u: values from 1 to 4097; allowed: 0 to 4096"),
        ({"decay_v": np.array([-1, 5])}, r"n\.decay_v: values from -1"),
        ({"decay_u": np.array([1, 2, 3])}, r"n\.decay_u: shape \(3,\); allowed: one value, or \(2,\)"),
        ({"decay_v": np.array([[1, 2]])}, r"n\.decay_v: shape \(1, 2\)"),
        ({"vth": np.array([1, 2**17 + 1])}, r"n\.vth: values from 1 to 131073; allowed: 0 to 131072"),
        ({"vth": np.array([-1, 5])}, r"n\.vth: values from -1"),
        ({"vth": np.array([1, 2, 3])}, r"n\.vth: shape \(3,\); allowed: one value, or \(2,\)"),
        ({"vth": 0.5}, r"n\.vth: dtype float64"),
        ({"decay_v": np.array([3])}, r"n\.decay_v: shape \(1,\)"),
        ({"decay_u": 0.5}, r"n\.decay_u: dtype float64; allowed: integers"),
        ({"decay_v": np.array([0.0, 1.0])}, r"n\.decay_v: dtype float64"),
        ({"decay_u": True}, r"n\.decay_u: dtype bool"),
        ({"decay_u": np.array([2**64 - 5, 0], np.uint64)}, r"n\.decay_u: values from 0 to 18446744073709551611"),
        ({"bias": np.array([2**64 - 5, 0], np.uint64)}, r"n\.bias: values from 0 to 18446744073709551611"),
        ({"reset_interval": -1}, "n: reset_interval -1, reset_offset 0; allowed: 0 or more timesteps"),
        ({"reset_interval": 2, "reset_offset": -3}, "n: reset_interval 2, reset_offset -3"),
        ({"decay_u": 4097}, r"n\.decay_u"),
        ({"decay_u": -1}, r"n\.decay_u"),
        ({"decay_v": 4097}, r"n\.decay_v"),
        ({"vth": 2**17 + 1}, r"n\.vth"),
        ({"vth": -1}, r"n\.vth"),
        ({"bias": np.array([1])}, r"n\.bias: shape \(1,\)"),
        ({"bias": np.array([1.0, 2.0])}, r"n\.bias: dtype float64; allowed: integers"),
        ({"bias": np.array([0, 2**15])}, r"n\.bias: values .*32768"),
        ({"bias": np.array([0, -(2**15) - 1])}, r"n\.bias: values .*-32769"),
    ],
)
def test_population_refuses(fields, message):
    with pytest.raises(QuantizationError, match=message):
        population(**fields)


def dense(weight, **fields):
    return DenseProjection(**{"name": "w", "source": "x", "target": "n", "weight": np.asarray(weight), **fields})


def conv(weight, **fields):
    return ConvProjection(**{"name": "w", "source": "x", "target": "n", "weight": np.asarray(weight), **fields})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dense([[128]]), QuantizationError, r"w\.weight: values .*128"),
        (lambda: dense([[0.5]]), QuantizationError, r"w\.weight: dtype float64"),
        (lambda: dense([1, 2]), QuantizationError, r"w\.weight: shape \(2,\)"),
        (lambda: dense(np.zeros((0, 2), int)), QuantizationError, r"w\.weight: shape \(0, 2\)"),
        (lambda: dense([[1]], delay=-1), GraphError, r"w\.delay: -1"),
        (lambda: dense([[1, 2]], delay=np.array([1, -2])), GraphError, r"w\.delay: -2; allowed: 0 or more timesteps"),
        (
            lambda: dense([[1, 2]], delay=np.array([1, 2, 3])),
            GraphError,
            r"w\.delay: shape \(3,\); allowed: .*\(1, 2\)",
        ),
        (lambda: dense([[1], [2]], delay=np.array([1, 2])), GraphError, r"w\.delay: shape \(2,\)"),
        (lambda: dense([[1, 2]], delay=np.array([[[1, 2]]])), GraphError, r"w\.delay: shape \(1, 1, 2\)"),
        (lambda: dense([[1, 2]], delay=np.array([], int)), GraphError, r"w\.delay: shape \(0,\)"),
        (lambda: dense([[1, 2]], delay=1.0), QuantizationError, r"w\.delay: dtype float64"),
        (
            lambda: dense(np.array([[2**64 - 1]], np.uint64)),
            QuantizationError,
            r"w\.weight: values .*18446744073709551615",
        ),
        (
            lambda: dense([[-1]], precision=Precision(bits=8, signed=False)),
            QuantizationError,
            r"w\.weight: values from -1",
        ),
        (lambda: conv([[[[1]]]], delay=-1), GraphError, r"w\.delay: -1; allowed: 0 or more timesteps"),
        (lambda: conv([[1]]), QuantizationError, "4 axes"),
        (lambda: conv([[[[1]]]], stride=(0, 1)), GraphError, r"w: stride \(0, 1\)"),
        (lambda: conv([[[[1]]]], dilation=(1, 0)), GraphError, "stride and dilation of at least 1"),
        (lambda: conv([[[[1]]]], padding=(-1, 0)), GraphError, "padding of at least 0"),
        (lambda: dense([[1, 2]]).output_shape((1, 1, 3)), GraphError, r"w: weight \(1, 2\); allowed: \(out, 3\)"),
        (lambda: conv([[[[1]]]]).output_shape((2, 1, 1)), GraphError, "w: 2 input channels"),
        (lambda: conv([[[[1]]]], groups=0).output_shape((1, 1, 1)), GraphError, "groups 0"),
        (lambda: conv([[[[1]]]]).output_shape((4,)), GraphError, "w: input"),
        (lambda: conv([[[[1], [1]]]]).output_shape((1, 1, 4)), GraphError, "leaves nothing"),
    ],
)
def test_projection_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_projection_shapes():
    weight = np.ones((4, 2, 3, 2), int)
    projection = conv(weight, stride=(2, 1), padding=(1, 0), dilation=(2, 3), groups=2)
    assert projection.output_shape((4, 9, 7)) == (4, 4, 4)
    assert dense(np.ones((5, 12), int)).output_shape((3, 2, 2)) == (5,)


@pytest.mark.parametrize(
    ("delay", "kept"),
    [
        (2, 2),
        (np.int32(2), 2),
        (np.array([3, 3]), 3),
        (np.full((2, 2), 4), 4),
        (np.array([0, 5]), [[0, 5], [0, 5]]),  # axonal: the same from one source neuron to all
        (np.array([[0, 5], [5, 1]]), [[0, 5], [5, 1]]),
    ],
)
def test_dense_delays(delay, kept):
    projection = dense([[1, 2], [3, 4]], delay=delay)
    assert np.asarray(projection.delay).tolist() == kept
    assert type(projection.delay) is int or not projection.delay.flags.writeable


def test_by_delay_splits_the_synapses():
    parts = dense([[1, 2], [3, 0]], delay=np.array([[7, 0], [3, 7]])).by_delay()
    assert [delay for delay, _ in parts] == [part.delay for _, part in parts] == [0, 3, 7]
    assert [part.weight.tolist() for _, part in parts] == [[[0, 2], [0, 0]], [[0, 0], [3, 0]], [[1, 0], [0, 0]]]
    for whole in (dense([[1, 2]], delay=3), conv([[[[1]]]], delay=3)):
        assert whole.by_delay() == ((3, whole),)


def test_later_changes_of_the_callers_arrays_do_not_matter():
    weight, bias = np.array([[1, 2]]), np.array([3, 4])
    projection, neurons = dense(weight), population(bias=bias)
    weight[0, 0], bias[0] = 99, 99
    assert projection.weight[0, 0] == 1 and neurons.bias[0] == 3


# ---------------------------------------------------------------- the graph


def graph(**fields):
    source = QuantizedInput(name="x", shape=(1, 1, 2))
    projection = dense([[1, 2], [3, 4]])
    return QuantizedGraph(
        **{"input": source, "populations": (population(),), "projections": (projection,), "timesteps": 2, **fields}
    )


def test_graph():
    one = graph()
    assert one.shape_of("x") == (1, 1, 2) and one.shape_of("n") == (2,)
    assert one.output.name == "n" and one.population("n") is one.output
    assert [projection.name for projection in one.into("n")] == ["w"] and one.into("x") == ()
    assert one.with_timesteps(7).timesteps == 7 and one.timesteps == 2
    with pytest.raises(GraphError, match="population: m; allowed:"):
        one.population("m")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timesteps": 0}, "timesteps: 0"),
        ({"populations": ()}, "populations: none"),
        ({"populations": (population(), population())}, "unique names"),
        ({"populations": (population(name="x"),)}, "unique names"),
        ({"projections": ()}, "n: no projection enters it"),
        ({"projections": (dense([[1, 2], [3, 4]], source="y"),)}, "w: y -> n"),
        ({"projections": (dense([[1, 2], [3, 4]], target="x"),)}, "w: x -> x"),
        ({"projections": (dense([[1, 2], [3, 4]], source="n"),)}, "w: n -> n goes back without a delay"),
        ({"projections": (dense([[1, 2]]),)}, r"w: makes \(1,\); allowed: \(2,\)"),
        ({"projections": (dense([[1], [2]]),)}, "w: weight"),
    ],
)
def test_graph_refuses(fields, message):
    with pytest.raises(GraphError, match=message):
        graph(**fields)


def test_delays_forward_and_back():
    back = dense([[1, 2], [3, 4]], name="back", source="n", delay=np.array([[1, 2], [0, 1]]))
    with pytest.raises(GraphError, match="back: n -> n goes back without a delay"):
        graph(projections=(*graph().projections, back))
    assert graph(projections=(*graph().projections, replace(back, delay=np.array([[1, 2], [3, 1]]))))
    assert graph(projections=(replace(back, source="x"),))
    pair = (population(), population(name="m"))
    ahead = dense([[1, 2], [3, 4]], name="ahead", source="m", target="n")
    other = dense([[1, 2], [3, 4]], target="m", name="other")
    with pytest.raises(GraphError, match="ahead: m -> n goes back without a delay"):
        graph(populations=pair, projections=(ahead, other))
    assert graph(populations=pair, projections=(replace(ahead, delay=1), other)).into("n")[0].delay == 1


def test_the_input_may_be_the_bias_of_one_population():
    source = QuantizedInput(name="x", shape=(2,), precision=Precision(bits=16, signed=True), biases="n")
    silent = population(bias=np.zeros(2, int))
    loop = dense([[1, 2], [3, 4]], source="n", delay=1)
    one = graph(input=source, populations=(silent,), projections=())
    assert one.into("n") == ()
    assert graph(input=source, populations=(silent,), projections=(loop,)).into("n") == (loop,)
    wrong = {
        r"n: shape \(2,\); allowed: \(2, 1\), that of its biases": {"input": replace(source, shape=(2, 1))},
        r"n\.bias: a bias of its own; allowed: 0": {"populations": (population(bias=np.array([0, 1])),)},
        "w: comes from x, which sets biases; allowed: a population": {"projections": (replace(loop, source="x"),)},
        "population: m; allowed": {"input": replace(source, biases="m")},
        "population: x; allowed": {"input": replace(source, biases="x")},
        "m: no projection enters it": {"populations": (silent, population(name="m"))},
    }
    for message, fields in wrong.items():
        with pytest.raises(GraphError, match=message):
            graph(**{"input": source, "populations": (silent,), "projections": (), **fields})


def test_delayed_loops_are_allowed():
    back = dense([[1, 2], [3, 4]], name="back", source="n", delay=1)
    assert [p.name for p in graph(projections=(*graph().projections, back)).into("n")] == ["w", "back"]


# ---------------------------------------------------------------- equality


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda one: one, ""),
        (lambda one: replace(one, labels=("a", "b")), ""),
        (lambda one: replace(one, input=replace(one.input, scale=3.0)), ""),
        (lambda one: replace(one, populations=(population(scale=3.0),)), ""),
        (lambda one: one.with_timesteps(3), "timesteps"),
        (lambda one: replace(one, input=replace(one.input, precision=Precision(bits=7, signed=False))), "x.precision"),
        (lambda one: replace(one, populations=(population(vth=3),)), "n.vth"),
        (lambda one: replace(one, populations=(population(vth=np.array([2**17, 3])),)), "n.vth"),
        (lambda one: replace(one, populations=(population(decay_u=3),)), "n.decay_u"),
        (lambda one: replace(one, populations=(population(decay_v=np.array([0, 3])),)), "n.decay_v"),
        (lambda one: replace(one, populations=(population(reset_interval=3),)), "n.reset_interval"),
        (lambda one: replace(one, populations=(population(reset_offset=3),)), "n.reset_offset"),
        (lambda one: replace(one, input=replace(one.input, offset=3.0)), ""),
        (lambda one: replace(one, input=replace(one.input, shape=(2, 1, 1))), "x.shape"),
        (lambda one: replace(one, projections=(replace(one.projections[0], delay=np.array([0, 1])),)), "w.delay"),
        (lambda one: replace(one, populations=(population(bias=np.array([1, 2])),)), "n.bias"),
        (lambda one: replace(one, projections=(dense([[1, 2], [3, 5]]),)), "w.weight"),
        (lambda one: replace(one, projections=(replace(one.projections[0], delay=1),)), "w.delay"),
        (
            lambda one: replace(
                one, projections=(replace(one.projections[0], precision=Precision(bits=9, signed=True)),)
            ),
            "w.precision",
        ),
        (lambda one: replace(one, projections=one.projections * 2), "number of layers"),
    ],
)
def test_find_difference(change, difference):
    assert find_difference(graph(), change(graph())) == difference


def test_find_difference_of_what_the_image_is():
    source = QuantizedInput(name="x", shape=(2,), precision=Precision(bits=16, signed=True))
    silent = population(bias=np.zeros(2, int))
    loop = dense([[1, 2], [3, 4]], source="n", delay=1)
    biases = graph(input=replace(source, biases="n"), populations=(silent,), projections=(loop,))
    sends = graph(input=source, populations=(silent,), projections=(loop,))
    assert find_difference(biases, sends) == "x.biases"


def test_find_difference_of_different_kinds():
    plane = QuantizedInput(name="x", shape=(2, 1, 1))
    full = graph(input=plane)
    wide = graph(
        input=plane,
        populations=(population(shape=(2, 1, 1), bias=np.array([[[1]], [[-2]]])),),
        projections=(conv(np.ones((2, 2, 1, 1), int)),),
    )
    assert find_difference(full, wide) == "n.shape"
    moved = replace(full, projections=(conv(np.ones((2, 2, 1, 1), int)),), populations=wide.populations)
    assert find_difference(wide, moved) == ""
    assert find_difference(replace(wide, projections=wide.projections), replace(moved, timesteps=5)) == "timesteps"
