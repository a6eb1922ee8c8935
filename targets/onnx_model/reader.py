"""Models back to graphs. What is read is made into a model again, and must be the one in the file.

So nothing can hide in a file: a node that computes something else, an attribute, a tensor too many or changed is found
by name, whoever wrote it. Nothing outside the file is ever opened.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, helper, numpy_helper

from stars_deploy.artifacts import existing_file
from stars_deploy.errors import FormatError, StarsDeployError
from stars_deploy.populations import IntArray, Population, QuantizedInput
from stars_deploy.precision import Precision
from stars_deploy.projections import ConvProjection, DenseProjection, Projection
from stars_deploy.quantized import QuantizedGraph
from stars_deploy.targets.onnx_model.biases import bias_name, places_name, unpack_bias
from stars_deploy.targets.onnx_model.comparison import find_deviation
from stars_deploy.targets.onnx_model.frames import channels_first
from stars_deploy.targets.onnx_model.metadata import SCHEMA, SCHEMA_VERSION, Origin
from stars_deploy.targets.onnx_model.outputs import SOURCES
from stars_deploy.targets.onnx_model.synapses import delay_name, unpack_dense, unpack_weight, weight_name
from stars_deploy.targets.onnx_model.writer import MAX_LAYERS, MAX_NEURONS, MAX_TIMESTEPS, MODES, build_model

#: Largest file that is read [bytes]; protobuf itself stops at 2 GiB.
MAX_BYTES = 1 << 30
_AGAIN = "export it again with stars-deploy"
#: What JSON, NumPy and the constructors of a graph raise for a description that is damaged or hostile.
_DAMAGED = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, OverflowError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A model that was read and checked.

    Parameters
    ----------
    graph : QuantizedGraph
    model : ModelProto
        As it is in the file.
    mode, source : str
        ``sequence`` or ``step``; ``image`` or ``payloads``.
    """

    graph: QuantizedGraph
    model: ModelProto
    mode: str
    source: str


def read_onnx(path: Path, timesteps: int | None = None) -> OnnxFile:
    """Read a model that stars-deploy wrote.

    Parameters
    ----------
    path : Path
    timesteps : int, optional
        That it must have been written for.

    Raises
    ------
    ArtifactError
        If there is no such file.
    FormatError
        If it is no model, is damaged, or holds anything that stars-deploy would not have written.
    """
    where = str(path)
    model = _parse(path)
    props = {entry.key: entry.value for entry in model.metadata_props}
    if (props.get("schema"), props.get("schema_version")) != (SCHEMA, str(SCHEMA_VERSION)):
        got = f"schema {str(props.get('schema'))[:80]!r} version {str(props.get('schema_version'))[:20]!r}"
        raise FormatError(where, got, f"{SCHEMA!r} version {SCHEMA_VERSION}", _AGAIN)
    mode, source = props.get("mode", ""), props.get("source", "")
    if mode not in MODES or source not in SOURCES:
        raise FormatError(where, f"mode {mode[:80]!r}, source {source[:80]!r}", f"{MODES}, {SOURCES}", _AGAIN)
    try:
        content = {key: json.loads(props[key]) for key in _JSON}
        graph = _Decoder(where, model, content).graph()
        expected = build_model(graph, mode, source, Origin.read(content))
    except FormatError:
        raise
    except StarsDeployError as error:
        raise FormatError(where, f"holds an impossible network ({error})", remedy=_AGAIN) from error
    except _DAMAGED as error:
        raise FormatError(where, f"has a damaged description ({_first_line(error)})", remedy=_AGAIN) from error
    if deviation := find_deviation(model, expected):
        raise FormatError(where, deviation, "only what stars-deploy writes", _AGAIN)
    if timesteps is not None and timesteps != graph.timesteps:
        raise FormatError(
            where, f"made for {graph.timesteps} timesteps", f"{timesteps}", f"export it again for {timesteps} timesteps"
        )
    return OnnxFile(graph=graph, model=model, mode=mode, source=source)


_JSON = ("timesteps", "labels", "input", "layers", "projections", "dt", "normalization", "versions")


def _parse(path: Path) -> ModelProto:
    where = str(path)
    size = existing_file(path).stat().st_size
    if size > MAX_BYTES:
        raise FormatError(where, f"{size} bytes", f"at most {MAX_BYTES}")
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, ValueError) as error:
        raise FormatError(where, f"no ONNX model ({_first_line(error)})", "a model.onnx", _AGAIN) from error
    for tensor in model.graph.initializer:
        _check_tensor(where, tensor)
    return model


def _check_tensor(where: str, tensor: TensorProto) -> None:
    """Refuse tensors in other files, and those whose dimensions do not fit their bytes."""
    place = f"{where}: {tensor.name[:200]}"
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise FormatError(place, "keeps its values in another file", "all values in the model", _AGAIN)
    try:
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, ValueError) as error:
        raise FormatError(place, f"of type {tensor.data_type}", "a type of ONNX", _AGAIN) from error
    claimed = math.prod(tensor.dims) * kind.itemsize
    if min(tensor.dims, default=0) < 0 or claimed != len(tensor.raw_data):
        raise FormatError(place, f"{claimed} bytes claimed, {len(tensor.raw_data)} stored", "as many", _AGAIN)


class _Decoder:
    """Makes the graph from the description and the tensors of a file."""

    def __init__(self, where: str, model: ModelProto, content: dict[str, Any]) -> None:
        self._where = where
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._content = content

    def graph(self) -> QuantizedGraph:
        """Return the graph; whatever is impossible raises one of ``_DAMAGED`` or a StarsDeployError."""
        content = self._content
        source = self._input(content["input"])
        layers, entries = self._list(content["layers"]), self._list(content["projections"])
        shapes = {source.name: source.shape}
        shapes.update({self._text(layer["name"]): self._shape(layer["shape"]) for layer in layers})
        if sum(math.prod(shape) for shape in shapes.values()) > MAX_NEURONS:
            raise FormatError(self._where, "too many neurons", f"at most {MAX_NEURONS}", _AGAIN)
        timesteps = self._whole(content["timesteps"])
        if timesteps > MAX_TIMESTEPS:
            raise FormatError(self._where, f"{timesteps} timesteps", f"at most {MAX_TIMESTEPS}", _AGAIN)
        return QuantizedGraph(
            input=source,
            populations=tuple(self._population(layer) for layer in layers),
            projections=tuple(self._projection(index, entry, shapes) for index, entry in enumerate(entries)),
            timesteps=timesteps,
            labels=tuple(self._text(label) for label in content["labels"]),
        )

    def _input(self, entry: Any) -> QuantizedInput:
        return QuantizedInput(
            name=self._text(entry["name"]),
            shape=self._shape(entry["shape"]),
            precision=self._precision(entry["precision"]),
            scale=float(entry["scale"]),
            offset=float(entry["offset"]),
            biases=self._text(entry["biases"]),
        )

    def _population(self, entry: Any) -> Population:
        name, shape = self._text(entry["name"]), self._shape(entry["shape"])
        kept = bias_name(name) in self._tensors
        values = self._numbers(bias_name(name)) if kept else np.zeros(1, np.int64)
        places = self._numbers(places_name(name)) if places_name(name) in self._tensors else None
        return Population(
            name=name,
            shape=shape,
            decay_u=self._one_or_many(entry, "decay_u", name, shape),
            decay_v=self._one_or_many(entry, "decay_v", name, shape),
            vth=self._one_or_many(entry, "vth", name, shape),
            bias=unpack_bias(values, places, shape),
            reset_interval=self._whole(entry["reset_interval"]),
            reset_offset=self._whole(entry["reset_offset"]),
            scale=float(entry["scale"]),
        )

    def _one_or_many(self, entry: Any, field: str, name: str, shape: tuple[int, ...]) -> int | IntArray:
        if entry[field] is not None:
            return self._whole(entry[field])
        return channels_first(self._numbers(f"{field}:{name}"), shape)

    def _projection(self, index: int, entry: Any, shapes: dict[str, tuple[int, ...]]) -> Projection:
        name, kernel = self._text(entry["name"]), self._shape(entry["weight"])
        source = self._text(entry["source"])
        shape = shapes[source]
        blank: dict[str, Any] = {
            "name": name,
            "source": source,
            "target": self._text(entry["target"]),
            "precision": self._precision(entry["precision"]),
        }
        placeholder = np.zeros((1,) * len(kernel), np.int64)
        if entry["kind"] == "dense":
            named = DenseProjection(**{**blank, "weight": placeholder})
            packed = self._numbers(weight_name(index, named))
            delay = entry["delay"]
            if delay is None:
                late = self._numbers(delay_name(index, named))
                spread = np.broadcast_to(late, packed.shape)
                return DenseProjection(**blank, weight=unpack_dense(packed, shape), delay=unpack_dense(spread, shape))
            return DenseProjection(**blank, weight=unpack_dense(packed, shape), delay=self._whole(delay))
        groups = self._whole(entry["groups"])
        packed = self._numbers(weight_name(index, ConvProjection(**{**blank, "weight": placeholder})))
        return ConvProjection(
            **blank,
            weight=unpack_weight(packed, kernel, shape, groups),
            stride=self._pair(entry["stride"]),
            padding=self._pair(entry["padding"]),
            dilation=self._pair(entry["dilation"]),
            groups=groups,
            delay=self._whole(entry["delay"]),
        )

    def _numbers(self, name: str) -> IntArray:
        if name not in self._tensors:
            raise FormatError(self._where, f"no tensor {name[:200]!r}", "all that the description names", _AGAIN)
        values: npt.NDArray[Any] = numpy_helper.to_array(self._tensors[name])
        if not np.issubdtype(values.dtype, np.integer) or not values.size:
            got = f"{values.dtype}, {values.size} values"
            raise FormatError(f"{self._where}: {name[:200]}", got, "integers", _AGAIN)
        return values.astype(np.int64)

    def _precision(self, entry: Any) -> Precision:
        return Precision(
            bits=self._whole(entry["bits"]),
            signed=bool(entry["signed"]),
            exponent=self._whole(entry["exponent"], least=-64),
            rounding=self._text(entry["rounding"]),
        )

    def _list(self, entries: Any) -> list[Any]:
        if not isinstance(entries, list) or len(entries) > MAX_LAYERS:
            raise FormatError(self._where, "no list of layers, or too long a one", f"at most {MAX_LAYERS}", _AGAIN)
        return entries

    def _shape(self, entry: Any) -> tuple[int, ...]:
        return tuple(self._whole(size, least=1) for size in entry)

    def _pair(self, entry: Any) -> tuple[int, int]:
        first, second = (self._whole(value) for value in entry)
        return first, second

    def _whole(self, value: Any, least: int = 0) -> int:
        if type(value) is not int or not least <= value < 1 << 31:
            raise FormatError(self._where, f"{repr(value)[:80]} in its description", "a whole number", _AGAIN)
        return value

    def _text(self, value: Any) -> str:
        if not isinstance(value, str):
            raise FormatError(self._where, f"{repr(value)[:80]} in its description", "text", _AGAIN)
        return value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
