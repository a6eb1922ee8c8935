"""Chips as tables of constants with ranges and sources, how many cores a network needs, and how long a step takes.

A profile is a YAML file (:data:`PROFILES`, or the user's own): each constant is a mapping of ``nominal``, ``low``,
``high``, ``unit``, ``source`` and ``evidence``. Nothing here is measured on a chip; every result is an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from stars_deploy.artifacts import existing_file
from stars_deploy.errors import ConfigError
from stars_deploy.quantized import QuantizedGraph

#: Built-in profiles, by name.
PROFILES = ("loihi1", "loihi2")
#: Which end of each constant's range is taken.
CORNERS = ("nominal", "low", "high")

CORES_NOTE = (
    "lower-bound estimate from neurons and stored weights per layer, no layer sharing a core; not a mapping "
    "(for PilotNet's conv layers Intel's compiler took 59 cores where neurons alone ask for 41)"
)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A quantity with every constant at its nominal value, at its low and at its high end."""

    nominal: float
    low: float
    high: float

    def widened(self, factor: Constant) -> Interval:
        """Return the interval made to hold ``nominal * factor.low`` and ``nominal * factor.high``."""
        return Interval(
            nominal=self.nominal,
            low=min(self.low, self.nominal * factor.low),
            high=max(self.high, self.nominal * factor.high),
        )


def over_corners(value: Callable[[str], float]) -> Interval:
    """Return the interval of ``value(corner)`` over :data:`CORNERS`."""
    return Interval(nominal=value("nominal"), low=value("low"), high=value("high"))


def total_of(*intervals: Interval) -> Interval:
    """Return the sum of `intervals`, corner by corner."""
    return over_corners(lambda corner: sum(float(getattr(interval, corner)) for interval in intervals))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Constant(_Frozen):
    """One number with its range, its unit and where it comes from."""

    nominal: float = Field(ge=0, allow_inf_nan=False)
    low: float = Field(ge=0, allow_inf_nan=False)
    high: float = Field(ge=0, allow_inf_nan=False)
    unit: str
    source: str = Field(min_length=1)
    evidence: Literal["measured", "fitted", "published", "estimate"]

    @model_validator(mode="after")
    def _ordered(self) -> Constant:
        if not self.low <= self.nominal <= self.high:
            raise ValueError(
                f"low <= nominal <= high, not low {self.low:g}, nominal {self.nominal:g}, high {self.high:g}"
            )
        return self

    def at(self, corner: str) -> float:
        """Return the value at ``nominal``, ``low`` or ``high``."""
        return float(getattr(self, corner))


def _in_unit(unit: str) -> AfterValidator:
    def check(constant: Constant) -> Constant:
        if constant.unit != unit:
            raise ValueError(f"unit {unit!r}, not {constant.unit!r} (values are not converted)")
        return constant

    return AfterValidator(check)


def _check_count(constant: Constant) -> Constant:
    if constant.low < 1 or any(constant.at(corner) % 1 for corner in CORNERS):
        raise ValueError("whole numbers of at least 1")
    return constant


def _check_factor(constant: Constant) -> Constant:
    if constant.nominal != 1:
        raise ValueError("a factor with nominal 1, around which the error lies")
    return constant


_Nanoseconds = Annotated[Constant, _in_unit("ns")]
_Picojoules = Annotated[Constant, _in_unit("pJ")]
_Factor = Annotated[Constant, _in_unit("1"), AfterValidator(_check_factor)]


class Limits(_Frozen):
    """What one core and one chip hold."""

    neurons_per_core: Annotated[Constant, _in_unit("neurons"), AfterValidator(_check_count)]
    synaptic_words_per_core: Annotated[Constant, _in_unit("64-bit words"), AfterValidator(_check_count)]
    cores_per_chip: Annotated[Constant, _in_unit("cores"), AfterValidator(_check_count)]


class Times(_Frozen):
    """Durations [ns]: of one operation on one core, and of the barrier that ends a timestep."""

    synapse: _Nanoseconds
    neuron_active: _Nanoseconds
    neuron_inactive: _Nanoseconds
    spike: _Nanoseconds
    barrier: _Nanoseconds


class Energies(_Frozen):
    """Dynamic energies of one operation [pJ], and the hops that one message is taken to make."""

    synapse: _Picojoules
    neuron_active: _Picojoules
    neuron_inactive: _Picojoules
    message: _Picojoules
    hop: _Picojoules
    hops_per_message: Annotated[Constant, _in_unit("hops")]


class ModelError(_Frozen):
    """Factors on the nominal value that an interval always holds."""

    dynamic_energy: _Factor
    latency: _Factor


class ChipProfile(_Frozen):
    """One chip. ``phases``: whether a core's synaptic and neuron phases follow each other or overlap."""

    name: str = Field(min_length=1)
    description: str
    phases: Literal["sequential", "overlapped"]
    limits: Limits
    time: Times
    energy: Energies
    static_power_per_chip: Annotated[Constant, _in_unit("W")]
    model_error: ModelError


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{sorted(twice)} given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_profile(name: str | Path) -> ChipProfile:
    """Return a chip profile: one of :data:`PROFILES`, or a ``.yaml`` file.

    Raises
    ------
    ConfigError
        An unknown name; a file that is not YAML; a constant that is missing, negative, out of order, without a source
        or in another unit, with the path of its key.
    ArtifactError
        If the file is missing, empty or unreadable.
    """
    if name in PROFILES:
        text = (resources.files("stars_deploy") / "profiles" / f"{name}.yaml").read_text(encoding="utf-8")
        return parse_profile(text, str(name))
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError("hardware", repr(str(name)), f"{', '.join(PROFILES)}, or a .yaml file", "name a chip profile")
    try:
        text = existing_file(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is not UTF-8 text ({error.reason})", "a YAML file") from error
    return parse_profile(text, str(path))


def parse_profile(text: str, where: str) -> ChipProfile:
    """Return the profile in YAML `text`; `where` names it in messages. Raises as :func:`load_profile`."""
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(where, f"not readable as YAML ({error})", "a chip profile", "copy a built-in one") from error
    try:
        return ChipProfile.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        got = "missing" if first["type"] == "missing" else repr(first["input"])[:120]
        raise ConfigError(
            f"{where}: {key}",
            got,
            first["msg"].removeprefix("Value error, "),
            "give each constant as {nominal, low, high, unit, source, evidence}, as in the built-in profiles",
        ) from error


@dataclass(frozen=True, kw_only=True)
class LayerCores:
    """Cores that one population needs at least."""

    name: str
    neurons: int
    synaptic_words: int
    cores: int


@dataclass(frozen=True, kw_only=True)
class CoreEstimate:
    """Cores and chips that a network needs at least; ``utilisation`` as shares of what is occupied."""

    profile: str
    cores: int
    chips: int
    utilisation: dict[str, float]
    layers: tuple[LayerCores, ...]
    note: str = CORES_NOTE


def estimate_cores(graph: QuantizedGraph, profile: ChipProfile) -> CoreEstimate:
    """Return a lower bound on the cores and whole chips that `graph` needs, at the nominal limits.

    For each layer, the larger of ``ceil(neurons / neurons_per_core)`` and ``ceil(words / synaptic_words_per_core)``,
    where words are the stored weights at their own width without any index.
    """
    per_core, words_per_core, per_chip = (
        int(limit.nominal)
        for limit in (
            profile.limits.neurons_per_core,
            profile.limits.synaptic_words_per_core,
            profile.limits.cores_per_chip,
        )
    )
    layers = []
    for population in graph.populations:
        words = sum(math.ceil(p.weight.size * p.precision.bits / 64) for p in graph.into(population.name))
        cores = max(math.ceil(population.size / per_core), math.ceil(words / words_per_core))
        layers.append(LayerCores(name=population.name, neurons=population.size, synaptic_words=words, cores=cores))
    cores = sum(layer.cores for layer in layers)
    chips = math.ceil(cores / per_chip)
    return CoreEstimate(
        profile=profile.name,
        cores=cores,
        chips=chips,
        utilisation={
            "cores_of_chips": cores / (chips * per_chip),
            "neurons_of_cores": sum(layer.neurons for layer in layers) / (cores * per_core),
            "synaptic_memory_of_cores": sum(layer.synaptic_words for layer in layers) / (cores * words_per_core),
        },
        layers=tuple(layers),
    )
