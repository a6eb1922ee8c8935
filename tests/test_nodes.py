"""The nodes of the float graph: each checks itself when it is made."""

from __future__ import annotations

import numpy as np
import pytest

from stars_deploy import graph, nodes
from stars_deploy.errors import GraphError
from stars_deploy.nodes import (
    IF,
    LI,
    LIF,
    BatchNorm,
    Conv2d,
    CubaLIF,
    Delay,
    Input,
    Integrator,
    Linear,
    Normalize,
    Pool2d,
    Scale,
    frozen_array,
)


def conv(name="conv", out=3, **fields):
    return Conv2d(**{"name": name, "weight": np.ones((out, 2, 3, 3)), "bias": np.zeros(out), **fields})


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
        (lambda: LIF(name="l", tau_mem=0.0), r"l\.tau_mem: 0.0 s; allowed: more than 0 s"),
        (lambda: LIF(name="l", tau_mem=float("nan")), r"l\.tau_mem: 1 of 1 values are NaN"),
        (lambda: LIF(name="l", tau_mem=1.0, v_threshold=0.0), "v_threshold > v_reset"),
        (
            lambda: LIF(name="l", tau_mem=1.0, v_threshold=np.array([1, 2]), v_reset=np.array([0, 2])),
            "v_threshold > v_re",
        ),
        (lambda: CubaLIF(name="c", tau_syn=1.0, tau_mem=1.0, v_threshold=-1.0), "c: v_threshold -1.0, v_reset 0.0"),
        (lambda: IF(name="i", v_reset=1.0), "i: v_threshold 1.0, v_reset 1.0"),
        (lambda: CubaLIF(name="c", tau_syn=np.array([1, -2]), tau_mem=1.0), r"c\.tau_syn: -2.0 s"),
        (lambda: CubaLIF(name="c", tau_syn=1.0, tau_mem=0.0), r"c\.tau_mem: 0.0 s"),
        (lambda: CubaLIF(name="c", tau_syn=1.0, tau_mem=1.0, w_in=np.inf), r"c\.w_in: 1 of 1 values"),
        (lambda: LI(name="l", tau_mem=-1.0), r"l\.tau_mem: -1.0 s"),
        (lambda: LI(name="l", tau_mem=1.0, v_leak=np.array([])), r"l\.v_leak: no values; allowed: one number"),
        (lambda: Integrator(name="o", r=np.nan), r"o\.r: 1 of 1 values"),
        (lambda: IF(name="i", r=np.nan), r"i\.r: 1 of 1 values"),
        (lambda: Scale(name="s", scale=np.array([1, np.nan])), r"s\.scale: 1 of 2 values"),
        (lambda: Delay(name="d", delay=np.array([1e-3, -1e-3])), r"d\.delay: -0.001 s; allowed: 0 s or more"),
        (lambda: Pool2d(name="p", kernel=(0, 1), stride=(1, 1)), r"p: kernel \(0, 1\)"),
        (lambda: Pool2d(name="p", kernel=(1, 1), stride=(1, 0)), r"p: .* stride \(1, 0\)"),
        (lambda: Pool2d(name="p", kernel=(1, 1), stride=(1, 1), padding=(0, -1)), "padding of at least 0"),
        (
            lambda: Pool2d(name="p", kernel=(1 << 16, 2), stride=(1, 1)),
            r"p\.kernel: \(65536, 2\); allowed: at most 65536",
        ),
        (lambda: conv(stride=(0, 1)), r"conv: stride \(0, 1\), padding \(0, 0\)"),
        (lambda: conv(padding=(0, -1)), r"conv: .*padding \(0, -1\)"),
        (lambda: conv(dilation=(1, 0)), r"conv: .*dilation \(1, 0\)"),
        (lambda: conv(groups=0), "conv: .*groups 0"),
        (lambda: Input(name="in", shape=()), r"in\.shape: \(\); allowed: at least one axis"),
        (lambda: Input(name="in", shape=(2, 0)), r"in\.shape: \(2, 0\)"),
        (
            lambda: Input(name="in", shape=(2,), low=1.0, high=0.0),
            "in: pixels from 1.0 to 0.0; allowed: finite numbers",
        ),
        (lambda: Input(name="in", shape=(2,), high=np.inf), "in: pixels from 0.0 to inf"),
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


def test_frozen_arrays_of_their_own_are_shared_and_views_are_not():
    """Copies of a node share its weights; what somebody else could still write to is copied."""
    own = frozen_array([[1.0, 2.0]], np.float64)
    assert frozen_array(own, np.float64) is own
    memory = np.zeros((2, 2))
    view = memory[0]
    view.setflags(write=False)
    kept = frozen_array(view, np.float64)
    memory[0] = 1
    assert not kept.any()
    assert frozen_array(own, np.float32).dtype == np.float32
    fortran = np.asfortranarray(np.ones((2, 3)))
    fortran.setflags(write=False)
    assert frozen_array(fortran, np.float64).flags.c_contiguous


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (LIF, {"tau_mem": 2.0, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0}),
        (
            CubaLIF,
            {"tau_syn": 2.0, "tau_mem": 2.0, "r": 1.0, "w_in": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0},
        ),
        (IF, {"r": 1.0, "v_threshold": 1.0, "v_reset": 0.0}),
        (LI, {"tau_mem": 2.0, "r": 1.0, "v_leak": 0.0}),
        (Integrator, {"r": 1.0}),
    ],
)
def test_parameters_are_numbers_or_frozen_arrays(kind, fields):
    """An array of equal values is that value, so that a graph says in one way what it means."""
    for name, value in fields.items():
        assert getattr(kind(name="p", **{**fields, name: np.full((2, 1), value, np.float32)}), name) == float(value)
        many = np.array([value, value + 0.25])
        array = getattr(kind(name="p", **{**fields, name: many}), name)
        assert array.tolist() == many.tolist() and not array.flags.writeable
    defaults = kind(name="p", **{name: value for name, value in fields.items() if name.startswith("tau")})
    assert all(isinstance(getattr(defaults, name), float) for name in fields)


def test_the_graph_passes_on_every_name_of_the_nodes():
    for name in graph.__all__:
        if name != "SpikingGraph":
            assert getattr(graph, name) is getattr(nodes, name)
    public = {name for name, value in vars(nodes).items() if getattr(value, "__module__", "") == nodes.__name__}
    assert {name for name in public if not name.startswith("_")} <= set(graph.__all__)
