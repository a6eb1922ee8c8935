"""NetX files that are damaged or made to harm: an error in bounded time and memory, never a crash."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from netx_files import conv, dense, even, flatten, image, neuron, put, recurrent, write_layers

from stars_deploy.errors import ArtifactError, FormatError
from stars_deploy.quantized import find_difference
from stars_deploy.targets import hdf5_guard, netx_chain
from stars_deploy.targets.netx import read_netx, write_netx
from stars_deploy.targets.reference import run_reference

#: Bytes that reading a small file may take at most, whatever it claims.
MEMORY = 64 << 20


@pytest.fixture(scope="module")
def written(small_chain, tmp_path_factory):
    path = tmp_path_factory.mktemp("netx") / "model.net"
    write_netx(small_chain, path)
    return path


def everything(path):
    """A file with every field that the reader knows."""
    rng = np.random.default_rng(3)
    return write_layers(
        path,
        image(2, 5, 4, neuron=neuron(vDecay=[9, 8]), weight=[36.0], bias=34.0),
        conv(
            rng.integers(-9, 9, (3, 2, 2, 2, 1)),
            (3, 4, 3),
            bias=[1, 2, 3],
            neuron=neuron(iDecay=np.ones((3, 4, 3)).astype(int)),
        ),
        flatten(36),
        dense(even(rng, (4, 36)), delay=np.arange(4), neuron=None),
        recurrent(even(rng, (4, 4)), even(rng, (4, 4)), delay=[0, 1, 2, 3], bias=5),
    )


def expect_refusal_within(path, message, seconds=10, **options):
    """Reading `path` is an error of `message`, soon and without much memory."""
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=message):
            read_netx(path, **{"timesteps": 1, **options})
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < seconds


# ---------------------------------------------------------------- absurd sizes

HUGE = 2**40
ONE = np.ones((1, 1, 1, 1), int)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([image(1, 2**20, 2**20), conv(ONE, (1, 2**20, 2**20))], "layer/0/shape: .*1048576.*16777216 neurons"),
        ([image(HUGE), dense(np.ones((1, 3), int))], "layer/0/shape: values from 1099511627776"),
        ([image(HUGE, HUGE, HUGE, neuron=neuron())], "layer/0/shape: values from"),
        ([image(2**30, neuron=neuron())], "layer/0/shape: .*16777216 neurons"),
        ([image(1, 4, 4), conv(ONE, (1, 2**20, 2**20))], "layer/1/shape: .*16777216 neurons"),
        ([image(1, 4, 4), conv(ONE, (2**62, 2**62, 2**62))], "layer/1/shape: values from"),
        ([image(1, 4, 4), conv(ONE, (1, 2000, 2000))], "impossible network.*makes"),
        ([image(1, 4, 4), conv(ONE, (1, 4, 4), padding=[2**30, 2**30])], "127: Lava keeps int8"),
        ([image(1, 4, 4), conv(ONE, (1, 4, 4), stride=[2**30, 1])], "127: Lava keeps int8"),
        ([image(1, 4, 4), conv(ONE, (1, 4, 4), groups=2**30)], "127: Lava keeps int8"),
        ([image(3), dense(np.ones((1, 3), int), shape=np.array([HUGE]))], "layer/1/shape: values from 1099511627776"),
        ([image(3), dense(np.ones((1, 3), int), shape=np.array([2**20] * 3))], "layer/1/shape: .*16777216 neurons"),
        ([image(3), dense(np.ones((1, 3), int), shape=np.array([4] * 9))], "layer/1/shape: "),
        ([dense(np.ones((1, 3), int), shape=np.array([HUGE]))], "layer/0/shape: values from 1099511627776"),
        ([image(1, 3000, 3000), *[conv(ONE, (1, 3000, 3000))] * 2], "layer/2/shape: .*18000000 n.* so far"),
        ([image(1, 3000, 3000, neuron=neuron()), conv(ONE, (1, 3000, 3000))], "layer/1/shape: .*18000000 n.* so far"),
    ],
)  # fmt: skip
def test_absurd_shapes_are_not_allocated(tmp_path, layers, message):
    path = write_layers(tmp_path / "m.net", *layers)
    if "so far" in message:  # the first of them is allowed, and takes what its neurons take
        with pytest.raises(FormatError, match=message):
            read_netx(path, timesteps=1)
    else:
        expect_refusal_within(path, message)


def absurd(name, shape, **options):
    """A change that makes a dataset of `shape` of which next to nothing is stored."""

    def change(file):
        if name in file:
            del file[name]
        file.create_dataset(name, shape, "i1", chunks=tuple(min(size, 64) for size in shape), **options)

    return change


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layer/1/weight", (2**20, 2**20, 1, 1)),
        ("layer/1/bias", (2**40,)),
        ("layer/0/neuron/vDecay", (2**14, 2**13, 2)),
        ("layer/1/neuron/iDecay", (2**20, 2**20)),
        ("layer/1/neuron/vThMant", (2**40,)),
        ("layer/1/stride", (2**40,)),
        ("layer/3/delay", (2**20, 2**20)),
        ("layer/4/weight_rec", (2**20, 2**20)),
        ("layer/4/weight", (2**12, 2**12)),
        ("layer/4/delay", (2**40,)),
        ("layer/0/weight", (2**40,)),
        ("layer/0/shape", (2**40,)),
    ],
)
def test_absurd_datasets_are_not_read(tmp_path, name, shape):
    path = everything(tmp_path / "m.net")
    assert read_netx(path, timesteps=1)
    with h5py.File(path, "r+") as file:
        absurd(name, shape)(file)
    expect_refusal_within(path, f"{name}: shape")


def test_all_datasets_together_are_bounded(tmp_path, monkeypatch):
    path = everything(tmp_path / "m.net")
    monkeypatch.setattr(hdf5_guard.Allowance, "__init__", lambda self: setattr(self, "values", 200))
    with pytest.raises(FormatError, match=r"layer/3/weight: .*67108864 values in all datasets of a file together"):
        read_netx(path, timesteps=1)


def test_too_many_layers(tmp_path):
    path = tmp_path / "m.net"
    with h5py.File(path, "w") as file:
        for index in range(netx_chain.MAX_LAYERS + 1):
            file.create_group(f"layer/{index}")
    expect_refusal_within(path, "layer: 1025 layers; allowed: at most 1024")


def test_deep_json(tmp_path):
    """Brackets without end, and a number without end."""
    path = everything(tmp_path / "m.net")
    for text in (b"[" * 200_000, b'{"timesteps": ' + b"9" * 200_000 + b"}"):
        with h5py.File(path, "r+") as file:
            put("stars_deploy", np.frombuffer(text, np.uint8))(file)
        expect_refusal_within(path, "not a readable NetX file|stars_deploy: schema")


LITTLE = """
import resource, sys, time
from stars_deploy.errors import StarsDeployError
from stars_deploy.targets.netx import read_netx
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_netx(sys.argv[1], timesteps=1)
except StarsDeployError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_compressed_bomb_takes_little(tmp_path):
    """40 KB of deflate that hold 2**25 zeros, where 12 are expected: the shape is looked at first."""
    path = write_layers(tmp_path / "m.net", image(3), dense(np.ones((4, 3), int)))
    with h5py.File(path, "r+") as file:
        del file["layer/1/weight"]
        file.create_dataset("layer/1/weight", data=np.zeros((2**12, 2**13), np.int8), compression=9)
    assert path.stat().st_size < 2**17
    done = subprocess.run([sys.executable, "-c", LITTLE, path], capture_output=True, text=True, check=True)
    message, grown = done.stdout.strip().splitlines()
    assert "layer/1/weight: shape (4096, 8192)" in message
    assert int(grown) < 200 << 10  # [KiB]


# ---------------------------------------------------------------- damage


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


def test_truncated_files(written, tmp_path):
    content = written.read_bytes()
    path = tmp_path / "cut.net"
    for end in sorted({1, 7, 8, 100, *range(0, len(content), 401), len(content) - 1} - {0}):
        path.write_bytes(content[:end])
        with pytest.raises(FormatError):
            read_netx(path)


def test_flipped_bits_never_pass_for_something_impossible(small_chain, written, tmp_path, make_images):
    """Either a FormatError, or a graph that its constructors accept and the reference runs."""
    content = bytearray(written.read_bytes())
    rng = np.random.default_rng(0)
    images, path = make_images(small_chain, 2), tmp_path / "flipped.net"
    refused = changed = 0
    start = time.process_time()
    for position in rng.choice(len(content), 250, replace=False):
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
    assert refused > 20
    assert changed < 30  # checksums catch the arrays; names, scalars and timesteps carry none
    assert time.process_time() - start < 60


def test_damaged_files_of_strangers(tmp_path):
    """No checksums, every field: bytes that are overwritten make an error or another network, soon; never a crash."""
    content = everything(tmp_path / "whole.net").read_bytes()
    rng, path = np.random.default_rng(1), tmp_path / "damaged.net"
    refused, start = 0, time.process_time()
    for _ in range(250):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_netx(path, timesteps=1)
        except FormatError:
            refused += 1
    assert 60 < refused < 240
    assert time.process_time() - start < 60
    for end in range(0, len(content), 499):
        path.write_bytes(content[:end])
        with pytest.raises((FormatError, ArtifactError)):
            read_netx(path, timesteps=1)


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
