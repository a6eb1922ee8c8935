"""NIR files that are damaged or made to harm: an error in bounded time and memory, never a crash."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
import tracemalloc

import h5py
import numpy as np
import pytest
from nir_files import (
    WEIGHT,
    affine,
    chain,
    conv2d,
    deep,
    fill,
    graph,
    image,
    lif,
    output,
    put,
    recurrent,
    small,
    write_raw,
)

from stars_deploy.errors import ArtifactError, FormatError
from stars_deploy.targets import hdf5_guard, hdf5_text
from stars_deploy.targets.nir_graph import content, reader, structure
from stars_deploy.targets.nir_graph.metadata import METADATA
from stars_deploy.targets.nir_graph.reader import read_nir
from stars_deploy.targets.nir_graph.writer import write_nir

#: Bytes that reading a small file may take at most, whatever it claims.
MEMORY = 64 << 20


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("nir") / "model.nir"
    write_nir(deep(), None, path)
    return path


def everything(path):
    """A stranger's file with every kind of node, and its data as nir compresses it."""
    rng = np.random.default_rng(3)
    ones = {name: np.ones(5, np.float32) for name in ("r", "tau_syn", "tau_mem", "v_leak", "v_threshold", "w_in")}
    flat = {"type": "Flatten", "start_dim": 0, "end_dim": -1, "input_type": np.array([3, 2, 2])}
    nodes = {
        "x": image(2, 6, 6),
        "conv": conv2d(rng.normal(size=(3, 2, 3, 3)), input_shape=np.array([6, 6])),
        "lif": lif(3, 4, 4),
        "pool": {"type": "SumPool2d", "kernel_size": [2, 2], "stride": [2, 2], "padding": [0, 0]},
        "flat": flat,
        "fc": affine(rng.normal(size=(5, 12))),
        "cuba": {"type": "CubaLIF", **ones},
        "delay": {"type": "Delay", "delay": np.full(5, 1e-4)},
        "rec": {"type": "Linear", "weight": rng.normal(size=(5, 5))},
        "scale": {"type": "Scale", "scale": rng.normal(size=5)},
        "out": affine(rng.normal(size=(3, 5))),
        "y": output(3),
    }
    edges = chain("x", "conv", "lif", "pool", "flat", "fc", "cuba", "scale", "out", "y")
    return write_raw(path, nodes, edges + chain("cuba", "delay", "rec", "cuba"))


def read(path, **options):
    return read_nir(path, **{"dt": 1e-4, "timesteps": 2, "recurrent_delay": 1, **options})


def expect_refusal_within(path, message, seconds=10):
    """Reading `path` is an error of `message`, soon and without much memory."""
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=message):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < seconds


#: Reads argv[1] and prints the error and how much the peak of memory grew [KiB], h5py's own included.
LITTLE = """
import resource, sys
from stars_deploy.errors import StarsDeployError
from stars_deploy.targets.nir_graph.reader import read_nir
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_nir(sys.argv[1], dt=1e-4, timesteps=1)
except StarsDeployError as error:
    print(str(error).replace(chr(10), " "))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def expect_little(path, message, kibibytes=100 << 10):
    done = subprocess.run([sys.executable, "-c", LITTLE, path], capture_output=True, text=True, check=True)
    found, grown = done.stdout.strip().splitlines()
    assert message in found
    assert int(grown) < kibibytes


# ---------------------------------------------------------------- absurd sizes

HUGE = 2**40


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"x": image(HUGE)}, "x/shape: values from 1099511627776"),
        ({"x": image(2**30)}, "x/shape: .*at most 16777216 values"),
        ({"x": image(1, 2**20, 2**20)}, "x/shape: .*at most 16777216 values"),
        ({"x": {"type": "Input", "shape": np.ones(2**20, int)}}, "x/shape: shape .1048576,.; allowed: 1 to 8"),
        ({"x": image(1, 4, 4), "n": conv2d(np.ones((1, 1, 1, 1)), padding=[2**30, 2**30])}, "n: makes .*16777216"),
        ({"x": image(1, 4, 4), "n": conv2d(np.ones((1, 1, 1, 1)), padding=[HUGE, 0])}, "n/padding: values from"),
        ({"x": image(1, 4, 4), "n": conv2d(np.ones((1, 1, 1, 1)), groups=2**30)}, "n: 1 input channels"),
        ({"x": image(3000, 3000), "n": {"type": "I", "r": 1.0}}, "n: 18000000 neurons so far; allowed: at most"),
        ({"x": image(4), "n": {"type": "Flatten", "start_dim": HUGE, "end_dim": 0}}, "n/start_dim: values from"),
    ],
)
def test_absurd_shapes_are_not_allocated(tmp_path, nodes, message):
    nodes = {"n": {"type": "I", "r": 1.0}, **nodes, "y": {"type": "Output"}}
    expect_refusal_within(write_raw(tmp_path / "m.nir", nodes, chain("x", "n", "y")), message)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv/weight", (2**10, 2**10, 2**10, 2**10)),
        ("conv/bias", (2**40,)),
        ("conv/stride", (2**40,)),
        ("conv/input_shape", (2**40,)),
        ("lif/tau", (2**14, 2**13, 2)),
        ("flat/input_type", (2**40,)),
        ("fc/weight", (2**36, 12)),
        ("cuba/w_in", (2**40,)),
        ("delay/delay", (2**40,)),
        ("rec/weight", (2**36, 5)),
        ("scale/scale", (2**40,)),
        ("x/shape", (2**40,)),
        ("y/shape", (2**40,)),
    ],
)
def test_absurd_datasets_are_not_read(tmp_path, name, shape):
    path = everything(tmp_path / "m.nir")
    assert read(path)
    with h5py.File(path, "r+") as file:
        del file[f"node/nodes/{name}"]
        file.create_dataset(f"node/nodes/{name}", shape, "f4", chunks=tuple(min(size, 64) for size in shape))
    expect_refusal_within(path, f"nodes/{name}: shape")


def test_all_datasets_together_are_bounded(tmp_path, monkeypatch):
    path = everything(tmp_path / "m.nir")
    monkeypatch.setattr(reader, "MAX_VALUES", 300)
    with pytest.raises(FormatError, match=r": shape .*allowed: 300 values in all datasets of a file together"):
        read(path)


def test_a_compressed_bomb_takes_little(tmp_path):
    """300 KB of deflate that hold 2**25 zeros in float32, where 12 are expected: the shape is looked at first."""
    path = small(tmp_path / "m.nir")
    with h5py.File(path, "r+") as file:
        put(file, "node/nodes/fc/weight", np.zeros((2**12, 2**13), np.float32), compression_opts=9)
    assert path.stat().st_size < 2**19
    expect_little(path, "fc/weight: shape (4096, 8192)")


def test_a_text_that_claims_gigabytes_takes_little(tmp_path):
    """HDF5 allocates what a reference to a text claims before it finds that there is less."""
    path = small(tmp_path / "m.nir")
    with h5py.File(path) as file:
        places = {name: file[f"node/{name}"].id.get_offset() for name in ("edges", "type", "nodes/fc/type")}
    content_ = path.read_bytes()
    for name, place in places.items():
        damaged = bytearray(content_)
        damaged[place : place + 4] = struct.pack("<I", 2**32 - 1)
        path.write_bytes(damaged)
        expect_little(path, f"node/{name}: a text of 4294967295 bytes")


def heap_of(path, name):
    """The places in the file of the first heap that the texts of `name` are in, and of its reference to it."""
    with h5py.File(path) as file:
        place = file[name].id.get_offset()
    whole = path.read_bytes()
    return struct.unpack("<Q", whole[place + 4 : place + 12])[0], place


@pytest.mark.parametrize(
    ("where", "field", "message"),
    [
        # An object of no size, in a heap that says it is full of them: HDF5 1.14 never comes back from this.
        ("object", struct.pack("<HHIQ", 1, 0, 0, 2**64 - 16), "that is not where its reference says"),
        ("object", struct.pack("<HHIQ", 0, 0, 0, 0), "that is not where its reference says"),
        ("heap", b"GCOX", "a reference to no heap of texts"),
        ("heap", b"GCOL\2", "a reference to no heap of texts"),
        ("reference", struct.pack("<IQI", 8, 2**63, 1), "texts beyond the end of the file"),
        ("reference", struct.pack("<IQI", 8, 2**40, 1), "texts beyond the end of the file"),
        ("reference", struct.pack("<IQI", 7, 0, 1), "a reference to no heap of texts"),
        ("reference", struct.pack("<IQI", 0, 0, 0), "node/type: ; allowed: NIRGraph"),
    ],
)
def test_damaged_heaps_of_texts(tmp_path, where, field, message):
    path = small(tmp_path / "m.nir")
    heap, reference = heap_of(path, "node/type")
    damaged = bytearray(path.read_bytes())
    place = {"heap": heap, "object": heap + 16, "reference": reference}[where]
    damaged[place : place + len(field)] = field
    path.write_bytes(damaged)
    expect_refusal_within(path, message)


def test_heaps_without_end(tmp_path, monkeypatch):
    """A heap of very many texts is looked at once, and up to a bound."""
    path = small(tmp_path / "m.nir")
    _, reference = heap_of(path, "node/type")
    monkeypatch.setattr(hdf5_text, "MAX_OBJECTS", 3)
    expect_refusal_within(path, "more than 3 objects in heaps")
    monkeypatch.undo()
    whole = bytearray(path.read_bytes())
    whole[reference + 4 : reference + 12] = struct.pack("<Q", len(whole))
    many = struct.pack("<HHIQ", 1, 0, 0, 0) * (1 << 18)
    path.write_bytes(whole + struct.pack("<4sB3xQ", b"GCOL", 1, len(many)) + many)
    expect_refusal_within(path, "more than 65536 objects in heaps")


def test_texts_are_those_that_hdf5_reads(tmp_path):
    path = small(tmp_path / "m.nir")
    texts = np.array([["", "a", "ü" * 100], ["b" * 4096, "c", "d" * 9000]], dtype=object)
    with h5py.File(path, "r+") as file:
        file.create_dataset("texts", data=texts, dtype=h5py.string_dtype())
    with h5py.File(path) as file:
        guard = hdf5_guard.GuardedGroup(file=str(path), name="", node=file, file_size=1 << 20)
        np.testing.assert_array_equal(guard.texts("texts", 6, 1 << 16), texts)
        with pytest.raises(FormatError, match="texts: a text of 9000 bytes"):
            guard.texts("texts", 6, 5000)
    moved = tmp_path / "n.nir"
    with h5py.File(moved, "w", userblock_size=512) as file:
        file.create_dataset("texts", data=texts, dtype=h5py.string_dtype())
    with h5py.File(moved) as file:
        guard = hdf5_guard.GuardedGroup(file=str(moved), name="", node=file, file_size=1 << 20)
        np.testing.assert_array_equal(guard.texts("texts", 6, 1 << 16), texts)


@pytest.mark.parametrize("longest", [structure.MAX_NAME + 1, 1 << 25])
def test_long_names(tmp_path, longest):
    edges = [("x", "fc"), ("fc", "a" * longest)]
    path = write_raw(tmp_path / "m.nir", {"x": image(4), "fc": affine(WEIGHT), "y": output(3)}, edges)
    expect_refusal_within(path, f"node/edges: a text of {longest} bytes; allowed: texts of at most 512 bytes")


def test_long_metadata(tmp_path):
    path = small(tmp_path / "m.nir")
    with h5py.File(path, "r+") as file:
        fill(file["node"], {"metadata": {METADATA: " " * ((1 << 24) + 1)}})
    expect_refusal_within(path, f"metadata/{METADATA}: a text of 16777217 bytes")


# ---------------------------------------------------------------- many, deep, in circles


def test_too_many_nodes(tmp_path):
    path = small(tmp_path / "m.nir")
    with h5py.File(path, "r+") as file:
        for index in range(structure.MAX_NODES):
            fill(file.create_group(f"node/nodes/n{index}"), {"type": "I", "r": 1.0})
    expect_refusal_within(path, "node/nodes: more than 1024 nodes")


def test_too_many_edges(tmp_path):
    edges = [("x", "y")] * (structure.MAX_EDGES + 1)
    path = write_raw(tmp_path / "m.nir", {"x": image(1), "y": output(1)}, edges)
    expect_refusal_within(path, r"edges: shape \(8193, 2\); allowed: 1 to 16384 texts")
    # Many graphs of many edges, and edges that multiply through a graph that only passes on.
    names = [f"n{index}" for index in range(128)]
    many = graph({"i": image(1), "o": output(1), **{n: {"type": "I", "r": 1.0} for n in names}}, _dense(names[:90]))
    path = write_raw(
        tmp_path / "n.nir", {"x": image(1), "a": many, "b": many, "y": output(1)}, chain("x", "a", "b", "y")
    )
    expect_refusal_within(path, "edges: 16[0-9]* edges so far; allowed: at most 8192")
    edges = [(name, "g") for name in names[:65]] + [("g", name) for name in names]
    nothing = graph({"i": image(1), "o": output(1)}, [("i", "o")])
    nodes = {"x": image(1), "g": nothing, "y": output(1), **{n: {"type": "I", "r": 1.0} for n in names}}
    path = write_raw(tmp_path / "o.nir", nodes, edges)
    expect_refusal_within(path, r"edges: more than 8192 edges through g\.")


def _dense(names):
    return [(one, other) for one in names for other in names]


def test_the_longest_chain_is_read_soon(tmp_path):
    """Every node that is allowed, in one row, and every one of them in one loop."""
    names = [f"n{index:04}" for index in range(structure.MAX_NODES - 2)]
    nodes = {"x": image(1), **{n: {"type": "Scale", "scale": np.ones(1)} for n in names}, "y": output(1)}
    path = write_raw(tmp_path / "m.nir", nodes, (*chain("x", *names, "y"), (names[-1], names[0])))
    start = time.process_time()
    with pytest.raises(FormatError, match=r"a loop without a delay: n0000 -> n0001.* -> \.\.\. -> n0000;"):
        read(path, recurrent_delay=0)
    assert len(read(path).graph.nodes) == structure.MAX_NODES + 1  # the delay and the readout, not the output
    assert time.process_time() - start < 20


def nested(depth):
    inner = {"i": image(3), "lif": lif(3), "o": output(3)}
    found = graph(inner, chain("i", "lif", "o"))
    for _ in range(depth):
        found = graph({"i": image(3), "g": found, "o": output(3)}, chain("i", "g", "o"))
    return found


def test_deep_nesting(tmp_path):
    for depth in (structure.MAX_DEPTH - 1, structure.MAX_DEPTH, 200):
        nodes = {"x": image(4), "fc": affine(WEIGHT), "g": nested(depth), "y": output(3)}
        path = write_raw(tmp_path / "m.nir", nodes, chain("x", "fc", "g", "y"))
        if depth < structure.MAX_DEPTH:
            assert read(path).graph.output.name.endswith(".lif")
        else:
            expect_refusal_within(path, "graphs nested 9 deep; allowed: at most 8")


def test_graphs_that_hold_themselves(tmp_path):
    """HDF5 groups may have several names: a graph in itself, and a tree of many from few."""
    path = write_raw(tmp_path / "m.nir", {"x": image(3), "g": nested(1), "y": output(3)}, chain("x", "g", "y"))
    with h5py.File(path, "r+") as file:
        file["node/nodes/g/nodes/g"].parent["again"] = file["node/nodes/g"]
    expect_refusal_within(path, "nested 9 deep|more than 1024 nodes")
    path = write_raw(tmp_path / "n.nir", {"x": image(3), "g": nested(5), "y": output(3)}, chain("x", "g", "y"))
    with h5py.File(path, "r+") as file:
        group = file["node/nodes/g"]
        while "g" in group["nodes"]:
            for index in range(20):
                group["nodes"][f"g{index}"] = group["nodes/g"]
            group = group["nodes/g"]
    expect_refusal_within(path, "more than 1024 nodes")


# ---------------------------------------------------------------- elsewhere, and of other types


@pytest.mark.parametrize("name", ["node", "node/nodes", "node/nodes/fc", "node/nodes/fc/weight", "node/edges"])
@pytest.mark.parametrize("link", [h5py.SoftLink("/elsewhere"), h5py.ExternalLink("other.nir", "/node")])
def test_links_are_not_followed(tmp_path, name, link):
    small(tmp_path / "other.nir")
    path = small(tmp_path / "m.nir")
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = link
    expect_refusal_within(path, f"{name}: a soft or external link")


def test_data_in_other_files(tmp_path):
    path = small(tmp_path / "m.nir")
    (tmp_path / "secret").write_bytes(bytes(48))
    with h5py.File(path, "r+") as file:
        del file["node/nodes/fc/weight"]
        outside = [(str(tmp_path / "secret"), 0, 48)]
        file.create_dataset("node/nodes/fc/weight", (3, 4), "f4", external=outside)
    expect_refusal_within(path, "fc/weight: stored in another file")
    with h5py.File(path, "r+") as file:
        del file["node/nodes/fc/weight"]
        virtual = h5py.VirtualLayout((3, 4), "f4")
        virtual[:] = h5py.VirtualSource(str(tmp_path / "secret"), "w", (3, 4))
        file["node/nodes/fc"].create_virtual_dataset("weight", virtual)
    expect_refusal_within(path, "fc/weight: stored in another file")


TEXT = h5py.string_dtype()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("nodes/fc/weight", np.full((3, 4), "a", dtype=object), "fc/weight: dtype object; allowed: numbers"),
        ("nodes/fc/weight", np.zeros((3, 4), "S4"), "fc/weight: dtype |S4"),
        ("nodes/fc/weight", np.zeros((3, 4), [("a", "f4"), ("b", "i4")]), "fc/weight: dtype "),
        ("nodes/fc/weight", h5py.Empty("f4"), "fc/weight: shape"),
        ("nodes/fc/weight", np.zeros((0, 4), "f4"), "fc/weight: shape .0, 4."),
        ("nodes/fc/type", np.ones(3), "fc/type: dtype float64"),
        ("nodes/fc/type", np.array(["Affine", "LIF"], dtype=object), r"fc/type: shape \(2,\); allowed: one short text"),
        ("nodes/fc/type", np.bytes_(b"\xff\xfe"), "fc/type: .*ASCII text"),
        ("nodes/fc/type", np.zeros((), "S1000"), "fc/type: dtype .*one short text"),
        ("nodes/fc/type", h5py.Empty(TEXT), "fc/type: shape"),
        ("edges", np.ones((2, 2)), "edges: dtype float64"),
        ("edges", np.zeros((2, 3), "S2"), r"edges: shape \(2, 3\); allowed: \(edges, 2\)"),
        ("edges", np.zeros(4, "S2"), r"edges: shape \(4,\)"),
        ("edges", np.zeros((0, 2), "S2"), r"edges: shape \(0, 2\)"),
        ("edges", np.full((2, 2), b"\xff", "S2"), "edges: .*UTF-8 text"),
        ("nodes", np.ones(3), "nodes: a dataset; allowed: a group"),
        ("nodes/fc", np.ones(3), "nodes/fc: a dataset; allowed: a group"),
        ("extra", np.ones(3), "extra: a field that is not understood"),
        ("metadata", np.ones(3), "metadata: a dataset"),
        ("metadata/stars_deploy", np.ones(3), "stars_deploy: dtype float64"),
        ("metadata/stars_deploy/deeper", np.ones(3), "stars_deploy: a group; allowed: a dataset"),
    ],
)
def test_other_types_are_refused_by_name(tmp_path, name, value, message):
    path = small(tmp_path / "m.nir")
    with h5py.File(path, "r+") as file:
        group = file["node"]
        if name in group:
            del group[name]
        is_text = isinstance(value, np.ndarray) and value.dtype.kind == "O"
        group.create_dataset(name, data=value, **({"dtype": TEXT} if is_text else {}))
    expect_refusal_within(path, message)


def test_texts_in_chunks_are_refused(tmp_path):
    """Their claimed lengths could not be checked before HDF5 allocates them."""
    path = small(tmp_path / "m.nir")
    with h5py.File(path, "r+") as file:
        edges = file["node/edges"][()]
        del file["node/edges"]
        file["node"].create_dataset("edges", data=edges, dtype=TEXT, chunks=True)
    expect_refusal_within(path, "edges: texts in chunks")


def test_edges_of_fixed_length_are_read(tmp_path):
    path = small(tmp_path / "m.nir")
    with h5py.File(path, "r+") as file:
        put(file, "node/edges", np.array(file["node/edges"].asstr()[()], dtype="S8"))
    assert read(path).graph.output.name == "lif"


def test_filters_of_others_are_not_loaded(tmp_path):
    path = small(tmp_path / "m.nir")
    with h5py.File(path, "r+") as file:
        put(file, "node/nodes/fc/weight", np.zeros((3, 4)), compression="lzf")
    expect_refusal_within(path, "fc/weight: HDF5 filters")


@pytest.mark.parametrize("name", ["extra", "layer"])
def test_other_members_of_the_file(tmp_path, name):
    path = small(tmp_path / "m.nir")
    with h5py.File(path, "r+") as file:
        file.create_group(name)
    expect_refusal_within(path, f"m.nir: {name}: a field that is not understood")


# ---------------------------------------------------------------- damage


def test_truncated_files(written, tmp_path):
    whole = written.read_bytes()
    path = tmp_path / "cut.nir"
    for end in sorted({1, 7, 8, 100, *range(0, len(whole), 997), len(whole) - 1} - {0}):
        path.write_bytes(whole[:end])
        with pytest.raises(FormatError):
            read_nir(path)


def test_damaged_files(tmp_path, written):
    """Bytes that are overwritten, here and in a stranger's file: an error or another network, soon; never a crash."""
    rng, path = np.random.default_rng(1), tmp_path / "damaged.nir"
    start = time.process_time()
    for whole, options in ((written.read_bytes(), {}), (everything(tmp_path / "e.nir").read_bytes(), {"dt": 1e-4})):
        refused = 0
        for _ in range(200):
            damaged = bytearray(whole)
            for position in rng.integers(0, len(whole), rng.integers(1, 6)):
                damaged[position] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                read_nir(path, timesteps=2, **options)
            except FormatError:
                refused += 1
        assert 20 < refused < 200
    assert time.process_time() - start < 60


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (None, ArtifactError, "does not exist"),
        (b"", ArtifactError, "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", ArtifactError, "LFS pointer.*git lfs pull"),
        (b"PK\x03\x04 something else entirely", FormatError, "not a readable NIR file"),
    ],
)
def test_files_that_are_something_else(tmp_path, given, error, message):
    path = tmp_path / "m.nir"
    if given is not None:
        path.write_bytes(given)
    with pytest.raises(error, match=message):
        read_nir(path)


def test_an_hdf5_file_of_something_else(tmp_path):
    with h5py.File(tmp_path / "m.nir", "w") as file:
        file["version"] = "1.0.8"
    with pytest.raises(FormatError, match=r"m\.nir: node: is missing"):
        read_nir(tmp_path / "m.nir")


def test_texts_beyond_the_end_of_the_file(tmp_path):
    path = small(tmp_path / "m.nir")
    with h5py.File(path) as file:
        guard = hdf5_guard.GuardedGroup(file=str(tmp_path / "short"), name="", node=file["node"], file_size=1 << 20)
        (tmp_path / "short").write_bytes(b"short")
        with pytest.raises(FormatError, match="edges: texts beyond the end of the file"):
            guard.texts("edges", 100)


def test_neurons_are_counted_over_all_populations(tmp_path, monkeypatch):
    path = tmp_path / "m.nir"
    write_nir(recurrent(), None, path)
    monkeypatch.setattr(content, "MAX_NEURONS", 16)
    with pytest.raises(FormatError, match="h: 17 neurons so far; allowed: at most 16 in all"):
        read_nir(path)
