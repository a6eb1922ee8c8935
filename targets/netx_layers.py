"""Read one layer of a NetX file: shape, neurons, bias, synapses, delays.

Every rule here is what ``lava.lib.dl.netx.hdf5.Network`` (lava-dl 0.6.0) does with the field, found by running it. What
it would alter, skip in silence or fail on is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from stars_deploy.populations import DECAY_ONE, VTH_NEVER, IntArray, Population
from stars_deploy.precision import Precision
from stars_deploy.projections import ConvProjection, DenseProjection, Projection
from stars_deploy.targets.hdf5_guard import MAX_VALUES, GuardedGroup
from stars_deploy.targets.netx_limits import DELAY_LIMIT, find_alteration
from stars_deploy.targets.netx_writer import Layer

#: Neurons of a network; about 16 chips' worth, and 128 MiB of int64.
MAX_NEURONS = 1 << 24
#: Lava shifts a threshold left by 6 bits in int32.
_VTH_LIMIT = 1 << 25

_SYNAPSES = frozenset({"type", "shape", "neuron", "weight", "bias"})
_DENSE = _SYNAPSES | {"inFeatures", "outFeatures", "delay"}
FIELDS = {
    "input": _SYNAPSES,
    "conv": _SYNAPSES | {"stride", "padding", "dilation", "groups", "kernelSize", "inChannels", "outChannels"},
    "dense": _DENSE,
    "dense_rec": _DENSE | {"weight_rec"},
}
#: theta, scaleRho and tauRho belong to SLAYER's training gradient.
_NEURON_FIELDS = frozenset(
    {"type", "iDecay", "vDecay", "vThMant", "refDelay", "wgtExp", "weight_exp", "messageBits", "gradedSpike"}
    | {"theta", "scaleRho", "tauRho"}
)
#: Fields of neurons that Lava does not look at, and the values that mean what it does.
_WITHOUT_EFFECT = {"refDelay": (0, 1), "wgtExp": (0,), "weight_exp": (0,), "gradedSpike": (0,)}
_RESCALE = "scale the weights, bias and threshold of the layer together, or give it weights of fewer bits"
_CUBA = "train it with CUBA neurons (slayer.block.cuba)"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a layer comes from: how many neurons or pixels, and the smallest and largest value that they send [LSB]."""

    name: str
    size: int
    low: int = 0
    high: int = 1


def read_shape(group: GuardedGroup) -> tuple[int, ...]:
    """Return the shape of a layer, (C, H, W) or (N,), of a size that can be held."""
    shape = tuple(int(size) for size in group.numbers("shape", 3, integers=True).reshape(-1))
    if len(shape) not in (1, 3) or min(shape) < 1 or math.prod(shape) > MAX_NEURONS:
        raise group.error("shape", shape, f"(C, H, W) or (N,), of at least 1 and at most {MAX_NEURONS} neurons")
    return shape


def read_population(group: GuardedGroup, kind: str, shape: tuple[int, ...], names: dict[str, Any]) -> Population:
    """Return the neurons of a layer of `shape`."""
    group.only(FIELDS[kind], "remove it, if nothing depends on it: Lava does not look at it")
    if kind in ("dense", "dense_rec"):
        shape = (math.prod(shape),)
    elif kind == "conv" and len(shape) != 3:
        raise group.error("shape", shape, "(C, H, W)")
    if "neuron" not in group and kind in ("dense", "dense_rec"):
        # Lava's own default: a potential that is its current, which does not decay, and never fires.
        dynamics: dict[str, Any] = {"decay_u": 0, "decay_v": DECAY_ONE, "vth": VTH_NEVER}
    else:
        dynamics = _read_neuron(group.group("neuron"), shape)
    if kind == "input":  # its current gets no input: Lava connects nothing to it
        dynamics["decay_u"] = DECAY_ONE
    has_bias = "bias" in group and kind != "input"
    bias = _read_bias(group, shape) if has_bias else np.zeros(shape, np.int64)
    return Population(name=names["population"], scale=names["scale"], shape=shape, bias=bias, **dynamics)


def read_transform(group: GuardedGroup, name: str, default: int) -> int:
    """Return the weight or the bias of an input layer's transform [LSB]."""
    return group.number(name) if name in group else default


def read_layer(
    group: GuardedGroup,
    kind: str,
    names: dict[str, Any],
    source: Source,
    population: Population,
) -> Layer:
    """Return a layer with synapses; a recurrent one has a delay of 1 timestep and the file's own.

    Parameters
    ----------
    group : GuardedGroup
    kind : str
        ``conv``, ``dense`` or ``dense_rec``.
    names : dict
        What :class:`~stars_deploy.targets.netx_metadata.Metadata` says of it.
    source : Source
        What it comes from.
    population : Population
        What it enters.
    """
    common = {"name": names["projection"], "source": source.name, "target": population.name}
    if kind == "conv":
        projection: Projection = _read_conv(group, common, names["precision"])
        recurrent = None
    else:
        projection, recurrent = _read_dense(group, kind, common, names, population, source.size)
    if altered := find_alteration(projection, population, source.high, source.low, recurrent, "delay" in group):
        raise group.error("weight", altered, "what Lava executes exactly", _RESCALE)
    return Layer(population=population, projection=projection, recurrent=recurrent)


def read_features(group: GuardedGroup, kind: str) -> int:
    """Return the number of inputs of a layer that nothing comes before, which Lava takes from its weights."""
    if kind == "conv":
        raise group.error(
            "type",
            "conv, without a layer before it that says the shape of the image",
            "an input layer with a shape at first",
            "add a layer 0 of the type input with the shape (C, H, W), or give Lava an input_shape",
        )
    shape = group.shape("weight")
    neurons = math.prod(read_shape(group))
    features = shape[1] if len(shape) == 2 else math.prod(shape) // neurons
    if not 1 <= features <= MAX_NEURONS:
        raise group.error("weight", f"shape {shape}", f"({neurons}, 1 to {MAX_NEURONS})")
    return features


# ---------------------------------------------------------------- neurons


def _read_neuron(group: GuardedGroup, shape: tuple[int, ...]) -> dict[str, Any]:
    kind = group.text("type")
    if kind not in ("CUBA", "LOIHI"):
        what = "sigma-delta" if kind == "SDNN" else "resonate-and-fire" if "RF" in kind else "unknown"
        raise group.error("type", f"{kind!r} ({what} neurons)", "CUBA or LOIHI (leaky integrate-and-fire)", _CUBA)
    group.only(_NEURON_FIELDS)
    for name, allowed in _WITHOUT_EFFECT.items():
        if name in group and group.number(name) not in allowed:
            raise group.error(name, group.number(name), f"{allowed[-1]}: Lava has no such behaviour")
    if "messageBits" in group:
        raise group.error(
            "messageBits", "a field that Lava fails on", "no such field", "remove it: these neurons send 0 or 1"
        )
    vth = _read_per_neuron(group, "vThMant", shape)
    if vth.max() >= _VTH_LIMIT:
        raise group.error("vThMant", int(vth.max()), f"less than {_VTH_LIMIT}: beyond it Lava's integers wrap")
    return {
        "decay_u": _read_per_neuron(group, "iDecay", shape),
        "decay_v": _read_per_neuron(group, "vDecay", shape),
        "vth": np.minimum(vth, VTH_NEVER),  # no larger threshold can be reached either
    }


def _read_per_neuron(group: GuardedGroup, name: str, shape: tuple[int, ...]) -> IntArray:
    """Return decays or thresholds as one number or in our order; NumPy broadcasts them against Lava's (W, H, C)."""
    values = group.numbers(name, math.prod(shape), integers=True)
    if values.size == 1:
        return np.array(values.flat[0])
    lava = shape[::-1]
    fits = values.ndim <= len(lava) and all(
        size in (1, whole) for size, whole in zip(values.shape[::-1], lava[::-1], strict=False)
    )
    if not fits:
        raise group.error(name, f"shape {values.shape}", f"one value, {lava[-1:]} or {lava}, or what broadcasts to it")
    full: IntArray = np.broadcast_to(values, lava).transpose()
    return full


def _read_bias(group: GuardedGroup, shape: tuple[int, ...]) -> IntArray:
    bias: IntArray = group.numbers("bias", math.prod(shape))
    if len(shape) == 3 and bias.shape == shape[::-1]:  # one for each neuron, stored (W, H, C)
        bias = bias.transpose()
        return bias
    if len(shape) == 3 and bias.shape == shape[:1]:
        return np.broadcast_to(bias[:, np.newaxis, np.newaxis], shape)
    if len(shape) == 1 and (bias.size == 1 or (bias.size == shape[0] and bias.shape[-1:] == shape)):
        return np.broadcast_to(bias.reshape(-1), shape)
    raise group.error("bias", f"shape {bias.shape}", f"{shape[:1]} or {shape[::-1]}")


# ---------------------------------------------------------------- synapses


def _read_conv(group: GuardedGroup, common: dict[str, Any], precision: Precision | None) -> ConvProjection:
    weight = _read_weight(group, "weight", MAX_VALUES)
    if weight.ndim == 5 and weight.shape[4] == 1:  # SLAYER keeps a time axis
        weight = weight[..., 0]
    if weight.ndim != 4:
        raise group.error("weight", f"shape {weight.shape}", "(out, in/groups, kh, kw)")
    if group.shape("groups"):
        raise group.error("groups", f"shape {group.shape('groups')}", "one number, not an array (Lava fails on it)")
    return ConvProjection(
        weight=weight,
        precision=precision or _narrowest(weight),
        stride=_read_pair(group, "stride"),
        padding=_read_pair(group, "padding"),
        dilation=_read_pair(group, "dilation"),
        groups=int(group.numbers("groups", 1, integers=True)),
        **common,
    )


def _read_dense(
    group: GuardedGroup, kind: str, common: dict[str, Any], names: dict[str, Any], population: Population, inputs: int
) -> tuple[DenseProjection, DenseProjection | None]:
    neurons = population.size
    weight = _read_weight(group, "weight", neurons * inputs)
    flat = weight.ndim == 1
    if flat:
        weight = _unflatten(group, "weight", weight, neurons)
    if weight.ndim != 2 or len(weight) != neurons:
        raise group.error("weight", f"shape {weight.shape}", f"({neurons}, inputs)")
    delay = _read_delay(group, weight.shape) if "delay" in group else np.zeros((), np.int64)
    precision = names["precision"] or _narrowest(weight)
    projection = DenseProjection(weight=weight, precision=precision, delay=delay, **common)
    if kind == "dense":
        return projection, None
    again = _read_weight(group, "weight_rec", neurons * neurons)
    if flat:
        again = _unflatten(group, "weight_rec", again, neurons)
    if again.shape != (neurons, neurons):
        raise group.error("weight_rec", f"shape {again.shape}", f"({neurons}, {neurons})")
    if "delay" in group and weight.shape != again.shape:
        raise group.error(
            "delay",
            f"shape {weight.shape}, with recurrent weights of shape {again.shape}",
            "as many inputs as neurons: NetX gives both matrices the same delays",
            "remove the delays, or put a dense layer of as many neurons before it",
        )
    recurrent = DenseProjection(
        name=names["recurrent"],
        source=population.name,
        target=population.name,
        weight=again,
        precision=names["recurrent_precision"] or _narrowest(again),
        delay=delay + 1,
    )
    return projection, recurrent


def _read_weight(group: GuardedGroup, name: str, most: int) -> IntArray:
    if group.is_group(name):
        raise group.error(name, "complex weights, of resonate-and-fire neurons", "whole numbers", _CUBA)
    return group.numbers(name, min(most, MAX_VALUES))


def _unflatten(group: GuardedGroup, name: str, weight: IntArray, neurons: int) -> IntArray:
    if weight.size % neurons:
        raise group.error(name, f"shape {weight.shape}", f"({neurons}, inputs)")
    return weight.reshape(neurons, -1)


def _read_delay(group: GuardedGroup, shape: tuple[int, ...]) -> IntArray:
    """Return delays as one number or (out, in), by the rule of ``hdf5.Network.create_dense``."""
    delay = group.numbers("delay", math.prod(shape))
    if delay.min() < 0 or delay.max() > DELAY_LIMIT:
        got = f"delays from {delay.min()} to {delay.max()} timesteps"
        raise group.error("delay", got, f"0 to {DELAY_LIMIT}: Lava clamps longer ones", "clamp them in the file")
    if delay.ndim == 0 or delay.shape == shape:
        return delay
    if delay.shape == shape[:1]:  # one for each neuron of this layer, also where it has as many inputs
        return np.broadcast_to(delay[:, np.newaxis], shape)
    if delay.shape == shape[1:]:
        return np.broadcast_to(delay, shape)
    raise group.error("delay", f"shape {delay.shape}", f"one number, {shape[:1]}, {shape[1:]} or {shape}")


def _read_pair(group: GuardedGroup, name: str) -> tuple[int, int]:
    values = group.numbers(name, 2, integers=True)
    if values.shape not in ((), (2,)):
        raise group.error(name, f"shape {values.shape}", "(y, x), or one number for both (Lava fails on others)")
    return int(values.flat[0]), int(values.flat[-1])


def _narrowest(weight: IntArray) -> Precision:
    low, high = int(weight.min()), int(weight.max())
    bits = max((-low - 1).bit_length() if low < 0 else 0, high.bit_length() if high > 0 else 0) + 1
    return Precision(bits=max(bits, 8), signed=True)
