"""NetX files for tests: built field by field as strangers write them, or edited."""

from __future__ import annotations

import h5py
import numpy as np

CUBA = {"type": b"CUBA", "iDecay": 4096, "vDecay": 1024, "vThMant": 60, "refDelay": 1}


def neuron(**fields):
    """A group of leaky integrate-and-fire neurons."""
    return {**CUBA, **fields}


def write_layers(path, *layers):
    """Write `layers`, dicts of fields, to `path`; a value that is a dict is a group, None is left out."""
    with h5py.File(path, "w") as file:
        for index, fields in enumerate(layers):
            group = file.create_group(f"layer/{index}")
            group["type"] = np.array([fields["type"]], dtype="S10")
            fill(group, {name: value for name, value in fields.items() if name != "type"})
    return path


def fill(group, fields):
    for name, value in fields.items():
        if isinstance(value, dict):
            fill(group.create_group(name), value)
        elif value is not None:
            group[name] = np.bytes_(value) if isinstance(value, bytes) else value


def image(*shape, **fields):
    return {"type": "input", "shape": np.array(shape), **fields}


def conv(weight, shape, **fields):
    """A convolution with stride 1 and without padding, unless `fields` say otherwise."""
    settings = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    return {"type": "conv", "shape": np.array(shape), "weight": weight, "neuron": CUBA, **settings, **fields}


def dense(weight, **fields):
    return {"type": "dense", "shape": np.array([len(weight)]), "weight": weight, "neuron": CUBA, **fields}


def flatten(size):
    return {"type": "flatten", "shape": np.array([1, 1, size])}


def recurrent(weight, weight_rec, **fields):
    return {**dense(weight, **fields), "type": "dense_rec", "weight_rec": weight_rec}


def even(rng, shape, largest=100):
    """Random weights of both signs that fill 8 bits, even: those that Lava's dense layer keeps."""
    weight = 2 * rng.integers(-(largest // 2), largest // 2 + 1, shape)
    weight.flat[:2] = 254, -256
    return weight


def put(name, value, **options):
    """A change that replaces dataset `name`."""

    def change(file):
        if name in file:
            del file[name]
        file.create_dataset(name, data=value, **options)

    return change


def remove(name):
    """A change that takes `name` away."""

    def change(file):
        del file[name]

    return change


def edit(source, target, *changes):
    """Copy `source` to `target` after each ``change(h5py.File)``."""
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        for change in changes:
            change(file)
    return target


#: Makes (3, 4, 3) of (2, 5, 4).
KERNEL = np.random.default_rng(2).integers(-20, 21, (3, 2, 2, 2))
#: A value for each of its neurons, in Lava's order (W, H, C).
WHC = np.arange(36).reshape(3, 4, 3) * 100
WEIGHT = even(np.random.default_rng(3), (4, 3))
LOOP = even(np.random.default_rng(4), (4, 4))
