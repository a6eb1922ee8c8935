"""Float graphs and NIR files for tests: canonical graphs of every node, and files written field by field."""

from __future__ import annotations

import dataclasses
import itertools
import json

import h5py
import numpy as np

from stars_deploy.graph import (
    IF,
    LI,
    LIF,
    Conv2d,
    CubaLIF,
    Delay,
    Flatten,
    Input,
    Integrator,
    Linear,
    Normalize,
    Pool2d,
    Scale,
    SpikingGraph,
)
from stars_deploy.targets.nir_graph.metadata import METADATA


def single(values):
    return np.asarray(values, np.float32).astype(np.float64)


def chain(*names):
    return tuple(itertools.pairwise(names))


def _weight(rng, *shape):
    return single(rng.normal(0, 0.4, shape))


def deep(dt=1e-3):
    """Normalisation, kernels that are not square, groups, pooling, every spiking population, dots in names."""
    rng = np.random.default_rng(0)
    tau, syn = single(rng.uniform(2, 9, (4, 6, 5)) * dt), single(3 * dt)
    cuba = {"tau_syn": syn, "tau_mem": single(7 * dt), "r": single(7.0), "w_in": single(3.0)}
    nodes = (
        Input(name="image", shape=(2, 6, 5), low=-1.0, high=2.0),
        Normalize(name="norm", mean=single([0.3, -0.1]), std=single([0.7, 0.4])),
        Conv2d(name="conv.0", weight=_weight(rng, 4, 2, 3, 5), bias=_weight(rng, 4), padding=(1, 2)),
        LIF(name="conv/lif", tau_mem=tau, v_threshold=single(0.3), v_reset=single(-0.25)),
        Pool2d(name="pool", kernel=(2, 2), stride=(2, 1), average=True),
        Conv2d(name="conv.1", weight=_weight(rng, 8, 2, 2, 2), bias=np.zeros(8), groups=2, stride=(1, 2)),
        CubaLIF(name="type", v_threshold=single(rng.uniform(0.1, 0.9, (8, 2, 2))), v_leak=single(0.05), **cuba),
        Linear(name="class", weight=_weight(rng, 6, 32), bias=_weight(rng, 6)),
        IF(name="0", r=single(1 / dt), v_threshold=single(0.6)),
        Linear(name="head", weight=_weight(rng, 3, 6), bias=_weight(rng, 3)),
        Integrator(name="readout", r=single(1 / dt)),
    )
    return SpikingGraph(
        nodes=nodes, edges=chain(*(n.name for n in nodes)), dt=dt, timesteps=5, labels=("a", "b é", "c")
    )


def residual(dt=1e-3):
    """Branches and sums, sum pooling with padding, two projections into the readout, an edge order of its own."""
    rng = np.random.default_rng(1)
    lif = {"tau_mem": single(4 * dt), "v_threshold": single(0.1)}
    nodes = (
        Integrator(name="out", r=single(1 / dt)),
        Linear(name="b", weight=_weight(rng, 3, 48), bias=np.zeros(3)),
        Conv2d(name="c2", weight=_weight(rng, 3, 3, 3, 3), bias=_weight(rng, 3), padding=(1, 1), dilation=(1, 1)),
        LIF(name="l2", **lif),
        Input(name="x", shape=(1, 4, 4)),
        Conv2d(name="c1", weight=_weight(rng, 3, 1, 3, 3), bias=_weight(rng, 3), padding=(1, 1)),
        LIF(name="l1", **lif),
        Pool2d(name="p", kernel=(3, 3), stride=(1, 1), padding=(1, 1)),
        Linear(name="a", weight=_weight(rng, 3, 48), bias=_weight(rng, 3)),
    )
    edges = (("l2", "b"), ("x", "c1"), ("l1", "l2"), ("c1", "l1"), ("l1", "c2"), ("c2", "l2"))
    edges += (("l1", "p"), ("p", "a"), ("b", "out"), ("a", "out"))
    return SpikingGraph(nodes=nodes, edges=edges, dt=dt, timesteps=6)


def recurrent(dt=1e-3):
    """A loop through a delay, delays of each neuron, scales, an explicit flattening, a leaky end."""
    rng = np.random.default_rng(2)
    nodes = (
        Input(name="x", shape=(2, 2, 3)),
        Flatten(name="flat"),
        Linear(name="w", weight=_weight(rng, 5, 12), bias=_weight(rng, 5)),
        LIF(name="h", tau_mem=single(np.array([2.5, 3, 4, 5, 6]) * dt), v_threshold=single(0.4), v_leak=single(0.01)),
        Delay(name="late", delay=single(dt)),
        Linear(name="loop", weight=_weight(rng, 5, 5), bias=_weight(rng, 5)),
        Delay(name="later", delay=single(np.array([0, 1, 2, 3, 1]) * dt)),
        Scale(name="gain", scale=single(rng.uniform(0.5, 2, 5))),
        Scale(name="same", scale=single(0.5)),
        Linear(name="v", weight=_weight(rng, 2, 5), bias=_weight(rng, 2)),
        LI(name="end", tau_mem=single(3 * dt), v_leak=single(0.25)),
    )
    edges = chain("x", "flat", "w", "h", "late", "loop", "h") + chain("h", "later", "gain", "same", "v", "end")
    return SpikingGraph(nodes=nodes, edges=edges, dt=dt, timesteps=7)


def biased(dt=1e-3):
    """Biases of each neuron in v_leak, a population without a projection, an integrator with a gain at the end."""
    rng = np.random.default_rng(3)
    nodes = (
        Input(name="x", shape=(1, 3, 3)),
        Conv2d(name="c", weight=_weight(rng, 2, 1, 2, 2), bias=_weight(rng, 2, 2, 2)),
        LIF(name="l", tau_mem=single(2 * dt), v_threshold=single(0.5)),
        Conv2d(name="d", weight=_weight(rng, 2, 2, 1, 1), bias=_weight(rng, 2, 2, 2)),
        LIF(name="m", tau_mem=single(4 * dt), v_threshold=single(0.5), r=single(rng.uniform(1, 9, (2, 2, 2)))),
        Conv2d(name="e", weight=_weight(rng, 2, 2, 1, 1), bias=np.full((2, 2, 2), 0.25)),
        LI(name="n", tau_mem=single(4 * dt)),
        Integrator(name="sum", r=single(0.3 / dt)),
    )
    return SpikingGraph(nodes=nodes, edges=chain(*(n.name for n in nodes)), dt=dt, timesteps=3)


GRAPHS = {make.__name__: make for make in (deep, residual, recurrent, biased)}


def find_unequal(one, other):
    """The first field in which two float graphs differ, by type, shape or value; empty if they are equal."""
    for name in ("edges", "dt", "timesteps", "labels"):
        if getattr(one, name) != getattr(other, name):
            return name
    if [(type(n), n.name) for n in one.nodes] != [(type(n), n.name) for n in other.nodes]:
        return "nodes"
    for left, right in zip(one.nodes, other.nodes, strict=True):
        for field in dataclasses.fields(left):
            a, b = getattr(left, field.name), getattr(right, field.name)
            if np.shape(a) != np.shape(b) or not np.array_equal(a, b) or isinstance(a, tuple) != isinstance(b, tuple):
                return f"{left.name}.{field.name}"
    return ""


# ---------------------------------------------------------------- files, field by field


def write_raw(path, nodes, edges, metadata=None, **options):
    """Write `nodes` (dicts of fields) as ``nir.write`` lays them out, without any of its checks."""
    with h5py.File(path, "w") as file:
        put(file, "version", "1.0.8")
        fill(file.create_group("node"), graph(nodes, edges, metadata=metadata), **options)
    return path


def graph(nodes, edges, metadata=None):
    """The fields of a graph of nodes."""
    fields = {"type": "NIRGraph", "nodes": nodes, "edges": list(edges)}
    return fields if metadata is None else {**fields, "metadata": metadata}


def fill(group, fields, **options):
    for name, value in fields.items():
        if isinstance(value, dict):
            fill(group.create_group(name), value, **options)
        elif value is not None:
            put(group, name, value, **options)


def put(group, name, value, **options):
    if name in group:
        del group[name]
    if isinstance(value, str):
        group.create_dataset(name, data=value, dtype=h5py.string_dtype())
    elif isinstance(value, np.ndarray) and value.ndim and value.dtype.kind != "O":
        group.create_dataset(name, data=value, **{"compression": "gzip", **options})
    else:
        group.create_dataset(name, data=value)


def image(*shape):
    return {"type": "Input", "shape": np.array(shape)}


def output(*shape):
    return {"type": "Output", "shape": np.array(shape)}


def affine(weight, bias=None):
    weight = np.asarray(weight, np.float32)
    return {"type": "Affine", "weight": weight, "bias": np.zeros(len(weight), np.float32) if bias is None else bias}


def lif(*shape, tau=1e-3, r=1.0, v_leak=0.0, v_threshold=1.0, v_reset=0.0, **fields):
    values = {"tau": tau, "r": r, "v_leak": v_leak, "v_threshold": v_threshold, "v_reset": v_reset}
    full = {name: np.full(shape, value, np.float32) for name, value in values.items() if value is not None}
    return {"type": "LIF", **full, **fields}


def conv2d(weight, **fields):
    weight = np.asarray(weight, np.float32)
    settings = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    return {"type": "Conv2d", "weight": weight, "bias": np.zeros(len(weight), np.float32), **settings, **fields}


WEIGHT = single(np.random.default_rng(5).normal(0, 0.5, (3, 4)))


def small(path, **changed):
    """Four inputs, a dense layer, three neurons; `changed` are other nodes, or other fields of these."""
    nodes = {"x": image(4), "fc": affine(WEIGHT), "lif": lif(3), "y": output(3)}
    for name, fields in changed.items():
        nodes[name] = {**nodes.get(name, {}), **fields}
    return write_raw(path, nodes, chain("x", "fc", "lif", "y"))


def described(path):
    """The metadata of a file of ours."""
    with h5py.File(path) as file:
        return json.loads(file[f"node/metadata/{METADATA}"][()])


def describe(path, **changed):
    """Change the metadata of a file of ours; None takes them away."""
    content = described(path)
    with h5py.File(path, "r+") as file:
        if changed.pop("remove", False):
            del file["node/metadata"]
        else:
            put(file["node/metadata"], METADATA, json.dumps({**content, **changed}))
    return path
