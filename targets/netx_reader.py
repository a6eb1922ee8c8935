"""Read a NetX HDF5 file (``.net``) as a :class:`~stars_deploy.quantized.QuantizedGraph`.

Our own files come back equal. Strangers' feed-forward CUBA files are read as far as the integer graph can express them;
everything else is refused by name, also what Lava would skip in silence.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stars_deploy.artifacts import existing_file
from stars_deploy.errors import FormatError, StarsDeployError
from stars_deploy.precision import Precision
from stars_deploy.quantized import (
    VTH_NEVER,
    ConvProjection,
    DenseProjection,
    IntArray,
    Population,
    Projection,
    QuantizedGraph,
    QuantizedInput,
)
from stars_deploy.targets.hdf5_guard import GuardedGroup
from stars_deploy.targets.netx_limits import find_alteration
from stars_deploy.targets.netx_writer import METADATA, SCHEMA, SCHEMA_VERSION

#: Neurons of one layer; about 128 chips' worth, and 128 MB of int64.
MAX_NEURONS = 1 << 24
MAX_TIMESTEPS = 1 << 16

_LAYER_TYPES = "input, conv, flatten, dense"
_WHY_NOT = {
    "dense_rec": "a recurrent layer",
    "dense_comp": "a complex (resonate-and-fire) layer",
    "pool": "a pooling layer, which Lava cannot load either",
    "concat": "a concatenation, which Lava cannot load either",
    "average": "an averaging layer, which Lava cannot load either",
}
_SYNAPSES = frozenset({"type", "shape", "neuron", "weight", "bias"})
_CONV_FIELDS = _SYNAPSES | {"stride", "padding", "dilation", "groups", "kernelSize", "inChannels", "outChannels"}
_DENSE_FIELDS = _SYNAPSES | {"inFeatures", "outFeatures"}
#: theta, scaleRho and tauRho belong to SLAYER's training gradient.
_NEURON_FIELDS = frozenset(
    {"type", "iDecay", "vDecay", "vThMant", "refDelay", "wgtExp", "messageBits", "gradedSpike"}
    | {"theta", "scaleRho", "tauRho"}
)


def read_netx(path: str | os.PathLike[str], timesteps: int | None = None, input_bits: int = 8) -> QuantizedGraph:
    """Read `path`.

    Parameters
    ----------
    path : path
    timesteps : int, optional
        Timesteps for one inference; needed for files that do not say it, and overrides those that do.
    input_bits : int
        Bits of the image's payload, for files that do not say it.

    Raises
    ------
    FormatError
        If the file is damaged, or holds anything that the integer graph cannot express or Lava would alter.
    ArtifactError
        If there is no such file, or a Git-LFS pointer in its place.
    """
    where = str(existing_file(path))
    try:
        with h5py.File(where, "r", locking=False) as file:
            size = Path(where).stat().st_size
            return _read_network(GuardedGroup(file=where, name="", node=file, file_size=size), timesteps, input_bits)
    except FormatError:
        raise
    except StarsDeployError as error:
        raise FormatError(where, f"holds an impossible network ({error})", remedy="write it again") from error
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise FormatError(
            where, f"not a readable NetX file ({error})", "an HDF5 .net file", "copy or write it again"
        ) from error


def _read_network(root: GuardedGroup, timesteps: int | None, input_bits: int) -> QuantizedGraph:
    root.only(frozenset({"layer", "simulation", METADATA}))
    metadata = _Metadata(root)
    layers = root.group("layer")
    if sorted(layers.names()) != sorted(str(index) for index in range(len(layers.names()))):
        raise layers.error("", f"members {layers.names()[:8]}", "layers numbered 0, 1, 2, ...")
    if timesteps is None:
        timesteps = metadata.timesteps
    if timesteps is None:
        raise root.error(
            "",
            "does not say how many timesteps one inference takes",
            "a file written by stars-deploy, or a number given with it",
            "give it with --timesteps, or read_netx(path, timesteps=...)",
        )
    source = _read_input(layers, metadata.input(input_bits))
    chain = _read_chain(layers, source, metadata)
    metadata.check_length(len(chain))
    return QuantizedGraph(
        input=source,
        populations=tuple(population for _, population in chain),
        projections=tuple(projection for projection, _ in chain),
        timesteps=timesteps,
        labels=metadata.labels,
    )


def _read_input(layers: GuardedGroup, described: dict[str, Any]) -> QuantizedInput:
    if "0" not in layers:
        raise layers.error("", "no layers", "an input layer and at least one layer of neurons")
    group = layers.group("0")
    if (kind := group.text("type")) != "input":
        raise group.error("type", kind, "input, as the first layer", "add an input layer with the shape of the image")
    if "neuron" in group:
        raise group.error(
            "neuron",
            "an input layer with neurons of its own (a transformed image)",
            "an input layer that holds only shape and type",
            "turn it into a conv or dense layer behind a plain input",
        )
    group.only(frozenset({"type", "shape"}))
    return QuantizedInput(shape=_read_shape(group), **described)


def _read_chain(
    layers: GuardedGroup, source: QuantizedInput, metadata: _Metadata
) -> list[tuple[Projection, Population]]:
    chain: list[tuple[Projection, Population]] = []
    name, shape, highest, flat = source.name, source.shape, source.precision.high, False
    for index in range(1, len(layers.names())):
        group = layers.group(str(index))
        kind = group.text("type")
        if kind == "flatten":
            if flat or len(shape) != 3:
                raise group.error("type", f"flatten of {shape}", "flatten once, after a layer of (C, H, W)")
            group.only(frozenset({"type", "shape"}))
            flat = True
            continue
        if kind not in ("conv", "dense"):
            raise group.error(
                "type", f"{kind!r}, {_WHY_NOT.get(kind, 'a layer that Lava skips in silence')}", _LAYER_TYPES
            )
        if (kind == "dense") != (flat or len(shape) == 1):
            raise group.error("type", f"{kind} on a source of shape {shape}", "conv on (C, H, W), dense after flatten")
        names = metadata.layer(len(chain), kind)
        population = _read_population(group, kind, names)
        projection = _read_projection(group, kind, names, name, population)
        if altered := find_alteration(projection, population, highest):
            raise group.error("weight", altered, "what Lava executes exactly")
        chain.append((projection, population))
        name, shape, highest, flat = population.name, population.shape, 1, False
    if flat or not chain:
        raise layers.error("", "ends without a layer of neurons", "a conv or dense layer at the end")
    return chain


def _read_shape(group: GuardedGroup) -> tuple[int, ...]:
    shape = tuple(int(size) for size in group.numbers("shape").reshape(-1))
    if len(shape) not in (1, 3) or min(shape) < 1 or np.prod([float(size) for size in shape]) > MAX_NEURONS:
        raise group.error("shape", shape, f"(C, H, W) or (N,), of at least 1 and at most {MAX_NEURONS} neurons")
    return shape


def _read_population(group: GuardedGroup, kind: str, names: dict[str, Any]) -> Population:
    group.only(_CONV_FIELDS if kind == "conv" else _DENSE_FIELDS)
    shape = _read_shape(group)
    if kind == "dense":
        shape = (int(np.prod(shape)),)
    elif len(shape) != 3:
        raise group.error("shape", shape, "(C, H, W)")
    if "neuron" not in group and kind == "dense":
        # Lava's own default: an integrator without memory that never fires.
        dynamics = {"decay_u": 0, "decay_v": 4096, "vth": VTH_NEVER}
    else:
        dynamics = _read_neuron(group.group("neuron"))
    bias = _read_bias(group, shape) if "bias" in group else np.zeros(shape, np.int64)
    return Population(name=names["population"], scale=names["scale"], shape=shape, bias=bias, **dynamics)


def _read_neuron(group: GuardedGroup) -> dict[str, int]:
    kind = group.text("type")
    if kind not in ("CUBA", "LOIHI"):
        what = "sigma-delta" if kind == "SDNN" else "resonate-and-fire" if "RF" in kind else "unknown"
        raise group.error("type", f"{kind!r} ({what} neurons)", "CUBA or LOIHI (leaky integrate-and-fire)")
    group.only(_NEURON_FIELDS)
    for name, allowed in {"refDelay": (0, 1), "wgtExp": (0,), "messageBits": (0,), "gradedSpike": (0,)}.items():
        if name in group and group.number(name) not in allowed:
            raise group.error(name, group.number(name), f"{allowed[-1]}: the integer graph has no such behaviour")
    return {
        "decay_u": group.number("iDecay"),
        "decay_v": group.number("vDecay"),
        "vth": group.number("vThMant"),
    }


def _read_bias(group: GuardedGroup, shape: tuple[int, ...]) -> IntArray:
    bias = group.numbers("bias")
    if len(shape) == 3 and bias.shape == shape[:1]:
        bias = np.broadcast_to(bias[:, np.newaxis, np.newaxis], shape)
    elif bias.shape == shape[::-1]:  # one for each neuron, stored (W, H, C)
        bias = bias.transpose()
    else:
        raise group.error("bias", f"shape {bias.shape}", f"{shape[:1]} or {shape[::-1]}")
    return bias


def _read_projection(
    group: GuardedGroup, kind: str, names: dict[str, Any], source: str, population: Population
) -> Projection:
    weight = group.numbers("weight")
    common = {
        "name": names["projection"],
        "source": source,
        "target": population.name,
        "precision": names["precision"] or _narrowest(weight),
    }
    if kind == "dense":
        if weight.ndim == 1 and weight.size % population.size == 0:
            weight = weight.reshape(population.size, -1)
        return DenseProjection(weight=weight, **common)
    if weight.ndim == 5 and weight.shape[4] == 1:  # SLAYER keeps a time axis
        weight = weight[..., 0]
    if weight.ndim != 4:
        raise group.error("weight", f"shape {weight.shape}", "(out, in/groups, kh, kw)")
    return ConvProjection(
        weight=weight,
        stride=_read_pair(group, "stride"),
        padding=_read_pair(group, "padding"),
        dilation=_read_pair(group, "dilation"),
        groups=group.number("groups"),
        **common,
    )


def _narrowest(weight: IntArray) -> Precision:
    low, high = int(weight.min()), int(weight.max())
    bits = max((-low - 1).bit_length() if low < 0 else 0, high.bit_length()) + 1
    return Precision(bits=max(bits, 8), signed=True)


def _read_pair(group: GuardedGroup, name: str) -> tuple[int, int]:
    values = group.numbers(name).reshape(-1)
    if values.size not in (1, 2):
        raise group.error(name, f"{values.size} values", "(y, x), or one value for both")
    return int(values[0]), int(values[-1])


class _Metadata:
    """What stars-deploy wrote beside the layers, or what stands for it in a stranger's file."""

    def __init__(self, root: GuardedGroup) -> None:
        self._root = root
        self._content: dict[str, Any] = {}
        if METADATA in root:
            self._content = json.loads(bytes(root.numbers(METADATA).astype(np.uint8)).decode())
            found = (self._content.get("schema"), self._content.get("version"))
            if found != (SCHEMA, SCHEMA_VERSION):
                raise root.error(METADATA, f"schema {found}", f"{(SCHEMA, SCHEMA_VERSION)}", "build it again")

    @property
    def timesteps(self) -> int | None:
        """Timesteps for one inference, if the file says so."""
        if not self._content:
            return None
        timesteps = self._value(self._content, "timesteps", int)
        if not 1 <= timesteps <= MAX_TIMESTEPS:
            raise self._root.error(METADATA, f"{timesteps} timesteps", f"1 to {MAX_TIMESTEPS}")
        return int(timesteps)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names."""
        labels = self._value(self._content, "labels", list) if self._content else []
        if not all(isinstance(label, str) for label in labels):
            raise self._root.error(METADATA, "labels that are not text", "text")
        return tuple(labels)

    def input(self, bits: int) -> dict[str, Any]:
        """Return the name, scale and precision of the input."""
        if not self._content:
            precision = Precision(bits=bits, signed=False)
            return {"name": "input", "scale": float(precision.high), "precision": precision}
        described = self._value(self._content, "input", dict)
        return {
            "name": self._value(described, "name", str),
            "scale": self._scale(described),
            "precision": self._precision(described),
        }

    def layer(self, index: int, kind: str) -> dict[str, Any]:
        """Return the names, scale and precision of layer `index`."""
        if not self._content:
            name = f"{kind}{index + 1}"
            return {"population": name, "projection": f"{name}.weight", "scale": 1.0, "precision": None}
        layers = self._value(self._content, "layers", list)
        if index >= len(layers):
            raise self._root.error(METADATA, f"describes {len(layers)} layers", "as many as the file holds")
        described = layers[index]
        return {
            "population": self._value(described, "population", str),
            "projection": self._value(described, "projection", str),
            "scale": self._scale(described),
            "precision": self._precision(described),
        }

    def check_length(self, layers: int) -> None:
        """Refuse a description of more layers than the file holds."""
        if self._content and len(self._value(self._content, "layers", list)) != layers:
            raise self._root.error(METADATA, f"describes another number of layers than {layers}", f"{layers}")

    def _precision(self, described: dict[str, Any]) -> Precision:
        fields = self._value(described, "precision", dict)
        kinds = {"bits": int, "signed": bool, "exponent": int, "rounding": str}
        return Precision(**{name: self._value(fields, name, kind) for name, kind in kinds.items()})

    def _scale(self, described: dict[str, Any]) -> float:
        scale = float(self._value(described, "scale", float))
        if not np.isfinite(scale):
            raise self._root.error(METADATA, f"scale {scale}", "a finite number")
        return scale

    def _value(self, described: dict[str, Any], name: str, kind: type) -> Any:
        value = described.get(name)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise self._root.error(METADATA, f"{name} = {value!r}", f"{kind.__name__}", "build it again")
        return value
