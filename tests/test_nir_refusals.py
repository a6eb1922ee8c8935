"""Strangers' NIR files that the float graph cannot hold, or that contradict themselves: refused by name."""

from __future__ import annotations

import nir
import numpy as np
import pytest
from nir_files import (
    WEIGHT,
    affine,
    chain,
    conv2d,
    graph,
    image,
    lif,
    output,
    write_raw,
)

from stars_deploy.errors import FormatError
from stars_deploy.targets.nir_graph.reader import read_nir


def read(path, **options):
    return read_nir(path, **{"dt": 1e-4, "timesteps": 3, **options}).graph


FLAT = {"start_dim": 0, "end_dim": -1}
LOOP = {"x": image(4), "fc": affine(WEIGHT), "lif": lif(3), "w": affine(np.eye(3)), "y": output(3)}

CONV = conv2d(np.ones((2, 1, 3, 3)))
POOL = {"type": "SumPool2d", "kernel_size": [2, 2], "stride": [2, 2], "padding": [0, 0]}


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"type": "Threshold", "threshold": np.ones(3)}, (3,), "n/type: 'Threshold': a threshold without.*Input, Outp"),
        ({"type": "CubaLI", "r": np.ones(3)}, (3,), "n/type: 'CubaLI': an integrator of a synaptic current"),
        ({"type": "Mystery"}, (3,), "n/type: 'Mystery'; allowed: Input, Output, Affine"),
        ({**lif(3), "extra": np.ones(3)}, (3,), "n/extra: a field that is not understood"),
        ({**lif(3, r=None)}, (3,), "n/r: is missing"),
        ({**lif(3), "tau": np.array([1e-3, 5e-5, 1e-3])}, (3,), "n/tau: 5e-05 s; allowed: at least a timestep, 0.0001"),
        ({**lif(3), "tau": np.array([1e-3, 0, 1e-3])}, (3,), "n/tau: 0 s"),
        ({**lif(3), "tau": np.array([1e-3, np.nan, 1e-3])}, (3,), "n/tau: NaN or infinite values; allowed: finite"),
        ({**lif(3), "v_leak": np.array([1, np.inf, 1])}, (3,), "n/v_leak: NaN or infinite values"),
        (lif(2), (3,), r"n/tau: shape \(2,\); allowed: one number, or what spreads to \(3,\), which enters n"),
        ({**lif(3), "r": np.ones((3, 1, 3))}, (3,), r"n/r: shape \(3, 1, 3\); allowed: 1 to 3 values"),
        ({**lif(3), "r": np.ones((3, 1))}, (3,), r"n/r: shape \(3, 1\); allowed: one number, or what"),
        ({**lif(3), "r": "one"}, (3,), "n/r: dtype object"),
        ({**lif(3), "r": np.ones(3, np.complex64)}, (3,), "n/r: dtype complex64"),
        ({**lif(3), "r": np.ones(3, np.longdouble)}, (3,), "n/r: dtype .*64 bits"),
        ({**lif(3), "v_threshold": np.zeros(3)}, (3,), "n: v_threshold 0.0, v_reset 0.0"),
        ({"type": "Delay", "delay": -np.ones(3)}, (3,), "n.delay: -1.0 s"),
        ({"type": "Delay", "delay": np.full(3, 1.5e-4)}, (3,), "n.delay: 0.00015.*whole multiples of dt"),
        (affine(np.ones((2, 4))), (3,), r"n/weight: shape \(2, 4\); allowed: \(out, 3\).*without time and batch"),
        (affine(np.ones((2, 3)), np.ones(3)), (3,), r"n/bias: shape \(3,\); allowed: 1 to 2 values"),
        (affine(np.ones((2, 2, 3))), (3,), r"n/weight: shape \(2, 2, 3\)"),
        (CONV, (4,), r"n: a Conv2d of an input of shape \(4,\); allowed: \(C, H, W\)"),
        (CONV, (2, 4, 4), "n: 2 input channels, kernel .2, 1, 3, 3., groups 1"),
        ({**CONV, "weight": np.ones((2, 1, 3))}, (1, 4, 4), r"n/weight: shape \(2, 1, 3\); allowed: 4 axes"),
        ({**CONV, "input_shape": [4, 5]}, (1, 4, 4), r"n/input_shape: states \(4, 5\); allowed: \(4, 4\)"),
        ({**CONV, "stride": [0, 1]}, (1, 4, 4), r"n/stride: \[0, 1\]; allowed: 1 or 2 whole numbers of at least 1"),
        ({**CONV, "stride": [1, 1, 1]}, (1, 4, 4), "n/stride: shape .3,.; allowed: 1 to 2 values"),
        ({**CONV, "stride": 1.5}, (1, 4, 4), "n/stride: values from 1.5"),
        ({**CONV, "padding": [-1, 0]}, (1, 4, 4), r"n/padding: \[-1, 0\]"),
        ({**CONV, "padding": "full"}, (1, 4, 4), "n/padding: 'full'; allowed: 'same', 'valid'"),
        ({**CONV, "padding": "same", "stride": [2, 2]}, (1, 4, 4), r"n/stride: \(2, 2\); allowed: 1 with"),
        ({**CONV, "groups": 0}, (1, 4, 4), "n/groups"),
        ({**CONV, "dilation": [3, 3]}, (1, 4, 4), "n: kernel .3, 3. leaves nothing of .4, 4."),
        ({**CONV, "type": "Conv1d"}, (1, 4, 4), r"n: a Conv1d of an input of shape \(1, 4, 4\); allowed: \(C, L\)"),
        ({**POOL, "kernel_size": [0, 2]}, (1, 4, 4), r"n/kernel_size: \[0, 2\]"),
        ({**POOL, "kernel_size": [5, 5]}, (1, 4, 4), "n: kernel .5, 5. leaves nothing"),
        (POOL, (4, 4), r"n: a SumPool2d of an input of shape \(4, 4\)"),
        ({"type": "Flatten", "start_dim": 2, "end_dim": 1}, (2, 3, 2), "n: axes 2 to 1 of .2, 3, 2."),
        ({"type": "Flatten", "start_dim": 0, "end_dim": 3}, (2, 3, 2), "n: axes 0 to 3"),
        ({"type": "Flatten", **FLAT, "input_type": np.array([2, 4])}, (2, 3), r"n/input_type: states \(2, 4\)"),
        ({"type": "Scale", "scale": np.ones((2, 2))}, (4,), r"n/scale: shape \(2, 2\)"),
        (lif(2, 2, 2, 2, 2), (2, 2, 2, 2, 2), r"x/shape: \(2, 2, 2, 2, 2\); allowed: \(N,\), \(C, L\)"),
        (lif(2, 1, 2, 2), (2, 1, 2, 2), "x/shape: .*without time and batch"),
        (lif(1), (0,), r"x/shape: \(0,\)"),
    ],
)  # fmt: skip
def test_nodes_that_do_not_fit_are_refused_by_name(tmp_path, fields, shape, message):
    nodes = {"x": image(*shape), "n": fields, "y": {"type": "Output"}}
    with pytest.raises(FormatError, match=rf"m\.nir: (node/nodes/)?{message}"):
        read(write_raw(tmp_path / "m.nir", nodes, chain("x", "n", "y")))


@pytest.mark.parametrize(
    ("nodes", "edges", "message"),
    [
        ({"y": None}, [("x", "lif")], "nodes: no Output node; allowed: exactly one Output"),
        ({"x": None}, [("lif", "y")], "nodes: no Input node"),
        ({"x2": image(4)}, [], r"nodes: 2 Input nodes \(x, x2\)"),
        ({"y2": output(3)}, [("lif", "y2")], r"nodes: 2 Output nodes \(y, y2\)"),
        ({}, [("lif", "ghost")], "edges: unknown node 'ghost'; allowed: one of fc, lif, x, y"),
        ({}, [("lif", "x")], "edges: x is the graph's, and has an edge to lif"),
        ({}, [("y", "lif")], "edges: y is the graph's, and has an edge to lif"),
        ({"lost": lif(3)}, [], "edges: the input does not reach lost"),
        ({"lost": lif(3)}, [("lost", "lif")], "edges: the input does not reach lost"),
        ({"dead": lif(3)}, [("fc", "dead")], "edges: dead is a dead end"),
        ({"y": output(4)}, [], r"y/shape: states \(4,\); allowed: \(3,\)"),
        ({"y": {"type": "Output"}}, [], "shape"),
        ({"w": affine(np.ones((2, 3)))}, [("lif", "w"), ("w", "y")], "readout: inputs of shapes"),
        ({"w": affine(np.ones((2, 3)))}, [("lif", "w"), ("w", "lif")], "lif: inputs of shapes"),
        ({"lif": {"type": "NIRGraph"}}, [], "nodes/lif/nodes: is missing"),
        ({"lif": {"weight": np.ones(2)}}, [], "lif/type: is missing"),
        ({"x": {"type": "Input"}}, [], "x/shape: is missing"),
        ({"x": {**image(4), "low": 0.0}}, [], "x/low: a field that is not understood"),
        ({"y": {**output(3), "low": 0.0}}, [], "y/low: a field that is not understood"),
    ],
)
def test_graphs_that_are_none_are_refused_by_name(tmp_path, nodes, edges, message):
    base = {"x": image(4), "fc": affine(WEIGHT), "lif": lif(3), "y": output(3)}
    nodes = {name: fields for name, fields in {**base, **nodes}.items() if fields is not None}
    all_edges = [edge for edge in chain("x", "fc", "lif", "y") if set(edge) <= set(nodes)] + edges
    path = write_raw(tmp_path / "m.nir", nodes, all_edges)
    if message == "shape":  # nothing stated, nothing to contradict
        assert read(path).output.name == "lif"
        return
    with pytest.raises(FormatError, match=rf"m\.nir: (node/)?(nodes/)?{message}"):
        read(path, recurrent_delay=1)


def test_an_output_that_does_not_come_last(tmp_path):
    """Everything feeds something here, and the population behind the output comes after it."""
    nodes = {**LOOP, "l2": lif(3), "w2": affine(np.eye(3)), "d": {"type": "Delay", "delay": np.full(3, 1e-4)}}
    edges = chain("x", "fc", "lif", "y") + chain("lif", "w", "l2", "w2", "d", "lif")
    with pytest.raises(FormatError, match="edges: l2 comes after the output lif"):
        read(write_raw(tmp_path / "m.nir", nodes, edges))


def test_a_single_node_is_no_graph(tmp_path):
    nir.write(tmp_path / "m.nir", nir.Scale(np.ones(3)))
    with pytest.raises(FormatError, match="node/type: Scale; allowed: NIRGraph"):
        read(tmp_path / "m.nir")


def test_loops_of_nothing(tmp_path):
    nothing = graph({"i": image(3), "o": output(3)}, [("i", "o")])
    nodes = {"x": image(4), "fc": affine(WEIGHT), "a": nothing, "b": nothing, "y": output(3)}
    path = write_raw(tmp_path / "m.nir", nodes, chain("x", "fc", "a", "b", "a", "y"))
    with pytest.raises(FormatError, match=r"edges: a loop through .* with no node in it"):
        read(path)


def test_two_nodes_of_one_name(tmp_path):
    inner = graph({"i": image(3), "lif": lif(3), "o": output(3)}, chain("i", "lif", "o"))
    nodes = {"x": image(4), "fc": affine(WEIGHT), "a": inner, "a.lif": lif(3), "y": output(3)}
    path = write_raw(tmp_path / "m.nir", nodes, chain("x", "fc", "a", "a.lif", "y"))
    with pytest.raises(FormatError, match=r"a\.lif: the same name as the node a\.lif of a graph inside"):
        read(path)
