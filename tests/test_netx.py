"""The NetX file: written and read back equal; whatever cannot be meant exactly is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stars_deploy.errors import ArtifactError, FormatError, TargetError
from stars_deploy.precision import Precision
from stars_deploy.quantized import (
    ConvProjection,
    DenseProjection,
    Population,
    QuantizedGraph,
    QuantizedInput,
    find_difference,
)
from stars_deploy.targets import TARGETS, find_target, hdf5_guard
from stars_deploy.targets.netx import read_netx, write_netx
from stars_deploy.targets.netx_limits import executed_dense, largest_activation
from stars_deploy.targets.reference import run_reference


@pytest.fixture(scope="module")
def written(small_chain, tmp_path_factory):
    path = tmp_path_factory.mktemp("netx") / "model.net"
    write_netx(small_chain, path)
    return path


@pytest.fixture
def edited(written, tmp_path):
    """``edited(change)``: a copy of the file after ``change(h5py.File)``."""

    def edit(change):
        path = tmp_path / "edited.net"
        shutil.copy(written, path)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return edit


def put(name, value, **options):
    """A change that replaces dataset `name`."""

    def change(file):
        if name in file:
            del file[name]
        file.create_dataset(name, data=value, **options)

    return change


# ---------------------------------------------------------------- written and read back


@st.composite
def chains(draw):
    layers = [
        {
            "channels": 2 * draw(st.integers(1, 3)),
            "kernel": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
            "stride": (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
            "padding": (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
            "dilation": (1, 1) if index else (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
            "groups": draw(st.sampled_from([1, 2])),
        }
        for index in range(draw(st.integers(0, 3)))
    ]
    options = {"decay_u": draw(st.integers(0, 4096)), "decay_v": draw(st.integers(0, 4096))}
    shape = (2, draw(st.integers(4, 7)), draw(st.integers(4, 7)))
    return draw(st.integers(0, 99)), layers, {**options, "shape": shape, "timesteps": draw(st.integers(1, 9))}


@settings(max_examples=40, deadline=None)
@given(chain=chains())
def test_round_trip(chain, make_chain, tmp_path_factory):
    seed, layers, options = chain
    graph = make_chain(seed, layers, **options)
    path = tmp_path_factory.getbasetemp() / "round_trip.net"
    write_netx(graph, path)
    back = read_netx(path)
    assert find_difference(graph, back) == ""
    assert back.labels == graph.labels
    assert back.input.scale == graph.input.scale
    assert [p.scale for p in back.populations] == [p.scale for p in graph.populations]


def test_round_trip_of_other_precisions_and_a_flat_input(tmp_path):
    graph = QuantizedGraph(
        input=QuantizedInput(name="x", shape=(3,), precision=Precision(bits=1, signed=False, rounding="truncate")),
        populations=(Population(name="ü", shape=(2,), vth=0, bias=np.array([-(2**15), 2**15 - 1])),),
        projections=(
            DenseProjection(
                name="w",
                source="x",
                target="ü",
                weight=np.array([[1, -2, 0], [3, 254, -256]]),
                precision=Precision(bits=9, signed=True, exponent=-3),
            ),
        ),
        timesteps=1,
    )
    write_netx(graph, tmp_path / "m.net")
    with h5py.File(tmp_path / "m.net") as file:
        assert sorted(file["layer"]) == ["0", "1"]  # nothing to flatten
    assert find_difference(graph, read_netx(tmp_path / "m.net")) == ""


def test_find_difference_makes_same_bytes(small_chain, written, tmp_path):
    write_netx(small_chain, tmp_path / "again.net")
    assert (tmp_path / "again.net").read_bytes() == written.read_bytes()


def test_layout_is_what_lava_reads(small_chain, written):
    with h5py.File(written) as file:
        layers = file["layer"]
        kinds = [bytes(layers[str(index)]["type"][0]).decode() for index in range(len(layers))]
        assert kinds == ["input", "conv", "conv", "flatten", "dense"]
        assert sorted(layers["0"]) == ["shape", "type"]
        first, population = layers["1"], small_chain.populations[0]
        assert first["shape"][:].tolist() == list(population.shape)  # C, H, W; Lava reverses it
        assert first["bias"].shape == population.shape[::-1]
        assert first["bias"][2, 1, 3] == population.bias[3, 1, 2]
        assert first["weight"].shape == (4, 2, 3, 2)
        assert first["stride"][:].tolist() == [2, 1]
        assert first["padding"][:].tolist() == [1, 0]
        assert {name: first["neuron"][name][()] for name in ("iDecay", "vDecay", "vThMant", "refDelay")} == {
            "iDecay": 4096,
            "vDecay": 1024,
            "vThMant": 400,
            "refDelay": 1,
        }
        assert layers["4"]["neuron"]["vThMant"][()] == 2**17
        assert layers["4"]["bias"][:].tolist() == small_chain.output.bias.tolist()


def test_executes_what_the_file_says(small_chain, written, make_images, edited):
    images = make_images(small_chain, 5)
    expected = run_reference(small_chain.with_timesteps(3), images)
    got = find_target("netx").execute(written, images, 3)
    assert (got.potential == expected.potential).all()
    other = edited(put("layer/4/bias", [1000, 0, 0]))
    assert (find_target("netx").execute(other, images, 3).potential != expected.potential).any()


# ---------------------------------------------------------------- what the format cannot carry


def with_projection(graph, index, **fields):
    projections = list(graph.projections)
    projections[index] = replace(projections[index], **fields)
    return replace(graph, projections=tuple(projections))


def with_readout(graph, weight):
    return with_projection(graph, -1, weight=weight, precision=Precision(bits=24, signed=True))


def residual(graph):
    twin = replace(graph.projections[1], name="shortcut")
    return replace(graph, projections=(*graph.projections, twin))


def branch(graph):
    size = int(np.prod(graph.populations[0].shape))
    jump = replace(graph.projections[-1], source="conv0", weight=np.ones((3, size), int))
    return replace(graph, projections=(*graph.projections[:-1], jump))


def wide_groups(_graph):
    weight = np.ones((128, 1, 1, 1), int)
    bias = np.zeros((128, 1, 1), int)
    projection = ConvProjection(name="depthwise", source="x", target="n", weight=weight, groups=128)
    return QuantizedGraph(
        input=QuantizedInput(name="x", shape=(128, 1, 1)),
        populations=(Population(name="n", shape=(128, 1, 1), bias=bias),),
        projections=(projection,),
        timesteps=1,
    )


def plane_input(_graph):
    projection = DenseProjection(name="w", source="plane", target="n", weight=np.ones((1, 6), int))
    return QuantizedGraph(
        input=QuantizedInput(name="plane", shape=(2, 3)),
        populations=(Population(name="n", shape=(1,), bias=np.zeros(1, int)),),
        projections=(projection,),
        timesteps=1,
    )


def readout_of(value, other=0):
    def change(graph):
        weight = np.full(graph.projections[-1].weight.shape, other)
        weight[1, 2] = value
        return with_readout(graph, weight)

    return change


def heavy_first(graph):
    return with_projection(
        graph, 0, weight=graph.projections[0].weight * 2**13, precision=Precision(bits=24, signed=True)
    )


def leaky(graph):
    graph = with_projection(
        graph, 0, weight=graph.projections[0].weight * 2**8, precision=Precision(bits=24, signed=True)
    )
    return replace(graph, populations=(replace(graph.populations[0], decay_u=4095), *graph.populations[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (residual, "conv1: 2 projections enter it.*shortcut"),
        (lambda graph: with_projection(graph, 1, delay=1), "conv1.w: delay of 1"),
        (branch, "readout.w: comes from conv0.*conv1"),
        (wide_groups, "depthwise: .*groups of 128"),
        (plane_input, r"plane: shape \(2, 3\)"),
        (readout_of(0), "readout.w: weights from 0 to 0"),
        (readout_of(256), "readout.w: weights from 0 to 256"),
        (readout_of(-64), r"readout.w: weight\[1, 2\] = -64, which acts as -32"),
        (readout_of(255, -1), r"readout.w: weight\[1, 2\] = 255, which acts as 254"),
        (readout_of(-257, 1), r"readout.w: weight\[1, 2\] = -257, which acts as -256"),
        (readout_of(-256, -1), r"readout.w: weight\[1, 2\] = -256, which acts as -255"),
        (heavy_first, r"conv0.w: activations of up to \d+ .at most 8388607"),
        (leaky, r"conv0.w: activations of up to \d+ .at most 262144"),
    ],
)
def test_writer_refuses(small_chain, tmp_path, change, message):
    with pytest.raises(TargetError, match=message):
        write_netx(change(small_chain), tmp_path / "m.net")
    assert list(tmp_path.iterdir()) == []


def test_limits_count_a_spike_once_and_a_pixel_by_its_payload(small_chain, tmp_path):
    """72 weights of 254 are far from the limit for spikes, and would be beyond it for 4-bit pixels."""
    graph = with_readout(small_chain, np.full(small_chain.projections[-1].weight.shape, 254))
    graph = replace(graph, populations=(*graph.populations[:-1], replace(graph.output, decay_u=3000)))
    write_netx(graph, tmp_path / "m.net")
    assert find_difference(graph, read_netx(tmp_path / "m.net")) == ""


def test_largest_activation_counts_one_sign_at_a_time():
    weight = np.array([[5, -3, 4], [-8, -1, 2]])
    assert largest_activation(DenseProjection(name="w", source="a", target="b", weight=weight), 3) == 27


@pytest.mark.parametrize("weight", [[[127, -128]], [[254, -256]], [[200, -3]], [[-200, -4]], [[255, 1]], [[-7, 0]]])
def test_dense_that_lava_keeps(weight):
    assert (executed_dense(np.array(weight)) == weight).all()


# ---------------------------------------------------------------- what the reader refuses


def rename_layer(file):
    file.move("layer/4", "layer/5")


def remove(name):
    def change(file):
        del file[name]

    return change


def soft_link(file):
    file["layer/1/stride"] = h5py.SoftLink("/layer/2/stride")


def external_link(file):
    file["layer/1/stride"] = h5py.ExternalLink("/etc/passwd", "/x")


def linked_group(file):
    file.move("layer/4", "elsewhere")
    file["layer/4"] = h5py.SoftLink("/elsewhere")
    del file["stars_deploy"]


def external_storage(file):
    file["layer/1"].create_dataset("groups", (1,), "i1", external=[("/etc/passwd", 0, 1)])


def virtual(file):
    layout = h5py.VirtualLayout((1,), "i8")
    layout[0:1] = h5py.VirtualSource("other.h5", "x", shape=(1,))
    file["layer/1"].create_virtual_dataset("groups", layout)


def unallocated(file):
    file["layer/1"].create_dataset("weight", (2**20, 2**20), "i1", chunks=(2**10, 2**10))


def foreign_filter(file):
    file["layer/1"].create_dataset("weight", data=np.zeros((4, 2, 3, 2)), compression="lzf")


def bomb(file):
    file["layer/1"].create_dataset("weight", (2**25,), "i1", chunks=(2**10,))


def first(change, name):
    def both(file):
        del file[name]
        change(file)

    return both


def huge_population(file):
    for layer in ("0", "1"):
        put(f"layer/{layer}/shape", [2 if layer == "0" else 4, 2**20, 2**20])(file)


def drop_flatten(file):
    del file["layer/3"]
    file.move("layer/4", "layer/3")


def drop_readout(file):
    del file["layer/4"]


def only_input(file):
    for index in "1234":
        del file[f"layer/{index}"]


def flatten_twice(file):
    file.move("layer/4", "layer/5")
    file.copy("layer/3", "layer/4")


def metadata(**fields):
    def change(file):
        content = {**json.loads(bytes(file["stars_deploy"][:])), **fields}
        put("stars_deploy", np.frombuffer(json.dumps(content).encode(), np.uint8))(file)

    return change


FEW_LAYERS = [{"projection": "a", "population": "b", "scale": 1.0, "precision": {}}]
BITS = {"bits": 8, "signed": "no", "exponent": 0, "rounding": "nearest"}
NEURON = "layer/1/neuron"

REFUSED = [
    (put("layer/1/type", np.array([b"pool"])), "layer/1/type: 'pool', a pooling layer"),
    (put("layer/1/type", np.array([b"concat"])), "layer/1/type: 'concat', a concatenation"),
    (put("layer/1/type", np.array([b"residual"])), "layer/1/type: 'residual', a layer that Lava skips in silence"),
    (put("layer/4/type", np.array([b"dense_rec"])), "layer/4/type: 'dense_rec', a recurrent layer"),
    (put("layer/1/type", 7), "layer/1/type: dtype int64"),
    (put("layer/1/type", np.array([b"conv", b"conv"])), "layer/1/type: .*shape"),
    (put("layer/1/type", np.array([b"\xff\xfe"])), "layer/1/type: .*ASCII"),
    (put("layer/0/type", np.array([b"conv"])), "layer/0/type: conv; allowed: input"),
    (put("layer/0/neuron/type", b"CUBA"), "layer/0/neuron: an input layer with neurons of its own.*plain input"),
    (put("layer/0/bias", 3), "layer/0/bias: a field that is not understood"),
    (put("layer/0/shape", [2, 8]), r"layer/0/shape: \(2, 8\)"),
    (put("layer/0/shape", [2, 0, 5]), r"layer/0/shape: \(2, 0, 5\)"),
    (put("layer/0/shape", [3, 8, 5]), "impossible network.*3 input channels"),
    (put("layer/1/shape", [4, 4, 5]), "layer/1/bias: shape"),
    (put("layer/1/shape", [4]), r"layer/1/shape: \(4,\)"),
    (huge_population, "layer/0/shape: .*neurons"),
    (put(f"{NEURON}/type", b"SDNN"), "layer/1/neuron/type: 'SDNN' .sigma-delta"),
    (put(f"{NEURON}/type", b"RF_PHASE"), "layer/1/neuron/type: 'RF_PHASE' .resonate-and-fire"),
    (put(f"{NEURON}/type", b"ALIF"), "layer/1/neuron/type: 'ALIF' .unknown"),
    (put(f"{NEURON}/refDelay", 2), "layer/1/neuron/refDelay: 2"),
    (put(f"{NEURON}/wgtExp", 1), "layer/1/neuron/wgtExp: 1"),
    (put(f"{NEURON}/messageBits", 8), "layer/1/neuron/messageBits: 8"),
    (put(f"{NEURON}/gradedSpike", True), "layer/1/neuron/gradedSpike: 1"),
    (put(f"{NEURON}/iDecay", [4096] * 4), "layer/1/neuron/iDecay: 4 values; allowed: one value"),
    (put(f"{NEURON}/iDecay", 4097), "conv0.decay_u.*4097"),
    (put(f"{NEURON}/vThMant", -1), "conv0.vth.*-1"),
    (put(f"{NEURON}/adaptation", 1), "layer/1/neuron/adaptation: a field that is not understood"),
    (put("layer/4/delay", [1, 2, 3]), "layer/4/delay: a field that is not understood"),
    (put("layer/4/weight_rec", np.eye(3)), "layer/4/weight_rec: a field that is not understood"),
    (put("layer/1/weight", np.full((4, 2, 3, 2), np.nan)), "layer/1/weight: NaN"),
    (put("layer/1/weight", np.full((4, 2, 3, 2), 0.5)), "layer/1/weight: values from 0.5"),
    (put("layer/1/weight", np.full((4, 2, 3, 2), 2**40)), "layer/1/weight: values from 1099511627776"),
    (put("layer/1/weight", np.ones((4, 2, 3))), r"layer/1/weight: shape \(4, 2, 3\)"),
    (put("layer/1/weight", np.full((4, 2, 3, 2), 2**14)), "impossible network.*conv0.w.weight"),
    (put("layer/1/weight", h5py.Empty("i4")), "layer/1/weight: shape None"),
    (put("layer/1/weight", np.zeros(3, [("x", "i4")])), "layer/1/weight: dtype"),
    (put("layer/1/weight", b"text"), "layer/1/weight: dtype"),
    (put("layer/4/weight", np.zeros((3, 40))), "layer/4/weight: weights from 0 to 0"),
    (put("layer/4/weight", np.eye(3)), "readout.w"),
    (put("layer/1/bias", np.zeros(3)), r"layer/1/bias: shape \(3,\)"),
    (put("layer/1/bias", np.full(4, 2**15)), "conv0.bias.*32768"),
    (put("layer/1/stride", [1, 1, 1]), "layer/1/stride: 3 values"),
    (put("layer/1/stride", [0, 1]), "impossible network.*stride"),
    (put("layer/1/groups", 3), "impossible network.*groups 3"),
    (put("layer/1/neuron2", 3), "layer/1/neuron2: a field"),
    (put("extra", 1), "extra: a field that is not understood"),
    (remove("layer"), "layer: is missing"),
    (remove("layer/0"), "members"),
    (remove("layer/1/type"), "layer/1/type: is missing"),
    (remove("layer/1/shape"), "layer/1/shape: is missing"),
    (remove("layer/1/weight"), "layer/1/weight: is missing"),
    (remove("layer/1/stride"), "layer/1/stride: is missing"),
    (remove("layer/1/groups"), "layer/1/groups: is missing"),
    (remove("layer/1/neuron"), "layer/1/neuron: is missing"),
    (remove(f"{NEURON}/vThMant"), "layer/1/neuron/vThMant: is missing"),
    (rename_layer, "members"),
    (first(put("layer/1/neuron", 1), NEURON), "layer/1/neuron: a dataset; allowed: a group"),
    (first(lambda file: file.create_group("layer/1/groups"), "layer/1/groups"), "layer/1/groups: a group"),
    (first(soft_link, "layer/1/stride"), "layer/1/stride: a soft or external link"),
    (first(external_link, "layer/1/stride"), "layer/1/stride: a soft or external link"),
    (linked_group, "elsewhere: a field that is not understood"),
    (first(external_storage, "layer/1/groups"), "layer/1/groups: stored in another file"),
    (first(virtual, "layer/1/groups"), "layer/1/groups: stored in another file"),
    (first(unallocated, "layer/1/weight"), "layer/1/weight: shape .*1 to 67108864 values"),
    (first(foreign_filter, "layer/1/weight"), "layer/1/weight: HDF5 filters .*without plug-ins"),
    (first(bomb, "layer/1/weight"), "layer/1/weight: shape .*claims more than the 0 bytes"),
    (drop_flatten, "layer/3/type: dense on a source of shape"),
    (drop_readout, "ends without a layer of neurons"),
    (only_input, "ends without a layer of neurons"),
    (flatten_twice, "layer/4/type: flatten of"),
    (metadata(version=2), "stars_deploy: schema .*2"),
    (metadata(timesteps="4"), "stars_deploy: timesteps = '4'"),
    (metadata(timesteps=0), "stars_deploy: 0 timesteps"),
    (metadata(timesteps=2**40), "stars_deploy: 1099511627776 timesteps"),
    (metadata(labels=[1]), "stars_deploy: labels"),
    (metadata(layers=FEW_LAYERS), "stars_deploy: bits = None"),
    (metadata(layers=[]), "stars_deploy: describes 0 layers"),
    (metadata(input={"name": "image", "scale": float("inf"), "precision": {**BITS, "signed": False}}), "scale inf"),
    (metadata(input={"name": "image", "scale": 1.0, "precision": BITS}), "stars_deploy: signed = 'no'"),
    (metadata(input={"name": "conv0", "scale": 1, "precision": {**BITS, "signed": False}}), "unique names"),
    (put("stars_deploy", np.frombuffer(b"{not json", np.uint8)), "not a readable NetX file"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=range(len(REFUSED)))
def test_reader_refuses(edited, change, message):
    with pytest.raises(FormatError, match=message):
        read_netx(edited(change))


def test_reader_refuses_more_description_than_layers(edited):
    def change(file):
        layers = json.loads(bytes(file["stars_deploy"][:]))["layers"]
        metadata(layers=[*layers, {**layers[0], "population": "more", "projection": "more.w"}])(file)

    with pytest.raises(FormatError, match="describes another number of layers than 3"):
        read_netx(edited(change))


def test_reader_refuses_data_beyond_the_end_of_the_file(tmp_path):
    """A contiguous dataset whose header claims far more than the file holds is not allocated."""
    path = tmp_path / "m.net"
    with h5py.File(path, "w") as file:
        group = file.create_group("layer/0")
        group["type"] = np.array([b"input"])
        group.create_dataset("shape", (2**18,), "i8")
        group["shape"][-1] = 1
    path.write_bytes(path.read_bytes()[: 2**14])
    with pytest.raises(FormatError):
        read_netx(path, timesteps=1)
    with h5py.File(path, "w") as file:
        file["a"] = np.arange(4)
        guard = hdf5_guard.GuardedGroup(file="f", name="", node=file, file_size=16)
        with pytest.raises(FormatError, match="claims more than the 32 bytes stored in a file of 16"):
            guard.numbers("a")


@pytest.mark.parametrize("chunks", [(4, 4), (2**40,)])
def test_reader_refuses_chunks_that_crash_hdf5(chunks):
    """A damaged chunk header (found by flipping bits) makes HDF5 itself allocate without end."""
    guard = hdf5_guard.GuardedGroup(file="f", name="layer/1", node=None, file_size=100)
    with pytest.raises(FormatError, match=r"layer/1/bias: chunks of .*copy or write it again"):
        guard._check_chunks("bias", SimpleNamespace(chunks=chunks, shape=(4,), ndim=1))


def test_no_layers_at_all(tmp_path):
    with h5py.File(tmp_path / "m.net", "w") as file:
        file.create_group("layer")
    with pytest.raises(FormatError, match="no layers"):
        read_netx(tmp_path / "m.net", timesteps=1)


# ---------------------------------------------------------------- damaged files


def test_truncated_files(written, tmp_path):
    content = written.read_bytes()
    path = tmp_path / "cut.net"
    for end in sorted({1, 7, 8, 100, *range(0, len(content), 251), len(content) - 1} - {0}):
        path.write_bytes(content[:end])
        with pytest.raises(FormatError):
            read_netx(path)


def test_flipped_bits_never_pass_for_something_impossible(small_chain, written, tmp_path, make_images):
    """Either a FormatError, or a graph that its constructors accept and the reference runs."""
    content = bytearray(written.read_bytes())
    rng = np.random.default_rng(0)
    images, path = make_images(small_chain, 2), tmp_path / "flipped.net"
    refused = changed = 0
    start = time.monotonic()
    for position in rng.choice(len(content), 400, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            graph = read_netx(path)
        except FormatError:
            refused += 1
            continue
        if find_difference(small_chain, graph) and graph.input.shape == images.shape[1:]:
            changed += 1
            run_reference(graph.with_timesteps(1), np.minimum(images, graph.input.precision.high))
    assert refused > 30
    assert changed < 30  # checksums catch the arrays; names, scalars and timesteps carry none
    assert time.monotonic() - start < 60


def test_flipped_weights_are_refused(written, tmp_path):
    with h5py.File(written) as file:
        dataset = file["layer/2/weight"]
        chunk = dataset.id.get_chunk_info(0)
    content = bytearray(written.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 4
    (tmp_path / "m.net").write_bytes(content)
    with pytest.raises(FormatError, match="not a readable NetX file"):
        read_netx(tmp_path / "m.net")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, ArtifactError, "does not exist"),
        (b"", ArtifactError, "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            ArtifactError,
            "Git-LFS pointer.*git lfs pull",
        ),
        (b"PK\x03\x04 something else entirely", FormatError, "not a readable NetX file"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, error, message):
    path = tmp_path / "m.net"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        read_netx(path)


FULL_DISK = """
import resource, signal, sys
from stars_deploy.errors import ArtifactError
from stars_deploy.targets.netx import read_netx, write_netx
graph = read_netx(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
try:
    write_netx(graph.with_timesteps(9), sys.argv[1])
except ArtifactError as error:
    print(error)
"""


def test_full_disk_leaves_the_old_file(written, tmp_path):
    path = tmp_path / "model.net"
    shutil.copy(written, path)
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=True)
    assert "could not be written" in done.stdout and "free some space" in done.stdout
    assert path.read_bytes() == written.read_bytes()
    assert [item.name for item in tmp_path.iterdir()] == ["model.net"]


# ---------------------------------------------------------------- strangers' files


def strangers(file):
    """Make the file look like SLAYER's: no metadata, scalars, per-channel bias, no neuron on the readout."""
    del file["stars_deploy"]
    file["simulation/tSample"] = 16
    put("layer/1/bias", np.array([1.0, -2.0, 3.0, 4.0], np.float32))(file)
    put("layer/1/weight", file["layer/1/weight"][:].astype(np.float32)[..., np.newaxis])(file)
    put("layer/2/padding", [0, 1])(file)
    put("layer/2/stride", 1)(file)
    put("layer/2/dilation", np.array([1]))(file)
    put("layer/1/neuron/type", "LOIHI")(file)
    for name, value in {"theta": 1600, "tauRho": 0.5, "scaleRho": 10.0, "gradedSpike": False}.items():
        file[f"layer/1/neuron/{name}"] = value
    put("layer/4/shape", [3, 1, 1])(file)
    put("layer/4/weight", file["layer/4/weight"][:].reshape(-1))(file)
    del file["layer/4/neuron"], file["layer/4/bias"]


def test_reads_a_strangers_file(edited, small_chain):
    path = edited(strangers)
    with pytest.raises(FormatError, match=r"does not say how many timesteps.*--timesteps"):
        read_netx(path)
    graph = read_netx(path, timesteps=6, input_bits=4)
    assert graph.timesteps == 6
    assert graph.input.precision == Precision(bits=4, signed=False)
    assert [p.name for p in graph.populations] == ["conv1", "conv2", "dense3"]
    assert graph.populations[0].bias[:, 1, 1].tolist() == [1, -2, 3, 4]
    readout = graph.output
    assert (readout.decay_u, readout.decay_v, readout.fires) == (0, 4096, False)
    assert not readout.bias.any()
    for ours, theirs in zip(small_chain.projections, graph.projections, strict=True):
        assert (ours.weight == theirs.weight).all()
    assert graph.projections[1].stride == (1, 1)
    with pytest.raises(FormatError, match=r"impossible network.*timesteps"):
        read_netx(path, timesteps=0)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "shape", "populations"), [("tiny", [24, 6, 6], 1), ("pilotnet_lif", [24, 32, 99], 8)])
def test_real_netx_files(shared, tmp_path, name, shape, populations):
    original = shared / "networks" / f"{name}.net"
    with pytest.raises(FormatError, match="layer/0/neuron: an input layer with neurons of its own"):
        read_netx(original, timesteps=16)
    path = tmp_path / "behind.net"  # the network behind the input's neurons, which send single bits
    with h5py.File(original) as source, h5py.File(path, "w") as file:
        layers = file.create_group("layer")
        for index in range(2, len(source["layer"])):
            source.copy(f"layer/{index}", layers, str(index - 1))
        layers["0/type"] = np.array([b"input"])
        layers["0/shape"] = shape
    graph = read_netx(path, timesteps=2, input_bits=1)
    assert len(graph.populations) == populations
    images = np.random.default_rng(0).integers(0, 2, (2, *shape))
    record = run_reference(graph, images)
    assert record.spikes[graph.populations[0].name].any()


# ---------------------------------------------------------------- the registry


def test_targets_by_name():
    assert list(TARGETS) == ["netx", "lava"] and len(TARGETS) == 2
    assert {name: TARGETS[name].name for name in TARGETS} == {"netx": "netx", "lava": "lava"}
    assert TARGETS["netx"].availability().ok
    for target in TARGETS.values():
        assert target.filename == "model.net" and target.summary
    with pytest.raises(TargetError, match=r"'nengo'; allowed: netx, lava; what to do: .*--target"):
        find_target("nengo")


def test_registry_imports_nothing_heavy():
    code = "import sys, stars_deploy.targets; print([m for m in ('h5py', 'lava', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = "import sys; from stars_deploy.targets import TARGETS; TARGETS['lava'].availability(); "
    code += "print([m for m in ('lava', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
