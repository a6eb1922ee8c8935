"""What the NetX reader refuses, each by the name of the field, and with what would make it run."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from netx_files import edit, put, remove

from stars_deploy.errors import FormatError
from stars_deploy.targets.netx import read_netx, write_netx


@pytest.fixture(scope="module")
def written(small_chain, tmp_path_factory):
    path = tmp_path_factory.mktemp("netx") / "model.net"
    write_netx(small_chain, path)
    return path


@pytest.fixture
def edited(written, tmp_path):
    """``edited(change)``: a copy of the file after ``change(h5py.File)``."""
    return lambda *changes: edit(written, tmp_path / "edited.net", *changes)


def rename_layer(file):
    file.move("layer/4", "layer/5")


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


def biased_input(file):
    file.copy("layer/1/neuron", file["layer/0"], "neuron")


def complex_weight(file):
    del file["layer/4/weight"]
    file["layer/4/weight/real"] = file["layer/4/weight/imag"] = np.ones((3, 72))


def metadata(**fields):
    def change(file):
        content = {**json.loads(bytes(file["stars_deploy"][:])), **fields}
        put("stars_deploy", np.frombuffer(json.dumps(content).encode(), np.uint8))(file)

    return change


FEW_LAYERS = [{"projection": "a", "population": "b", "scale": 1.0, "precision": {}}]
BITS = {"bits": 8, "signed": "no", "exponent": 0, "rounding": "nearest"}
NEURON = "layer/1/neuron"

REFUSED = [
    (put("layer/1/type", np.array([b"pool"])), "layer/1/type: 'pool', a pooling layer.*write it as a conv layer"),
    (put("layer/1/type", np.array([b"convT"])), "layer/1/type: 'convT', a transposed convolution.*as a conv layer"),
    (put("layer/1/type", np.array([b"unpool"])), "layer/1/type: 'unpool', an unpooling layer.*as a dense layer"),
    (put("layer/1/type", np.array([b"concat"])), "layer/1/type: 'concat', a concatenation.*one wider layer"),
    (put("layer/4/type", np.array([b"average"])), "layer/4/type: 'average', an averaging layer.*average the spikes"),
    (put("layer/4/type", np.array([b"dense_comp"])), "layer/4/type: 'dense_comp', a complex .*with CUBA neurons"),
    (
        put("layer/1/type", np.array([b"residual"])),
        "layer/1/type: 'residual', a layer that Lava skips in silence.*as a",
    ),
    (put("layer/1/type", np.array([b"input"])), "layer/1/type: input, which Lava connects to nothing here"),
    (put("layer/4/type", np.array([b"dense_rec"])), "stars_deploy: recurrent = None; allowed: dict"),
    (put("layer/1/type", 7), "layer/1/type: dtype int64"),
    (put("layer/1/type", np.array([b"conv", b"conv"])), "layer/1/type: .*shape"),
    (put("layer/1/type", np.array([b"\xff\xfe"])), "layer/1/type: .*ASCII"),
    (
        put("layer/0/type", np.array([b"conv"])),
        "layer/0/type: conv, without a layer before.*add a layer 0 .*input_shape",
    ),
    (remove("layer/0/shape"), "layer/1/type: conv, without a layer before it that says the shape of the image"),
    (put("layer/0/neuron/type", b"CUBA"), "layer/0/neuron/vThMant: is missing"),
    (biased_input, "stars_deploy: an input of spikes; allowed: the same as in layer/0"),
    (put("layer/0/bias", 3), "layer/0/bias: a field that is not understood"),
    (put("layer/0/shape", [2, 8]), r"layer/0/shape: \(2, 8\)"),
    (put("layer/0/shape", [2, 0, 5]), r"layer/0/shape: \(2, 0, 5\)"),
    (put("layer/0/shape", [3, 8, 5]), "impossible network.*3 input channels"),
    (put("layer/1/shape", [4, 4, 5]), "layer/1/bias: shape"),
    (put("layer/1/shape", [4]), r"layer/1/shape: \(4,\)"),
    (huge_population, "layer/0/shape: .*neurons"),
    (put(f"{NEURON}/type", b"SDNN"), "layer/1/neuron/type: 'SDNN' .sigma-delta.*train it with CUBA"),
    (put(f"{NEURON}/type", b"RF_PHASE"), "layer/1/neuron/type: 'RF_PHASE' .resonate-and-fire.*with CUBA"),
    (put(f"{NEURON}/type", b"ALIF"), "layer/1/neuron/type: 'ALIF' .unknown"),
    (put(f"{NEURON}/refDelay", 2), "layer/1/neuron/refDelay: 2"),
    (put(f"{NEURON}/wgtExp", 1), "layer/1/neuron/wgtExp: 1"),
    (put(f"{NEURON}/messageBits", 0), "layer/1/neuron/messageBits: a field that Lava fails on.*remove it"),
    (put(f"{NEURON}/weight_exp", 1), "layer/1/neuron/weight_exp: 1"),
    (put(f"{NEURON}/gradedSpike", True), "layer/1/neuron/gradedSpike: 1"),
    (
        put(f"{NEURON}/iDecay", [1] * 3),
        r"layer/1/neuron/iDecay: shape \(3,\); allowed: one value, \(4,\) or \(4, 4, 4\)",
    ),
    (put(f"{NEURON}/vDecay", np.ones((1, 4, 4, 4), int)), r"layer/1/neuron/vDecay: shape \(1, 4, 4, 4\)"),
    (put(f"{NEURON}/vDecay", 1024.0), "layer/1/neuron/vDecay: dtype float64; allowed: integers.*store it as"),
    (put(f"{NEURON}/vThMant", [1, 2, 3]), r"layer/1/neuron/vThMant: shape \(3,\)"),
    (put(f"{NEURON}/vThMant", 2**25), "layer/1/neuron/vThMant: 33554432; allowed: less than 33554432"),
    (put(f"{NEURON}/iDecay", 4097), "conv0.decay_u.*4097"),
    (put(f"{NEURON}/vThMant", -1), "conv0.vth.*-1"),
    (put(f"{NEURON}/adaptation", 1), "layer/1/neuron/adaptation: a field that is not understood"),
    (put("layer/1/delay", 1), "layer/1/delay: a field that is not understood.*Lava does not look at it"),
    (put("layer/4/delay", [1, 63, 3]), "layer/4/delay: delays from 1 to 63 timesteps; allowed: 0 to 62: Lava clamps"),
    (put("layer/4/delay", [0, -1, 3]), "layer/4/delay: delays from -1 to 3"),
    (put("layer/4/delay", [0.5, 1, 3]), "layer/4/delay: values from 0.5"),
    (put("layer/4/delay", [1]), r"layer/4/delay: shape \(1,\); allowed: one number"),
    (put("layer/4/delay", np.ones((1, 72), int)), r"layer/4/delay: shape \(1, 72\)"),
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
    (put("layer/4/weight", np.eye(3)), "impossible network.*readout.w"),
    (put("layer/4/weight", np.ones((2, 3, 4))), r"layer/4/weight: shape \(2, 3, 4\)"),
    (put("layer/4/weight", np.ones(7)), r"layer/4/weight: shape \(7,\); allowed: \(3, inputs\)"),
    (complex_weight, "layer/4/weight: complex weights.*with CUBA neurons"),
    (put("layer/4/bias", [[1], [2], [3]]), r"layer/4/bias: shape \(3, 1\)"),
    (put("layer/1/bias", 5), r"layer/1/bias: shape \(\)"),
    (put("layer/1/bias", np.zeros(3)), r"layer/1/bias: shape \(3,\)"),
    (put("layer/1/bias", np.full(4, 2**15)), "conv0.bias.*32768"),
    (put("layer/1/stride", [1, 1, 1]), r"layer/1/stride: shape \(3,\)"),
    (put("layer/1/stride", [1]), r"layer/1/stride: shape \(1,\)"),
    (put("layer/1/padding", [1.0, 0.0]), "layer/1/padding: dtype float64"),
    (put("layer/1/stride", [0, 1]), "impossible network.*stride"),
    (put("layer/1/groups", [1]), r"layer/1/groups: shape \(1,\).*not an array"),
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
    (put("stars_deploy", np.zeros(2**22 + 1, np.uint8), compression="gzip"), "stars_deploy: shape .*4194304 values"),
    (metadata(layers=["x"] * 3), "not a readable NetX file"),
    (metadata(input={"name": "image", "scale": 1.0, "offset": "1", "precision": BITS}), "stars_deploy: offset = .1"),
    (metadata(input={"name": "image", "scale": 1.0, "biases": True, "precision": BITS}), "an input that biases"),
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


def test_no_layers_at_all(tmp_path):
    with h5py.File(tmp_path / "m.net", "w") as file:
        file.create_group("layer")
    with pytest.raises(FormatError, match="ends without a layer of neurons"):
        read_netx(tmp_path / "m.net", timesteps=1)
