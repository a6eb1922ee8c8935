"""Read the layers of a NetX file, one after another: which may follow which, and what Lava makes of the order."""

from __future__ import annotations

import math

from stars_deploy.populations import QuantizedInput
from stars_deploy.targets.hdf5_guard import GuardedGroup
from stars_deploy.targets.netx_layers import (
    FIELDS,
    MAX_NEURONS,
    Source,
    read_features,
    read_layer,
    read_population,
    read_shape,
    read_transform,
)
from stars_deploy.targets.netx_metadata import DEFAULT_BIAS, DEFAULT_WEIGHT, Metadata
from stars_deploy.targets.netx_writer import Layer

#: Layers of one file; Lava starts two processes of the operating system for each.
MAX_LAYERS = 1024

_LAYER_TYPES = "input, conv, flatten, dense, dense_rec"
_FAILS = "which Lava cannot load either"
_AS_CONV = "write it as a conv layer"
_WHY_NOT = {
    "dense_comp": ("a complex (resonate-and-fire) layer", "train it with CUBA neurons (slayer.block.cuba)"),
    "pool": (f"a pooling layer, {_FAILS}", f"{_AS_CONV} with a group and a kernel of equal weights for each channel"),
    "convT": (f"a transposed convolution, {_FAILS}", f"{_AS_CONV} on a larger image, or as a dense layer"),
    "unpool": (f"an unpooling layer, {_FAILS}", "write it as a dense layer"),
    "concat": (f"a concatenation, {_FAILS}", "write it as one wider layer"),
    "average": (
        "an averaging layer, which does nothing in Lava",
        "remove it, and average the spikes of the layer before it yourself",
    ),
}
_SKIPPED = ("a layer that Lava skips in silence", "remove it, or write it as a conv or dense layer")


def read_chain(layers: GuardedGroup, metadata: Metadata, input_bits: int) -> tuple[QuantizedInput, tuple[Layer, ...]]:
    """Return the input and the layers with neurons, in synchronous timing.

    Parameters
    ----------
    layers : GuardedGroup
        The group ``layer`` of a NetX file.
    metadata : Metadata
    input_bits : int
        Bits of the image's payload, for files that do not say it.

    Raises
    ------
    FormatError
        Naming the layer that Lava alters, skips or cannot load, or that is too large.
    """
    count = len(layers.node)
    if count > MAX_LAYERS:
        raise layers.error("", f"{count} layers", f"at most {MAX_LAYERS}")
    if sorted(layers.names()) != sorted(str(index) for index in range(count)):
        raise layers.error("", f"members {layers.names()[:8]}", "layers numbered 0, 1, 2, ...")
    chain = _Chain(metadata, input_bits)
    for index in range(count):
        group = layers.group(str(index))
        chain.add(group, group.text("type"), index)
    if chain.input is None or chain.flat or not chain.layers:
        raise layers.error("", "ends without a layer of neurons", "a conv or dense layer at the end")
    metadata.check_length(len(chain.layers))
    return chain.input, tuple(chain.layers)


class _Chain:
    """The layers read so far, and what the next one comes from."""

    def __init__(self, metadata: Metadata, input_bits: int) -> None:
        self.input: QuantizedInput | None = None
        self.layers: list[Layer] = []
        self.flat = False
        self._metadata = metadata
        self._input_bits = input_bits
        self._neurons = 0

    def add(self, group: GuardedGroup, kind: str, index: int) -> None:
        """Read layer `index`."""
        if kind not in FIELDS and kind != "flatten":
            why, remedy = _WHY_NOT.get(kind, _SKIPPED)
            raise group.error("type", f"{kind!r}, {why}", _LAYER_TYPES, remedy)
        if kind == "input":
            if index:
                raise group.error("type", "input, which Lava connects to nothing here", "input as the first layer only")
            self._add_input(group)
        elif kind == "flatten":
            self._add_flatten(group)
        else:
            self._add_synapses(group, kind)

    def _add_input(self, group: GuardedGroup) -> None:
        if "neuron" not in group:
            group.only(frozenset({"type", "shape"}))
            if "shape" in group:  # else the weights of a dense layer say it
                self.input = QuantizedInput(shape=read_shape(group), **self._metadata.spikes(self._input_bits))
            return
        weight = read_transform(group, "weight", DEFAULT_WEIGHT)
        bias = read_transform(group, "bias", DEFAULT_BIAS)
        names = self._metadata.layer(0, 0, "input")
        population = read_population(group, "input", self._admitted(group), names)
        described = self._metadata.biases(weight, bias)
        self.input = QuantizedInput(shape=population.shape, biases=population.name, **described)
        self.layers.append(Layer(population=population))

    def _add_flatten(self, group: GuardedGroup) -> None:
        group.only(frozenset({"type", "shape"}))
        if self.flat or (self.layers and len(self.layers[-1].population.shape) != 3):
            raise group.error("type", "flatten of a flat layer", "flatten once, after a layer of (C, H, W)")
        self.flat = True

    def _add_synapses(self, group: GuardedGroup, kind: str) -> None:
        if self.input is None:
            features = read_features(group, kind)
            self.input = QuantizedInput(shape=(features,), **self._metadata.spikes(self._input_bits))
        if self.layers:
            before = self.layers[-1].population
            shape, source = before.shape, Source(name=before.name, size=before.size)
        else:
            shape, values = self.input.shape, self.input.precision
            source = Source(name=self.input.name, size=math.prod(shape), low=values.low, high=values.high)
        if kind == "conv" and (self.flat or len(shape) != 3):
            raise group.error("type", f"conv on a source of shape {shape}", "conv on (C, H, W), not after flatten")
        # Before the first layer there is nothing to flatten: Lava takes the image in the shape of its synapses.
        if kind != "conv" and self.layers and not self.flat and len(shape) != 1:
            raise group.error("type", f"{kind} on a source of shape {shape}", "dense after flatten or another dense")
        number = sum(layer.projection is not None for layer in self.layers) + 1
        names = self._metadata.layer(len(self.layers), number, kind)
        population = read_population(group, kind, self._admitted(group), names)
        self.layers.append(read_layer(group, kind, names, source, population))
        self.flat = False

    def _admitted(self, group: GuardedGroup) -> tuple[int, ...]:
        """Return the shape of a layer, if its neurons can be held with those before."""
        shape = read_shape(group)
        self._neurons += math.prod(shape)
        if self._neurons > MAX_NEURONS:
            raise group.error("shape", f"{shape}, {self._neurons} neurons so far", f"at most {MAX_NEURONS} in all")
        return shape
