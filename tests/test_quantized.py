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
    with pytest.raises(QuantizationError, match=r"x\.precision"):
        QuantizedInput(name="x", shape=(1, 1, 3), precision=precision)


# ---------------------------------------------------------------- populations and projections


def population(**fields):
    return Population(**{"name": "n", "shape": (2,), "bias": np.array([1, -2]), **fields})


def test_population():
    one = population(shape=(2, 3, 1), bias=np.arange(6).reshape(2, 3, 1))
    assert (one.size, one.fires) == (6, False)
    assert population(vth=2**17 - 1).fires
    assert one.bias.dtype == np.int64 and not one.bias.flags.writeable
    with pytest.raises(FrozenInstanceError):
        one.vth = 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
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
