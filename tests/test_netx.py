"""The NetX file: written and read back equal; whatever cannot be meant exactly is refused by name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netx_files import edit, put

from stars_deploy.errors import TargetError
from stars_deploy.precision import Precision
from stars_deploy.quantized import (
    ConvProjection,
    DenseProjection,
    Population,
    QuantizedGraph,
    QuantizedInput,
    find_difference,
)
from stars_deploy.targets import TARGETS, find_target
from stars_deploy.targets.netx import read_netx, write_netx
from stars_deploy.targets.reference import run_reference


@pytest.fixture(scope="module")
def written(small_chain, tmp_path_factory):
    path = tmp_path_factory.mktemp("netx") / "model.net"
    write_netx(small_chain, path)
    return path


@pytest.fixture
def edited(written, tmp_path):
    """``edited(change)``: a copy of the file after ``change(h5py.File)``."""
    return lambda change: edit(written, tmp_path / "edited.net", change)


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


# ---------------------------------------------------------------- the registry


def test_targets_by_name():
    assert list(TARGETS) == ["netx", "lava", "onnx", "nir"] and len(TARGETS) == 4
    assert {name: TARGETS[name].name for name in TARGETS} == {name: name for name in TARGETS}
    assert TARGETS["netx"].availability().ok
    files = {name: target.filename for name, target in TARGETS.items()}
    assert files == {"netx": "model.net", "lava": "model.net", "onnx": "model.onnx", "nir": "model.nir"}
    assert all(target.summary for target in TARGETS.values())
    with pytest.raises(TargetError, match=r"'nengo'; allowed: netx, lava, onnx, nir; what to do: .*--target"):
        find_target("nengo")


def test_registry_imports_nothing_heavy():
    code = "import sys, stars_deploy.targets; print([m for m in ('h5py', 'lava', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = "import sys; from stars_deploy.targets import TARGETS; TARGETS['lava'].availability(); "
    code += "print([m for m in ('lava', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
