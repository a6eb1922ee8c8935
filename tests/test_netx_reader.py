"""Strangers' NetX files: every field that Lava reads, as Lava takes it; both timings; the real networks."""

from __future__ import annotations

import numpy as np
import pytest
from netx_files import (
    KERNEL,
    LOOP,
    WEIGHT,
    WHC,
    conv,
    dense,
    edit,
    even,
    flatten,
    image,
    neuron,
    put,
    recurrent,
    write_layers,
)

from stars_deploy.errors import ConfigError, FormatError
from stars_deploy.populations import VTH_NEVER
from stars_deploy.precision import Precision
from stars_deploy.targets.netx import read_netx, write_netx
from stars_deploy.targets.netx_limits import ACTIVATION_LIMIT
from stars_deploy.targets.reference import project, run_reference

RNG = np.random.default_rng(2)


@pytest.fixture
def net(tmp_path):
    """``net(layer, ..., **options)``: the graph read from a file of these layers, in one timestep of one bit."""

    def read(*layers, **options):
        return read_netx(write_layers(tmp_path / "m.net", *layers), **{"timesteps": 1, "input_bits": 1, **options})

    return read


def convolved(**fields):
    return image(2, 5, 4), conv(KERNEL, (3, 4, 3), **fields)


# ---------------------------------------------------------------- fields


def strangers(file):
    """Make the file look like SLAYER's: no metadata, scalars, per-channel bias, no neuron on the readout."""
    del file["stars_deploy"]
    file["simulation/tSample"] = 16
    put("layer/1/bias", np.array([1.0, -2.0, 3.0, 4.0], np.float32))(file)
    put("layer/1/weight", file["layer/1/weight"][:].astype(np.float32)[..., np.newaxis])(file)
    put("layer/2/padding", [0, 1])(file)
    put("layer/2/stride", 1)(file)
    put("layer/2/dilation", 1)(file)
    put("layer/1/neuron/type", "LOIHI")(file)
    for name, value in {"theta": 1600, "tauRho": 0.5, "scaleRho": 10.0, "gradedSpike": False}.items():
        file[f"layer/1/neuron/{name}"] = value
    put("layer/4/shape", [3, 1, 1])(file)
    put("layer/4/weight", file["layer/4/weight"][:].reshape(-1))(file)
    del file["layer/4/neuron"], file["layer/4/bias"]


def test_reads_a_strangers_file(small_chain, tmp_path):
    write_netx(small_chain, tmp_path / "ours.net")
    path = edit(tmp_path / "ours.net", tmp_path / "theirs.net", strangers)
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


@pytest.mark.parametrize("name", ["iDecay", "vDecay"])
def test_decays_of_each_neuron_and_channel(net, name):
    """Lava broadcasts them against (W, H, C); we hold (C, H, W)."""

    def decay(values):
        population = net(*convolved(neuron=neuron(**{name: values}))).output
        return population.decay_u if name == "iDecay" else population.decay_v

    assert (decay(WHC) == WHC.transpose()).all()
    assert (decay([1, 2, 4096]) == np.array([1, 2, 4096])[:, None, None]).all()
    assert (decay(WHC[0]) == WHC[0].T[:, :, None]).all() and decay(WHC[0]).shape == (3, 4, 3)
    assert decay([7]) == decay(7) == decay([7, 7, 7]) == 7
    layer = dense(WEIGHT, neuron=neuron(**{name: np.arange(4)}))
    population = net(image(3), layer).output
    assert (population.decay_u if name == "iDecay" else population.decay_v).tolist() == [0, 1, 2, 3]


def test_thresholds(net):
    assert net(*convolved(neuron=neuron(vThMant=[9, 9, 9]))).output.vth == 9
    own = net(*convolved(neuron=neuron(vThMant=[9, 2**18, 7]))).output.vth
    assert (own == np.broadcast_to(np.array([9, VTH_NEVER, 7])[:, None, None], own.shape)).all()
    # SLAYER's way to say never (block.cuba.Affine), and the largest that Lava's integers hold
    for largest in (2**18 - 1, 2**25 - 1):
        assert net(*convolved(neuron=neuron(vThMant=largest))).output.vth == VTH_NEVER


def test_biases(net):
    bias = WHC - 1700
    assert (net(*convolved(bias=bias)).output.bias == bias.transpose()).all()
    assert (net(*convolved(bias=[5, -6, 7])).output.bias == np.array([5, -6, 7])[:, None, None]).all()
    for value, expected in ((9, [9] * 4), ([9], [9] * 4), ([[1, 2, 3, 4]], [1, 2, 3, 4])):
        assert net(image(3), dense(WEIGHT, bias=value)).output.bias.tolist() == expected


def test_conv_settings_are_y_x_and_rectangular(net):
    weight = RNG.integers(-9, 9, (4, 1, 3, 2))
    layer = conv(weight, (4, 2, 9), stride=[3, 1], padding=[1, 2], dilation=[2, 3], groups=2)
    projection = net(image(2, 7, 8), layer).projections[0]
    assert (projection.stride, projection.padding, projection.dilation, projection.groups) == (
        (3, 1),
        (1, 2),
        (2, 3),
        2,
    )
    assert (projection.weight == weight).all()
    layer = conv(weight, (4, 4, 3), stride=2, padding=2, dilation=2, groups=2)
    projection = net(image(2, 7, 4), layer).projections[0]
    assert (projection.stride, projection.padding, projection.dilation) == ((2, 2), (2, 2), (2, 2))


def test_wide_conv_weights_keep_their_value(net):
    weight = KERNEL * 1000
    graph = net(image(2, 5, 4), conv(weight, (3, 4, 3)))
    assert (graph.projections[0].weight == weight).all() and graph.projections[0].precision.bits == 16


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        (5, 5),
        (np.float32(62), 62),
        ([0, 1, 2, 62], np.repeat([[0], [1], [2], [62]], 3, axis=1)),  # one for each neuron of this layer
        ([3, 0, 1], np.repeat([[3, 0, 1]], 4, axis=0)),  # one for each input
        (np.arange(12).reshape(4, 3), np.arange(12).reshape(4, 3)),
    ],
    ids=["scalar", "float", "out", "in", "synapse"],
)
def test_delays(net, delay, expected):
    layers = image(3), dense(WEIGHT, delay=delay)
    assert np.array_equal(net(*layers, timing="synchronous").projections[0].delay, expected)
    assert np.array_equal(net(*layers).projections[0].delay, np.add(expected, 1))  # pipelined by itself


def test_a_square_layers_delays_belong_to_its_outputs(net):
    graph = net(image(4), dense(LOOP, delay=[0, 1, 2, 3]), timing="synchronous")
    assert graph.projections[0].delay[:, 0].tolist() == [0, 1, 2, 3]


def test_recurrent_layers(net):
    odd = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 1]])
    graph = net(image(3), recurrent(odd, np.eye(4, dtype=int), bias=[1, 2, 3, 4]), dense(even(RNG, (2, 4))))
    assert [p.name for p in graph.populations] == ["dense_rec1", "dense2"]
    forward, loop, last = graph.projections
    assert (forward.name, loop.name) == ("dense_rec1.weight", "dense_rec1.weight_rec")
    assert (forward.weight == odd).all() and (loop.weight == np.eye(4)).all()
    assert (loop.source, loop.target, last.source) == ("dense_rec1",) * 3
    assert (forward.delay, loop.delay, last.delay) == (1, 1, 1)
    graph = net(image(3), recurrent(odd, np.eye(4, dtype=int)), timing="synchronous")
    assert [p.delay for p in graph.projections] == [0, 1]
    # both flattened, and without the layer's own neurons
    flat = {"neuron": None, "shape": [4, 1, 1]}
    graph = net(image(3), recurrent(odd.reshape(-1), np.arange(16), **flat))
    assert (graph.projections[1].weight == np.arange(16).reshape(4, 4)).all() and not graph.output.fires


def test_recurrent_layers_share_their_delays(net):
    graph = net(image(4), recurrent(LOOP, LOOP.T, delay=[0, 1, 2, 3]), timing="synchronous")
    forward, loop = graph.projections
    assert forward.delay[:, 1].tolist() == [0, 1, 2, 3] and loop.delay[:, 1].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (recurrent(WEIGHT, LOOP, delay=1), "layer/1/delay: .*recurrent weights.*as many inputs as neurons.*remove"),
        (recurrent(LOOP // 4, LOOP // 4, delay=1), r"layer/1/weight: weight\[0, 0\] = 63, which acts as 252"),
        (recurrent(WEIGHT, WEIGHT), r"layer/1/weight_rec: shape \(4, 3\); allowed: \(4, 4\)"),
        (recurrent(WEIGHT, np.arange(16)), r"layer/1/weight_rec: shape \(16,\)"),
        (recurrent(np.arange(12), np.arange(15)), r"layer/1/weight_rec: shape \(15,\)"),
        (recurrent(WEIGHT, np.where(LOOP == 254, 255, LOOP)), r"weight_rec\[0, 0\] = 255, which acts as 254"),
    ],
)
def test_recurrent_layers_that_lava_alters(net, layer, message):
    with pytest.raises(FormatError, match=message):
        net(image(layer["weight"].shape[-1] if layer["weight"].ndim == 2 else 3), layer)


def test_the_sums_of_both_matrices_count(net):
    heavy = conv(np.full((1, 1, 1, 1), ACTIVATION_LIMIT // 2), (1, 1, 1))
    assert net(image(1, 1, 1), heavy, input_bits=1)
    with pytest.raises(FormatError, match="layer/1/weight: activations of up to 12582909"):
        net(image(1, 1, 1), heavy, input_bits=2)
    wide, leaky = np.full((1, 1000), 254), neuron(iDecay=0)
    assert net(image(1000), recurrent(wide, [[254]], neuron=leaky))
    with pytest.raises(FormatError, match="activations of up to 262382"):
        net(image(1032), recurrent(np.full((1, 1032), 254), [[254]], neuron=leaky))


# ---------------------------------------------------------------- the input


def test_an_input_layer_with_neurons(net):
    eye = image(2, 5, 4, neuron=neuron(vThMant=25, iDecay=1), weight=np.array([36.0]), bias=34)
    graph = net(eye, conv(KERNEL, (3, 4, 3)), timesteps=3)
    assert (graph.input.name, graph.input.biases, graph.input.scale, graph.input.offset) == ("image", "input", 36, 34)
    assert graph.input.precision == Precision(bits=16, signed=True)
    assert [p.name for p in graph.populations] == ["input", "conv1"] and len(graph.projections) == 1
    # its current gets nothing, whatever the file says of its decay
    assert (graph.populations[0].decay_u, graph.populations[0].decay_v, graph.populations[0].vth) == (4096, 1024, 25)
    pixels = RNG.uniform(-1, 1, (2, 2, 5, 4))
    record = run_reference(graph, graph.input.quantize(pixels))
    bias = np.rint(pixels * 36 + 34)
    assert (record.spikes["input"][0] == (bias > 25)).all() and record.spikes["input"][0].any()


def test_an_input_layers_transform_has_lavas_defaults(net):
    graph = net(image(3, neuron=neuron()))  # nothing but the input
    assert (graph.input.scale, graph.input.offset, graph.input.shape) == (64, 0, (3,))
    assert graph.output.name == "input" and graph.projections == ()
    with pytest.raises(FormatError, match=r"layer/0/weight: shape .2,.; allowed: 1 to 1 values"):
        net(image(3, neuron=neuron(), weight=[1, 2]))


@pytest.mark.parametrize("layers", [(), ({"type": "input"},), (flatten(3),)], ids=["none", "no shape", "flatten"])
def test_an_input_that_the_weights_imply(net, layers):
    graph = net(*layers, dense(WEIGHT))
    assert graph.input.shape == (3,) and graph.input.precision.bits == 1
    assert net(dense(WEIGHT.reshape(-1), shape=[4])).input.shape == (3,)
    with pytest.raises(FormatError, match="layer/0/weight: shape"):
        net(dense(np.zeros((4, 0), int)))
    with pytest.raises(FormatError, match="conv, without a layer before it"):
        net(*layers, conv(KERNEL, (3, 4, 3)))


def test_a_dense_layer_takes_an_image_flat(net):
    """Before Lava's first layer nothing is flattened: it wants the image as its synapses do."""
    weight = even(RNG, (4, 12))
    for layers in ((image(3, 2, 2),), (image(3, 2, 2), flatten(12)), (image(12), flatten(12))):
        graph = net(*layers, dense(weight))
        assert (graph.projections[0].weight == weight).all() and graph.input.shape == tuple(layers[0]["shape"])
    with pytest.raises(FormatError, match="layer/2/type: dense on a source of shape"):
        net(*convolved(), dense(even(RNG, (4, 36))))
    with pytest.raises(FormatError, match="layer/2/type: dense on a source of shape"):
        net(image(3, 2, 2, neuron=neuron()), conv(np.ones((1, 3, 1, 1), int), (1, 2, 2)), dense(even(RNG, (4, 4))))
    with pytest.raises(FormatError, match="layer/2/type: conv on a source"):
        net(image(2, 5, 4), flatten(40), conv(KERNEL, (3, 4, 3)))


# ---------------------------------------------------------------- time


def test_timing(net):
    layers = (
        image(3, neuron=neuron(vThMant=0), weight=1),
        dense(WEIGHT),
        dense(even(RNG, (4, 4)), neuron=neuron(vThMant=0)),
    )
    synchronous = net(*layers)
    assert [p.delay for p in synchronous.projections] == [0, 0]
    assert not any(p.reset_interval for p in synchronous.populations)
    pipelined = net(*layers, timing="pipelined", reset_interval=5, reset_offset=2)
    assert [p.delay for p in pipelined.projections] == [1, 1]
    # as hdf5.Network: reset_offset + 1 for the first layer with neurons, one more for each further one
    assert [(p.reset_interval, p.reset_offset) for p in pipelined.populations] == [(5, 3), (5, 4), (5, 5)]
    assert [p.reset_offset for p in net(*layers, timing="pipelined").populations] == [0, 0, 0]
    spikes = [p.reset_offset for p in net(*convolved(), timing="pipelined", reset_interval=5).populations]
    assert spikes == [1]
    assert net(*convolved(), timing="pipelined").projections[0].delay == 1


def test_delays_of_zero_are_none(net):
    assert net(image(3), dense(WEIGHT, delay=0)).projections[0].delay == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timing": "global"}, "timing: 'global'; allowed: synchronous, pipelined"),
        ({"reset_interval": 4}, 'reset_interval: 4; allowed: 0 in synchronous.*choose the timing "pipelined"'),
        ({"reset_interval": 4, "timing": "synchronous"}, "reset_interval: 4"),
        ({"reset_interval": -1}, "reset_interval: -1"),
        ({"reset_offset": -1}, "reset_offset: -1"),
        ({"input_bits": 0}, "input_bits: 0; allowed: 1 to 24"),
        ({"input_bits": 25}, "input_bits: 25"),
    ],
)
def test_options_that_make_no_sense(net, options, message):
    with pytest.raises(ConfigError, match=message):
        net(*convolved(), **options)


# ---------------------------------------------------------------- real networks


@pytest.mark.shared
def test_tiny_net_equals_its_ground_truth(shared):
    """lava-dl's own: the image as biases (W, H, C), every layer from step 1 on, which the files hold as index 1."""
    folder = shared / "networks" / "tiny"
    graph = read_netx(shared / "networks" / "tiny.net", timesteps=15)
    assert graph.input.scale == 36 and graph.input.offset == 34
    biases = np.load(folder / "input_bias.npy").transpose()[np.newaxis].astype(np.int64)
    record = run_reference(graph, biases)
    truth = {name: np.moveaxis(np.load(folder / f"{file}.npy")[0], -1, 0) for name, file in zip(
        record.spikes, ("input", "layer1", "output"), strict=True
    )}  # fmt: skip
    assert list(truth) == ["input", "conv1", "conv2"]
    for name, expected in truth.items():
        assert not expected[0].any() and expected[1:].any()
        assert (record.spikes[name][:, 0] == expected[1:]).all(), name
    current = np.moveaxis(np.load(folder / "current.npy")[0], -1, 0)
    assert (project(graph.projections[0], record.spikes["input"][:, 0].astype(np.int64)) == current[1:]).all()


@pytest.mark.shared
def test_pilotnet(shared):
    graph = read_netx(shared / "networks" / "pilotnet_lif.net", timesteps=3)
    assert sum(population.size for population in graph.populations) == 158_509
    assert [p.name for p in graph.populations[-3:]] == ["dense7", "dense8", "dense9"]
    assert (graph.input.biases, graph.input.scale, graph.input.offset) == ("input", 40, 36)
    pixels = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 3, 66, 200))
    record = run_reference(graph, graph.input.quantize(pixels))
    assert all(record.spikes[p.name].any() for p in graph.populations[:-1]) and record.potential.any()
