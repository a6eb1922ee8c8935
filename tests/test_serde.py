"""Graphs to archives and back; damaged, foreign or hostile archives are refused."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from random_graphs import graphs

from stars_deploy.errors import ArtifactError, FormatError
from stars_deploy.graph import LIF, BatchNorm, Conv2d, Input, Integrator, Linear, Normalize, SpikingGraph
from stars_deploy.precision import Precision
from stars_deploy.quantized import DenseProjection, Population, QuantizedGraph, QuantizedInput, find_difference
from stars_deploy.serde import load_graph, load_quantized, save_graph
from stars_deploy.targets.reference import run_reference


def spiking_graph():
    """One node of each kind, with a residual sum."""
    rng = np.random.default_rng(0)
    nodes = (
        Input(name="in", shape=(2, 4, 3), high=2.0),
        Normalize(name="norm", mean=np.array([0.1, 0.2]), std=np.array([0.5, 0.7])),
        Conv2d(name="conv", weight=rng.normal(size=(2, 1, 3, 3)), bias=rng.normal(size=2), padding=(1, 1), groups=2),
        BatchNorm(name="bn", gamma=np.ones(2), beta=np.zeros(2), mean=rng.normal(size=2), var=np.ones(2), eps=1e-3),
        LIF(name="lif", tau_mem=2e-3, v_threshold=0.7),
        Conv2d(name="again", weight=rng.normal(size=(2, 2, 1, 1)), bias=rng.normal(size=(2, 4, 3))),
        LIF(name="sum", tau_mem=1e-3),
        Linear(name="fc", weight=rng.normal(size=(5, 24)), bias=rng.normal(size=5)),
        Integrator(name="out", r=0.5),
    )
    names = [node.name for node in nodes]
    edges = (*itertools.pairwise(names), ("lif", "sum"))
    return SpikingGraph(nodes=nodes, edges=edges, dt=5e-4, timesteps=6, labels=("a", "ß"))


def test_quantized_round_trip(small_chain, tmp_path):
    path = tmp_path / "model.npz"
    delayed = replace(small_chain.projections[-1], name="late", delay=2)
    graph = replace(small_chain, projections=(*small_chain.projections, delayed))
    save_graph(graph, path)
    back = load_quantized(path)
    assert find_difference(graph, back) == ""
    assert back.labels == graph.labels and back.input.scale == graph.input.scale
    assert [p.scale for p in back.populations] == [p.scale for p in graph.populations]
    assert not back.projections[0].weight.flags.writeable


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_any_quantized_graph_round_trips(tmp_path_factory, drawn):
    graph, images = drawn
    path = tmp_path_factory.mktemp("graphs", numbered=True) / "model.npz"
    save_graph(graph, path)
    back = load_quantized(path)
    assert find_difference(graph, back) == ""
    for ours, theirs in zip(
        (*graph.populations, *graph.projections), (*back.populations, *back.projections), strict=True
    ):
        for name in ours.__dataclass_fields__:
            one, other = getattr(ours, name), getattr(theirs, name)
            assert type(one) is type(other) and np.array_equal(one, other), (ours.name, name)
    expected, got = run_reference(graph, images), run_reference(back, images)
    assert (expected.potential == got.potential).all()
    path.unlink()


def full_graph():
    """Image as bias, decays of each neuron, resets, delays of each synapse."""
    rng = np.random.default_rng(3)
    neurons = Population(name="n", shape=(1, 1, 2), decay_u=np.array([[[5, 6]]]), decay_v=np.array([[[7, 8]]]),
                         vth=np.array([[[9, 10]]]),
                         bias=np.zeros((1, 1, 2), int), reset_interval=10, reset_offset=11, scale=12.5)  # fmt: skip
    late = DenseProjection(
        name="w", source="n", target="n2", weight=rng.integers(-9, 9, (3, 2)), delay=np.eye(3, 2, dtype=int)
    )
    return QuantizedGraph(
        input=QuantizedInput(
            name="x",
            shape=(1, 1, 2),
            precision=Precision(bits=16, signed=True),
            scale=64.0,
            offset=-3.5,
            biases="n",
        ),
        populations=(neurons, Population(name="n2", shape=(3,), bias=np.arange(3))),
        projections=(late,),
        timesteps=13,
    )


def test_every_field_survives(tmp_path):
    graph = full_graph()
    save_graph(graph, tmp_path / "model.npz")
    back = load_quantized(tmp_path / "model.npz")
    assert back.input == graph.input
    one, projection = back.populations[0], back.projections[0]
    assert (one.decay_u.tolist(), one.decay_v.tolist(), one.vth.tolist()) == ([[[5, 6]]], [[[7, 8]]], [[[9, 10]]])
    assert (one.reset_interval, one.reset_offset, one.scale, back.timesteps) == (10, 11, 12.5, 13)
    assert projection.delay.tolist() == [[1, 0], [0, 1], [0, 0]] and not projection.delay.flags.writeable


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("decay_u", np.array([[[5, 4097]]]), r"impossible graph.*n\.decay_u: values"),
        ("vth", np.array([[[5, 131073]]]), r"impossible graph.*n\.vth: values"),
        ("decay_v", np.array([[5, 6]]), r"impossible graph.*n\.decay_v: shape"),
        ("delay", np.array([[1, 0], [0, -1], [0, 0]]), r"impossible graph.*w\.delay: -1"),
        ("delay", np.zeros((3, 3), int), r"impossible graph.*w\.delay: shape"),
        ("delay", np.full((3, 2), 0.5), r"impossible graph.*w\.delay: dtype"),
    ],
)
def test_refuses_arrays_of_the_dynamics(tmp_path, field, values, message):
    path = tmp_path / "model.npz"
    save_graph(full_graph(), path)
    with np.load(path) as stored:
        arrays = dict(stored)
    (name,) = (key for key in arrays if key.endswith(f".{field}"))
    np.savez_compressed(path, **{**arrays, name: values})
    with pytest.raises(FormatError, match=message):
        load_graph(path)


def test_spiking_round_trip(tmp_path):
    path, graph = tmp_path / "student.npz", spiking_graph()
    save_graph(graph, path)
    back = load_graph(path)
    assert (back.edges, back.dt, back.timesteps, back.labels) == (graph.edges, graph.dt, graph.timesteps, graph.labels)
    assert back.shapes == graph.shapes
    for ours, theirs in zip(graph.nodes, back.nodes, strict=True):
        assert type(ours) is type(theirs)
        for name in ours.__dataclass_fields__:
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), (ours.name, name)
    with pytest.raises(FormatError, match=r"SpikingGraph; allowed: QuantizedGraph.*model\.npz"):
        load_quantized(path)


@pytest.fixture
def archive(small_chain, tmp_path):
    """The arrays and the header of a good archive, and a way to write them changed."""
    path = tmp_path / "model.npz"
    save_graph(small_chain, path)
    with np.load(path) as stored:
        arrays = dict(stored)
    header = json.loads(bytes(arrays.pop("header")))

    def write(header=header, arrays=arrays):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        np.savez_compressed(path, header=np.frombuffer(text, np.uint8), **arrays)
        return path

    return header, arrays, write


def nested(header, **fields):
    graph = {**header["graph"], "fields": {**header["graph"]["fields"], **fields}}
    return {**header, "graph": graph}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: {**header, "version": 2}, "version 2; allowed.*version 1"),
        (lambda header: {**header, "schema": "other"}, "schema 'other'"),
        (lambda header: b"not json", "not a readable graph"),
        (lambda header: b"[" * 100_000, "not a readable graph"),
        (lambda header: b"[]", "not a readable graph"),
        (lambda header: {**header, "graph": {"type": "os.system", "fields": {}}}, "not a readable graph .*os.system"),
        (lambda header: {**header, "graph": {"array": "graph.missing"}}, "not a readable graph .*graph.missing"),
        (lambda header: {**header, "graph": 3}, "int; allowed: SpikingGraph or QuantizedGraph"),
        (lambda header: nested(header, timesteps=0), "impossible graph .timesteps: 0"),
        (lambda header: nested(header, extra=0), "not a readable graph .*extra"),
        (lambda header: nested(header, populations={"tuple": []}), "impossible graph .populations"),
        (lambda header: {"schema": header["schema"], "version": 1}, "not a readable graph"),
    ],
)
def test_refuses_headers(archive, change, message):
    header, _, write = archive
    with pytest.raises(FormatError, match=message):
        load_graph(write(header=change(header)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 2, 3, 2), 300), "impossible graph.*conv0.w.weight"),
        (np.full((4, 2, 3, 2), 1.5), "impossible graph.*integers"),
        (np.ones((4, 2, 3)), "impossible graph.*conv0.w.weight"),
        (np.array([[{"pickled": 1}]], dtype=object), "claimed|not a readable graph"),
    ],
)
def test_refuses_arrays(archive, values, message):
    _, arrays, write = archive
    name = next(name for name, value in arrays.items() if value.shape == (4, 2, 3, 2))
    with pytest.raises(FormatError, match=message):
        load_graph(write(arrays={**arrays, name: values}))


def test_never_unpickles(tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([Trap()], dtype=object), allow_pickle=True)
    path = tmp_path / "trap.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("header.npy", buffer.getvalue())
    with pytest.raises(FormatError):
        load_graph(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FormatError):
        load_graph(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("size", [2**45, 10, 2**28])
def test_refuses_sizes_that_are_not_there(tmp_path, size):
    """An array header that claims other than what is stored, and a member that deflate cannot have made."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(100)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("header.npy", content)
    with pytest.raises(FormatError, match=rf"header\.npy: {size} bytes claimed"):
        load_graph(path)


def test_truncated_archives(small_chain, tmp_path):
    path = tmp_path / "model.npz"
    save_graph(small_chain, path)
    content = path.read_bytes()
    for end in [1, 4, 100, *range(200, len(content), 199), len(content) - 1]:
        path.write_bytes(content[:end])
        with pytest.raises(FormatError):
            load_graph(path)


def test_flipped_bits(small_chain, tmp_path):
    """Every member has a CRC: a flipped bit is an error, or in a field of zip that nobody reads."""
    path = tmp_path / "model.npz"
    save_graph(small_chain, path)
    content, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for position in rng.choice(len(content), 300, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            assert find_difference(small_chain, load_quantized(path)) == ""
        except FormatError:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), (b"", "is empty"), (b"version https://git-lfs", "Git-LFS")]
)
def test_missing_files(tmp_path, content, message):
    path = tmp_path / "model.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        load_graph(path)


def test_interrupted_write_keeps_the_old_archive(small_chain, tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    save_graph(small_chain, path)
    before = path.read_bytes()

    def interrupted(stream, **_arrays):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_graph(small_chain.with_timesteps(9), path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["model.npz"]
