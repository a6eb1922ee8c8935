"""The float graph: named nodes and edges with a time grid, checked when made."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stars_deploy.errors import GraphError
from stars_deploy.graph import (
    LIF,
    BatchNorm,
    Conv2d,
    Input,
    Integrator,
    Linear,
    Normalize,
    SpikingGraph,
    convolved_size,
    frozen_array,
)


def conv(name="conv", out=3, **fields):
    return Conv2d(**{"name": name, "weight": np.ones((out, 2, 3, 3)), "bias": np.zeros(out), **fields})


def linear(name="fc", inputs=12, outputs=5):
    return Linear(name=name, weight=np.ones((outputs, inputs)), bias=np.zeros(outputs))


SOURCE = Input(name="in", shape=(2, 4, 4))


def chain(*nodes, **fields):
    nodes = (SOURCE, *nodes)
    names = [node.name for node in nodes]
    return SpikingGraph(nodes=nodes, edges=tuple(itertools.pairwise(names)), **fields)


def test_shapes_follow_the_nodes():
    norm = Normalize(name="norm", mean=np.zeros(2), std=np.ones(2))
    batch = BatchNorm(name="bn", gamma=np.ones(3), beta=np.zeros(3), mean=np.zeros(3), var=np.ones(3))
    graph = chain(norm, conv(), batch, LIF(name="lif", tau_mem=1e-3), linear(), Integrator(name="out"))
    assert dict(graph.shapes) == {
        "in": (2, 4, 4),
        "norm": (2, 4, 4),
        "conv": (3, 2, 2),
        "bn": (3, 2, 2),
        "lif": (3, 2, 2),
        "fc": (5,),
        "out": (5,),
    }
    assert graph.input is SOURCE
    assert graph.sources("bn") == ("conv",) and graph.targets("bn") == ("lif",)
    assert graph.node("fc").name == "fc"
    with pytest.raises(TypeError):
        graph.shapes["in"] = (1,)
    with pytest.raises(GraphError, match="node: nothing"):
        graph.node("nothing")


def test_order_puts_sources_first_and_residual_sums_are_allowed():
    one, two, neurons = linear("one", 32, 4), linear("two", 32, 4), Integrator(name="sum")
    nodes = (neurons, two, one, SOURCE)
    edges = (("in", "one"), ("in", "two"), ("one", "sum"), ("two", "sum"))
    graph = SpikingGraph(nodes=nodes, edges=edges)
    assert [node.name for node in graph.ordered()] == ["in", "two", "one", "sum"]
    assert graph.sources("sum") == ("one", "two")
    smaller = graph.with_nodes((neurons, one, SOURCE), (("in", "one"), ("one", "sum")))
    assert smaller.dt == graph.dt and len(smaller.nodes) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: chain(conv(), conv()), "unique names"),
        (lambda: SpikingGraph(nodes=(SOURCE,), edges=(("in", "x"),)), r"unknown nodes \['x'\]"),
        (lambda: chain(conv(), dt=0.0), "dt 0.0 s"),
        (lambda: chain(conv(), timesteps=0), "0 timesteps"),
        (lambda: SpikingGraph(nodes=(conv(),), edges=()), "no single Input"),
        (lambda: chain(Input(name="second", shape=(1, 1, 1))), "no single Input"),
        (lambda: SpikingGraph(nodes=(SOURCE, conv()), edges=()), "conv: inputs of shapes"),
        (
            lambda: SpikingGraph(
                nodes=(SOURCE, linear("a", 32, 2), linear("b", 32, 3), Integrator(name="n")),
                edges=(("in", "a"), ("in", "b"), ("a", "n"), ("b", "n")),
            ),
            r"n: inputs of shapes \[\(2,\), \(3,\)\]",
        ),
        (
            lambda: SpikingGraph(nodes=(SOURCE, linear("a", 2, 2), linear("b", 2, 2)), edges=(("a", "b"), ("b", "a"))),
            "a cycle through",
        ),
        (lambda: chain(conv(groups=2)), "groups 2"),
        (lambda: chain(conv(bias=np.zeros(4))), r"conv\.bias: shape \(4,\)"),
        (lambda: chain(conv(bias=np.zeros((3, 4, 4)))), r"conv\.bias"),
        (lambda: chain(conv(dilation=(2, 2))), "leaves nothing"),
        (lambda: chain(linear(inputs=31)), "fc: weight .* for 32 inputs"),
        (lambda: chain(Normalize(name="norm", mean=np.zeros(3), std=np.ones(3))), "norm: 3 channels"),
        (
            lambda: chain(BatchNorm(name="bn", gamma=np.ones(1), beta=np.ones(1), mean=np.ones(1), var=np.ones(1))),
            "bn: 1 channels; allowed: 2",
        ),
    ],
)
def test_graph_refuses(make, message):
    with pytest.raises(GraphError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: conv(weight=np.full((3, 2, 3, 3), np.nan)), r"conv\.weight: 54 of 54 values are NaN or infinite"),
        (lambda: conv(bias=np.array([0, np.inf, 0])), r"conv\.bias: 1 of 3 values"),
        (lambda: conv(weight=np.ones((3, 2))), r"conv\.weight: 2 axes; allowed: 4"),
        (lambda: Linear(name="fc", weight=np.ones(3), bias=np.ones(1)), r"fc\.weight: 1 axes"),
        (lambda: Linear(name="fc", weight=np.ones((1, 3)), bias=np.ones((1, 1))), r"fc\.bias: 2 axes"),
        (lambda: Normalize(name="n", mean=np.zeros(2), std=np.array([1.0, 0.0])), "one positive std for each mean"),
        (lambda: Normalize(name="n", mean=np.zeros(2), std=np.ones(1)), "one positive std for each mean"),
        (
            lambda: BatchNorm(name="b", gamma=np.ones(1), beta=np.ones(1), mean=np.ones(1), var=-np.ones(1)),
            r"b\.var: minimum -1",
        ),
        (lambda: LIF(name="l", tau_mem=0.0), "l: tau_mem 0.0"),
        (lambda: LIF(name="l", tau_mem=float("nan")), "l: tau_mem nan"),
        (lambda: LIF(name="l", tau_mem=1.0, v_threshold=0.0), "v_threshold > v_reset"),
    ],
)
def test_nodes_refuse(make, message):
    with pytest.raises(GraphError, match=message):
        make()


def test_arrays_are_frozen_copies():
    weight = np.ones((3, 2, 3, 3), np.float32)
    node = conv(weight=weight)
    weight[0] = 7
    assert node.weight[0, 0, 0, 0] == 1 and node.weight.dtype == np.float64
    assert not node.weight.flags.writeable
    transposed = frozen_array(np.ones((2, 3)).T, np.float64)
    assert transposed.flags.c_contiguous  # Fortran order once corrupted a C kernel


def test_convolved_size_counts_positions():
    for size in range(1, 9):
        for kernel in range(1, 4):
            for stride in range(1, 4):
                for padding in range(3):
                    for dilation in range(1, 3):
                        last = size + 2 * padding - dilation * (kernel - 1)
                        positions = len(range(0, last, stride)) if last > 0 else 0
                        assert max(convolved_size(size, kernel, stride, padding, dilation), 0) == positions
