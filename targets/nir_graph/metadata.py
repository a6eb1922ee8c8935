"""What NIR has no place for, beside the nodes of a file that stars-deploy wrote: one JSON text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from stars_deploy.errors import FormatError
from stars_deploy.lowering.rounding import Rounding
from stars_deploy.precision import Precision
from stars_deploy.quantized import QuantizedInput

#: Its name among the metadata of the NIR graph.
METADATA = "stars_deploy"
SCHEMA = "stars-deploy nir"
SCHEMA_VERSION = 1
#: Longest description [bytes]: time constants of a million neurons that are all different.
MAX_METADATA = 1 << 24
MAX_TIMESTEPS = 1 << 16
#: No number of ours has more digits; Python takes quadratic time for whole numbers of millions of digits.
_MAX_DIGITS = 32

#: Values of a parameter that float32 on the file's grid does not give back: one number, or one for each neuron.
Exact = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The description of a graph that NIR's nodes carry only in part; names are the graph's own, unless said otherwise.

    Parameters
    ----------
    file_dt, dt : float
        Timestep of the grid that the file's numbers are on, and that of the graph [s].
    timesteps : int
    low, high : float
        Range of the pixels, before any normalisation.
    labels : tuple of str
    names : tuple of (str, str)
        Every node of the graph in its order, with its name in the file; empty where it has no node there.
    edges : tuple of (str, str)
        Every edge of the graph in its order.
    normalize : tuple of (str, tuple of float, tuple of float), optional
        Name, means and standard deviations of the normalisation that is left to whoever feeds the file's input.
    readout : tuple of (str, float), optional
        Name and ``r`` [1/s] of the integrator that sums the file's output over all timesteps.
    inserted : tuple of str
        Names in the file of the flattenings that the graph does without.
    biases : mapping of str to str
        For each convolution whose bias differs from neuron to neuron, the population whose ``v_leak`` holds it.
    scalars : tuple of str
        Delays and scales that are one number in the graph, and an array in the file.
    exact : mapping of str to mapping of str to numbers
    rounding : Rounding, optional
        What makes integers of the graph.
    """

    file_dt: float
    dt: float
    timesteps: int
    low: float = 0.0
    high: float = 1.0
    labels: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...]
    edges: tuple[tuple[str, str], ...]
    normalize: tuple[str, tuple[float, ...], tuple[float, ...]] | None = None
    readout: tuple[str, float] | None = None
    inserted: tuple[str, ...] = ()
    biases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    scalars: tuple[str, ...] = ()
    exact: Exact = field(default_factory=lambda: MappingProxyType({}))
    rounding: Rounding | None = None

    def as_text(self, versions: Mapping[str, str]) -> str:
        """Return it as JSON; the same metadata and `versions` give the same text."""
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "versions": dict(versions),
            "encoding": _describe_encoding(self.rounding),
            "reset": "hard: to v_reset, as NIR says",
            "dt": self.file_dt,
            "graph_dt": self.dt,
            "timesteps": self.timesteps,
            "low": self.low,
            "high": self.high,
            "labels": self.labels,
            "names": self.names,
            "edges": self.edges,
            "normalize": None,
            "readout": None,
            "inserted": self.inserted,
            "biases": dict(self.biases),
            "scalars": self.scalars,
            "exact": {name: dict(values) for name, values in self.exact.items()},
            "rounding": None if self.rounding is None else _describe_rounding(self.rounding),
        }
        if self.normalize is not None:
            name, mean, std = self.normalize
            content["normalize"] = {"name": name, "mean": mean, "std": std}
        if self.readout is not None:
            name, r = self.readout
            content["readout"] = {"name": name, "r": r, "value": "the sum of the output over all timesteps"}
        return json.dumps(content, allow_nan=False)


def parse_metadata(text: str, where: str) -> Metadata:
    """Return the metadata that `text` holds; `where` is its place for messages.

    Raises
    ------
    FormatError
        If it is not JSON, has another schema, or holds anything else than :meth:`Metadata.as_text` writes.
    """
    try:
        content = json.loads(text, parse_int=_whole, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(where, f"not readable as JSON ({str(error)[:80]})", remedy="write the file again") from error
    found = (content.get("schema"), content.get("version")) if isinstance(content, dict) else None
    if found != (SCHEMA, SCHEMA_VERSION):
        raise FormatError(where, f"schema {found}", f"{(SCHEMA, SCHEMA_VERSION)}", "write the file again")
    read = _Reader(where=where, content=content)
    return Metadata(
        file_dt=read.positive("dt"),
        dt=read.positive("graph_dt"),
        timesteps=read.timesteps(),
        low=read.number("low"),
        high=read.number("high"),
        labels=read.texts("labels"),
        names=read.pairs("names"),
        edges=read.pairs("edges"),
        normalize=read.normalize(),
        readout=read.readout(),
        inserted=read.texts("inserted"),
        biases=read.mapping("biases", str),
        scalars=read.texts("scalars"),
        exact=read.mapping("exact", dict),
        rounding=read.rounding(),
    )


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """One JSON object, of which every value is checked."""

    where: str
    content: dict[str, Any]

    def error(self, name: str, value: object, allowed: str) -> FormatError:
        return FormatError(f"{self.where}.{name}", repr(value)[:80], allowed, "write the file again")

    def value(self, name: str, kind: type) -> Any:
        found = self.content.get(name)
        if type(found) is not kind and not (kind is float and type(found) is int):
            raise self.error(name, found, kind.__name__)
        return found

    def number(self, name: str) -> float:
        number = float(self.value(name, float))
        if not math.isfinite(number):
            raise self.error(name, number, "a finite number")
        return number

    def positive(self, name: str) -> float:
        number = self.number(name)
        if number <= 0:
            raise self.error(name, number, "a number above 0")
        return number

    def timesteps(self) -> int:
        timesteps = int(self.value("timesteps", int))
        if not 1 <= timesteps <= MAX_TIMESTEPS:
            raise self.error("timesteps", timesteps, f"1 to {MAX_TIMESTEPS}")
        return timesteps

    def texts(self, name: str) -> tuple[str, ...]:
        found = self.value(name, list)
        if not all(type(text) is str for text in found):
            raise self.error(name, found, "texts")
        return tuple(found)

    def pairs(self, name: str) -> tuple[tuple[str, str], ...]:
        found = self.value(name, list)
        if not all(type(pair) is list and len(pair) == 2 and {type(text) for text in pair} == {str} for pair in found):
            raise self.error(name, found, "pairs of texts")
        return tuple((first, second) for first, second in found)

    def numbers(self, name: str) -> tuple[float, ...]:
        found = self.value(name, list)
        if not all(type(number) in (int, float) and math.isfinite(number) for number in found):
            raise self.error(name, found, "finite numbers")
        return tuple(float(number) for number in found)

    def mapping(self, name: str, kind: type) -> dict[str, Any]:
        found: dict[str, Any] = self.value(name, dict)
        inner = self.inner(name, found)
        return {key: inner.value(key, kind) for key in found}

    def inner(self, name: str, content: dict[str, Any]) -> _Reader:
        return _Reader(where=f"{self.where}.{name}", content=content)

    def optional(self, name: str) -> _Reader | None:
        return None if self.content.get(name) is None else self.inner(name, self.value(name, dict))

    def normalize(self) -> tuple[str, tuple[float, ...], tuple[float, ...]] | None:
        read = self.optional("normalize")
        return None if read is None else (read.value("name", str), read.numbers("mean"), read.numbers("std"))

    def readout(self) -> tuple[str, float] | None:
        read = self.optional("readout")
        return None if read is None else (read.value("name", str), read.number("r"))

    def precision(self, name: str) -> Precision:
        read = self.inner(name, self.value(name, dict))
        kinds = {"bits": int, "signed": bool, "exponent": int, "rounding": str}
        return Precision(**{key: read.value(key, kind) for key, kind in kinds.items()})

    def rounding(self) -> Rounding | None:
        read = self.optional("rounding")
        if read is None:
            return None
        image = read.inner("input", read.value("input", dict))
        shape = image.numbers("shape")
        if not all(1 <= size <= 1 << 31 and size == int(size) for size in shape):
            raise image.error("shape", shape, "sizes of at least 1")
        scales = read.inner("scales", read.value("scales", dict))
        precisions = read.inner("precisions", read.value("precisions", dict))
        resets = read.inner("resets", read.value("resets", dict))
        return Rounding(
            input=QuantizedInput(
                name=image.value("name", str),
                shape=tuple(int(size) for size in shape),
                precision=image.precision("precision"),
                scale=image.number("scale"),
                offset=image.number("offset"),
                biases=image.value("biases", str) if "biases" in image.content else "",
            ),
            scales={name: scales.positive(name) for name in scales.content},
            precisions={name: precisions.precision(name) for name in precisions.content},
            resets={name: resets.reset(name) for name in resets.content},
        )

    def reset(self, name: str) -> tuple[int, int]:
        found = self.value(name, list)
        if len(found) != 2 or not all(type(number) is int and 0 <= number <= MAX_TIMESTEPS for number in found):
            raise self.error(name, found, f"interval and offset, 0 to {MAX_TIMESTEPS}")
        return found[0], found[1]


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _describe_encoding(rounding: Rounding | None) -> str:
    """Say what enters the network; for whoever reads the file, not read back."""
    if rounding is not None and (rounding.input.precision.low, rounding.input.precision.high) == (0, 1):
        return "spikes: 0 or 1, another frame at each timestep"
    return "direct: the same image at every timestep"


def _describe_rounding(rounding: Rounding) -> dict[str, object]:
    image = rounding.input
    return {
        "input": {
            "name": image.name,
            "shape": [int(size) for size in image.shape],
            "precision": _describe_precision(image.precision),
            "scale": float(image.scale),
            "offset": float(image.offset),
            "biases": image.biases,
        },
        "scales": {name: float(scale) for name, scale in rounding.scales.items()},
        "precisions": {name: _describe_precision(precision) for name, precision in rounding.precisions.items()},
        "resets": {name: [int(number) for number in reset] for name, reset in rounding.resets.items()},
    }


def _describe_precision(precision: Precision) -> dict[str, object]:
    return {
        "bits": precision.bits,
        "signed": precision.signed,
        "exponent": precision.exponent,
        "rounding": precision.rounding,
    }
