"""Graphs to files and back: one NumPy archive with a JSON header, no pickle, one schema version.

The archive holds every array under the path of its field and, under ``header``, the JSON of everything else.
A reader meets only names of this module's table; anything else in the file is refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from stars_deploy import graph as floats
from stars_deploy import quantized as integers
from stars_deploy.artifacts import existing_file, write_arrays
from stars_deploy.errors import FormatError, StarsDeployError
from stars_deploy.precision import Precision

SCHEMA = "stars-deploy graph"
SCHEMA_VERSION = 1

#: What NumPy, zipfile, zlib and json raise for content that is damaged or hostile (RecursionError is a RuntimeError).
_UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, MemoryError, EOFError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)
#: More than deflate can compress (1,032 to 1).
_MAX_COMPRESSION = 1100

Graph = Union[floats.SpikingGraph, integers.QuantizedGraph]

_TYPES: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (
        floats.SpikingGraph,
        floats.Input,
        floats.Normalize,
        floats.Conv2d,
        floats.Linear,
        floats.BatchNorm,
        floats.Scale,
        floats.Pool2d,
        floats.Flatten,
        floats.Delay,
        floats.LIF,
        floats.CubaLIF,
        floats.IF,
        floats.LI,
        floats.Integrator,
        integers.QuantizedGraph,
        integers.QuantizedInput,
        Precision,
        integers.Population,
        integers.DenseProjection,
        integers.ConvProjection,
    )
}


def save_graph(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write a graph to `path` (``.npz``), whole or not at all."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    header = {"schema": SCHEMA, "version": SCHEMA_VERSION, "graph": _encode(graph, "graph", arrays)}
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    write_arrays(path, arrays)


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """Read a graph that :func:`save_graph` wrote; every check of its constructors runs again.

    Raises
    ------
    FormatError
        If the file is no such archive, is truncated, has another schema version, or holds an impossible graph.
    """
    existing_file(path)
    where = str(path)
    try:
        _check_sizes(where)
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(bytes(archive["header"]).decode())
            if header.get("schema") != SCHEMA or header.get("version") != SCHEMA_VERSION:
                raise FormatError(
                    where,
                    f"schema {header.get('schema')!r} version {header.get('version')!r}",
                    f"{SCHEMA!r} version {SCHEMA_VERSION}",
                    "build it again with this version of stars-deploy",
                )
            graph = _decode(header["graph"], archive)
    except _UNREADABLE as error:
        raise FormatError(
            where, f"not a readable graph ({error})", "an .npz written by stars-deploy", "build it again"
        ) from error
    except FormatError:
        raise
    except StarsDeployError as error:
        raise FormatError(where, f"holds an impossible graph ({error})", remedy="build it again") from error
    if not isinstance(graph, (floats.SpikingGraph, integers.QuantizedGraph)):
        raise FormatError(where, type(graph).__name__, "SpikingGraph or QuantizedGraph")
    return graph


def load_quantized(path: str | os.PathLike[str]) -> integers.QuantizedGraph:
    """Read a :class:`~stars_deploy.quantized.QuantizedGraph`; refuse the float graph."""
    graph = load_graph(path)
    if not isinstance(graph, integers.QuantizedGraph):
        raise FormatError(str(path), type(graph).__name__, "QuantizedGraph", "give the model.npz of a built directory")
    return graph


def load_spiking(path: str | os.PathLike[str]) -> floats.SpikingGraph:
    """Read a :class:`~stars_deploy.graph.SpikingGraph`; refuse the integer graph."""
    graph = load_graph(path)
    if not isinstance(graph, floats.SpikingGraph):
        raise FormatError(str(path), type(graph).__name__, "SpikingGraph", "give the graph.npz of a built directory")
    return graph


def _check_sizes(path: str) -> None:
    # NumPy allocates what an array's header claims before it reads a byte of it.
    layout: Any = np.lib.format  # untyped in NumPy 1
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as stream:
                version = layout.read_magic(stream)
                read = layout.read_array_header_1_0 if version == (1, 0) else layout.read_array_header_2_0
                shape, _, dtype = read(stream)
                claimed = math.prod(shape) * dtype.itemsize
                if claimed != info.file_size - stream.tell() or info.file_size > info.compress_size * _MAX_COMPRESSION:
                    raise FormatError(
                        f"{path}: {info.filename}",
                        f"{claimed} bytes claimed, {info.file_size} stored in {info.compress_size}",
                        "an array of the size that its header says",
                        "build it again",
                    )


def _encode(value: Any, path: str, arrays: dict[str, npt.NDArray[Any]]) -> Any:
    if isinstance(value, np.ndarray):
        arrays[path] = value
        return {"array": path}
    if dataclasses.is_dataclass(value):
        fields = {
            item.name: _encode(getattr(value, item.name), f"{path}.{item.name}", arrays)
            for item in dataclasses.fields(value)
            if item.init
        }
        return {"type": type(value).__name__, "fields": fields}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, f"{path}.{index}", arrays) for index, item in enumerate(value)]}
    return value


def _decode(value: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "tuple" in value:
        return tuple(_decode(item, arrays) for item in value["tuple"])
    fields = {name: _decode(item, arrays) for name, item in value["fields"].items()}
    return _TYPES[value["type"]](**fields)
