"""What the NetX writer adds for input neurons, loops, delays and decays for each neuron, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from netx_networks import pipelined, random_case

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
from stars_deploy.targets.netx_reader import read_netx
from stars_deploy.targets.netx_writer import write_netx

#: Its first weight is so large that NetX does not scale the layer: the only one whose loop may have delays.
WIDE = np.array([[-200, 4, 6], [2, 0, 8], [10, 12, -14]])
DELAYS = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 62]])


def everything():
    """A biased input of (2, 3, 4), a convolution, a dense layer with delays, one with a loop, one with both."""
    rng = np.random.default_rng(4)
    image = QuantizedInput(
        name="image", shape=(2, 3, 4), precision=Precision(bits=16, signed=True), scale=36.0, offset=34.0, biases="eye"
    )
    populations = (
        Population(name="eye", shape=(2, 3, 4), decay_v=1024, vth=25, bias=np.zeros((2, 3, 4), int), scale=2.0),
        Population(
            name="conv",
            shape=(2, 3, 4),
            decay_u=rng.integers(0, 4097, (2, 3, 4)),
            vth=10,
            bias=rng.integers(-9, 9, (2, 3, 4)),
        ),
        Population(name="late", shape=(3,), decay_v=np.array([1, 2, 3]), vth=9, bias=np.arange(3)),
        Population(name="loop", shape=(3,), vth=8, bias=np.arange(3)),
        Population(name="both", shape=(3,), vth=7, bias=np.arange(3), scale=0.5),
    )
    nine = Precision(bits=9, signed=True)
    projections = (
        ConvProjection(name="conv.w", source="eye", target="conv", weight=rng.integers(-9, 9, (2, 2, 1, 1))),
        DenseProjection(
            name="late.w",
            source="conv",
            target="late",
            weight=rng.integers(-100, 101, (3, 24)),
            delay=rng.integers(0, 9, (3, 24)),
        ),
        DenseProjection(name="loop.w", source="late", target="loop", weight=WIDE // 2),
        DenseProjection(
            name="loop.r", source="loop", target="loop", weight=WIDE, precision=replace(nine, exponent=-2), delay=1
        ),
        DenseProjection(name="both.w", source="loop", target="both", weight=WIDE.T, precision=nine, delay=DELAYS),
        DenseProjection(name="both.r", source="both", target="both", weight=WIDE // 4 * 2, delay=DELAYS + 1),
    )
    return QuantizedGraph(input=image, populations=populations, projections=projections, timesteps=7, labels=("a",))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("writer") / "m.net"
    write_netx(everything(), path)
    return path


def test_layout_is_what_lava_reads(written):
    graph = everything()
    with h5py.File(written) as file:
        layers = file["layer"]
        kinds = [bytes(layers[str(index)]["type"][0]).decode() for index in range(len(layers))]
        assert kinds == ["input", "conv", "flatten", "dense", "dense_rec", "dense_rec"]
        eye, conv, late, loop, both = (layers[index] for index in "01345")
        assert sorted(eye) == ["bias", "neuron", "shape", "type", "weight"]
        assert (eye["weight"][:].tolist(), eye["bias"][:].tolist()) == ([36], [34])
        assert {name: eye["neuron"][name][()] for name in ("iDecay", "vDecay", "vThMant")} == {
            "iDecay": 4096,
            "vDecay": 1024,
            "vThMant": 25,
        }
        assert "delay" not in conv and "weight_rec" not in conv
        assert conv["neuron/iDecay"].shape == (4, 3, 2)  # (W, H, C), as Lava's neurons
        assert conv["neuron/iDecay"][3, 1, 0] == graph.population("conv").decay_u[0, 1, 3]
        assert conv["neuron/vDecay"][()] == 0
        assert late["neuron/vDecay"][:].tolist() == [1, 2, 3]
        assert (late["delay"][:] == graph.projections[1].delay).all()
        assert "delay" not in loop and (loop["weight_rec"][:] == WIDE).all() and (loop["weight"][:] == WIDE // 2).all()
        assert (both["delay"][:] == DELAYS).all() and (both["weight_rec"][:] == WIDE // 4 * 2).all()


def test_metadata_of_what_lava_has_no_field_for(written):
    with h5py.File(written) as file:
        described = json.loads(bytes(file["stars_deploy"][:]))
    nine = {"bits": 9, "signed": True, "exponent": 0, "rounding": "nearest"}
    assert described["input"] == {
        "name": "image",
        "scale": 36.0,
        "offset": 34.0,
        "biases": True,
        "precision": {**nine, "bits": 16},
    }
    eye, conv, late, loop, both = described["layers"]
    assert eye == {"projection": None, "precision": None, "population": "eye", "scale": 2.0}
    assert conv["projection"] == "conv.w" and "recurrent" not in conv and "recurrent" not in late
    assert loop["recurrent"] == {"projection": "loop.r", "precision": {**nine, "exponent": -2}}
    assert both["recurrent"]["projection"] == "both.r" and both["precision"] == nine


def test_plain_input_says_nothing_about_biases(small_chain, tmp_path):
    for offset, told in ((0.0, {}), (2.5, {"offset": 2.5})):
        write_netx(replace(small_chain, input=replace(small_chain.input, offset=offset)), tmp_path / "m.net")
        with h5py.File(tmp_path / "m.net") as file:
            image = json.loads(bytes(file["stars_deploy"][:]))["input"]
            assert sorted(file["layer/0"]) == ["shape", "type"]
        assert {name: image[name] for name in image if name not in ("name", "scale", "precision")} == told


def test_round_trip_of_everything(written):
    graph, back = everything(), read_netx(written, timing="synchronous")
    assert find_difference(graph, back) == ""
    assert (back.input.scale, back.input.offset) == (36.0, 34.0)
    assert [p.scale for p in back.populations] == [p.scale for p in graph.populations]


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_round_trip_of_random_networks(start, tmp_path):
    for seed in range(start, start + 50):
        case = random_case(seed)
        write_netx(case.graph, tmp_path / "m.net")
        back = read_netx(tmp_path / "m.net", timing="synchronous")
        assert find_difference(case.graph, back) == "", seed
        assert (back.input.scale, back.input.offset) == (case.graph.input.scale, case.graph.input.offset)
        first = (tmp_path / "m.net").read_bytes()
        write_netx(back, tmp_path / "m.net")
        assert (tmp_path / "m.net").read_bytes() == first


# ---------------------------------------------------------------- what the format cannot carry


def with_projection(name, **fields):
    def change(graph):
        projections = (replace(item, **fields) if item.name == name else item for item in graph.projections)
        return replace(graph, projections=tuple(projections))

    return change


def with_input(**fields):
    return lambda graph: replace(graph, input=replace(graph.input, **fields))


def with_more(*projections):
    return lambda graph: replace(graph, projections=(*graph.projections, *projections))


def dense(source, target, rows=3, columns=3, delay=1):
    return DenseProjection(name="more", source=source, target=target, weight=np.ones((rows, columns), int), delay=delay)


def image_biases_second(graph):
    first = Population(name="other", shape=(2, 3, 4), bias=np.zeros((2, 3, 4), int))
    back = ConvProjection(name="b", source="conv", target="other", weight=np.ones((2, 2, 1, 1), int), delay=1)
    return replace(graph, populations=(first, *graph.populations), projections=(back, *graph.projections))


def with_leaking_input(graph):
    first, *others = graph.populations
    return replace(graph, populations=(replace(first, decay_u=4095), *others))


def with_reset(graph):
    first, *others = graph.populations
    return replace(graph, populations=(first, replace(others[0], reset_interval=3), *others[1:]))


def small_delayed_loop(graph):
    """Weights that NetX would scale."""
    for name in ("both.w", "both.r"):
        graph = with_projection(name, weight=np.array([[-100, 4, 6], [2, 0, 8], [10, 12, -14]]))(graph)
    return graph


def wider_delayed_loop(graph):
    """Three neurons, whose loop is fed by four."""
    grown = replace(graph.population("loop"), shape=(4,), bias=np.zeros(4, int))
    populations = tuple(grown if item.name == "loop" else item for item in graph.populations)
    weights = {"loop.w": np.ones((4, 3), int), "loop.r": np.ones((4, 4), int), "both.w": np.ones((3, 4), int)}
    projections = [
        replace(item, weight=weights[item.name], delay=1 if item.name == "loop.r" else 0)
        if item.name in weights
        else item
        for item in graph.projections
    ]
    return replace(graph, populations=populations, projections=tuple(projections))


REFUSED = [
    (with_projection("conv.w", delay=2), "conv.w: delay of 2 timesteps.*no delay of a convolution"),
    (with_projection("late.w", delay=63), "late.w: delay of 63 timesteps.*0 to 62: NetX clamps"),
    (with_projection("loop.r", delay=2), "loop.r: other delays than the projection into the layer.*one matrix"),
    (with_projection("both.r", delay=1), "both.r: other delays than the projection"),
    (with_projection("both.w", delay=0), "both.r: other delays than the projection"),
    (wider_delayed_loop, "both.r: other delays than the projection"),
    (small_delayed_loop, r"both.w: weight\[0, 0\] = -100, which acts as -200"),
    (
        with_projection("loop.w", weight=np.full((3, 3), 255), precision=Precision(bits=9, signed=True)),
        "loop.w: .*in Lava",
    ),
    (with_more(dense("both", "loop")), r"loop: 3 projections enter it .loop.w, loop.r, more"),
    (with_more(dense("loop", "loop")), r"loop: 3 projections enter it"),
    (with_more(dense("late", "loop", delay=0)), r"loop: 3 projections enter it .*without residual sums"),
    (
        with_more(ConvProjection(name="c", source="conv", target="conv", weight=np.ones((2, 2, 1, 1), int), delay=1)),
        "c: a loop of a convolution.*loops of dense layers",
    ),
    (
        with_more(ConvProjection(name="c", source="eye", target="eye", weight=np.ones((2, 2, 1, 1), int), delay=1)),
        "eye: 1 projections enter it",
    ),
    (image_biases_second, "eye: biased by image.*only the first population"),
    (with_input(scale=36.5), "image.scale: 36.5.*a whole number: Lava truncates it"),
    (with_input(offset=-0.5), "image.offset: -0.5.*a whole number"),
    (with_input(scale=float("nan")), "image.scale: nan.*a whole number"),
    (with_input(offset=float("inf")), "image.offset: inf.*a whole number"),
    (with_leaking_input, "eye.decay_u: 4095; allowed: 4096: nothing enters"),
    (with_reset, "conv.reset_interval: 3.*0 in a NetX file.*choose them when the file is read"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=range(len(REFUSED)))
def test_writer_refuses(tmp_path, change, message):
    with pytest.raises(TargetError, match=message):
        write_netx(change(everything()), tmp_path / "m.net")
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_pipelined_timing(tmp_path):
    """The file holds the synchronous network; written as delays, pipelined timing would be counted twice."""
    message = "every projection has a delay: pipelined timing.*write the synchronous graph"
    refused = 0
    for case in map(random_case, range(40)):
        if case.graph.projections:
            with pytest.raises(TargetError, match=message):
                write_netx(pipelined(case.graph), tmp_path / "m.net")
            refused += 1
    assert refused > 30


def test_largest_activation_counts_the_loop(tmp_path):
    """A current that leaks may get 2**18 in a timestep, from both sides of a recurrent layer together."""
    weight = np.full((1, 1), 128)

    def graph(bits, loop):
        own = DenseProjection(
            name="r", source="n", target="n", weight=loop, precision=Precision(bits=9, signed=True), delay=1
        )
        return QuantizedGraph(
            input=QuantizedInput(name="x", shape=(1,), precision=Precision(bits=bits, signed=True)),
            populations=(Population(name="n", shape=(1,), decay_u=4000, bias=np.zeros(1, int)),),
            projections=(
                DenseProjection(name="w", source="x", target="n", weight=weight, precision=own.precision),
                own,
            ),
            timesteps=3,
        )

    write_netx(graph(12, np.array([[128]])), tmp_path / "m.net")  # 128 * 2048, all of it negative, and 128
    with pytest.raises(TargetError, match=r"w: activations of up to 262272 .at most 262144"):
        write_netx(graph(12, np.array([[-128]])), tmp_path / "m.net")
