"""Chips as tables of constants with ranges and sources.

A profile is a YAML file (:data:`PROFILES`, or the user's own): each constant is a mapping of ``nominal``, ``low``,
``high``, ``unit``, ``source`` and ``evidence``. Nothing here is measured on a chip; every result is an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from stars_deploy.artifacts import existing_file
from stars_deploy.errors import ConfigError
from stars_deploy.hardware.constants import (
    Bits,
    Constant,
    Factor,
    Frozen,
    Nanoseconds,
    Picojoules,
    Watts,
    check_count,
    in_unit,
)

#: Built-in profiles, by name.
PROFILES = ("loihi1", "loihi2", "loihi1-sanafe")


_Whole = AfterValidator(check_count)
_Neurons = Annotated[Constant, in_unit("neurons"), _Whole]
_Words = Annotated[Constant, in_unit("64-bit words"), _Whole]
_Axons = Annotated[Constant, in_unit("axons"), _Whole]
_WholeBits = Annotated[Constant, in_unit("bits"), _Whole]
_Cores = Annotated[Constant, in_unit("cores"), _Whole]


class Limits(Frozen):
    """What one core and one chip hold; the mapping takes the nominal limits, and says where a low end is passed."""

    neurons_per_core: _Neurons
    synaptic_words_per_core: _Words
    axons_in_per_core: _Axons
    axons_out_per_core: _Axons
    weight_bits: _WholeBits
    message_bits: _WholeBits
    cores_per_chip: _Cores


class Storage(Frozen):
    """How synapses lie in memory: bits beside the weight of a dense synapse, and of each axon's list of them."""

    index: Bits
    header: Bits


class Mesh(Frozen):
    """The network on chip: routers in columns and rows, and the cores at each of them."""

    columns: int = Field(ge=1, le=1024)
    rows: int = Field(ge=1, le=1024)
    cores_per_tile: int = Field(ge=1, le=1024)
    source: str = Field(min_length=1)


class Barrier(Frozen):
    """How long the end of a timestep takes, by the number of tiles in use.

    Between two numbers of tiles the time grows linearly, or stays that of the smaller one (``step``).
    """

    between: Literal["linear", "step"]
    tiles: dict[int, Nanoseconds] = Field(min_length=1)

    @model_validator(mode="after")
    def _from_one(self) -> Barrier:
        if sorted(self.tiles) != list(self.tiles) or next(iter(self.tiles)) != 1:
            raise ValueError("numbers of tiles from 1 on, in order")
        return self

    def at(self, corner: str, tiles: int) -> float:
        """Return the duration [ns] with so many tiles; beyond the last number given it is that one's."""
        known = list(self.tiles)
        below = max(number for number in known if number <= tiles)
        above = next((number for number in known if number > tiles), below)
        time = self.tiles[below].at(corner)
        if self.between == "step" or above == below:
            return time
        return time + (self.tiles[above].at(corner) - time) * (tiles - below) / (above - below)


class Times(Frozen):
    """Durations [ns] of one operation on one core, of a message on a link, and of the barrier that ends a timestep."""

    synapse_conv: Nanoseconds
    synapse_dense: Nanoseconds
    neuron_active: Nanoseconds
    neuron_inactive: Nanoseconds
    spike: Nanoseconds
    message_out: Nanoseconds
    message_in: Nanoseconds
    link: Nanoseconds
    barrier: Barrier


class Energies(Frozen):
    """Dynamic energies of one operation [pJ]."""

    synapse_conv: Picojoules
    synapse_dense: Picojoules
    neuron_active: Picojoules
    neuron_inactive: Picojoules
    spike: Picojoules
    message: Picojoules
    hop_east_west: Picojoules
    hop_north_south: Picojoules


class ModelError(Frozen):
    """Factors on the nominal value that an interval always holds."""

    dynamic_energy: Factor
    latency: Factor


class ChipProfile(Frozen):
    """One chip. ``phases``: whether a core's synaptic and neuron phases follow each other or overlap."""

    name: str = Field(min_length=1)
    description: str
    phases: Literal["sequential", "overlapped"]
    limits: Limits
    storage: Storage
    mesh: Mesh
    time: Times
    energy: Energies
    static_power_per_chip: Watts
    model_error: ModelError

    @model_validator(mode="after")
    def _cores_have_places(self) -> ChipProfile:
        places = self.mesh.columns * self.mesh.rows * self.mesh.cores_per_tile
        if int(self.limits.cores_per_chip.nominal) > places:
            raise ValueError(f"limits.cores_per_chip of at most the mesh's {places} places")
        return self

    @property
    def tiles_per_chip(self) -> int:
        """Tiles that hold the usable cores of a chip."""
        return math.ceil(self.limits.cores_per_chip.nominal / self.mesh.cores_per_tile)

    def constants(self) -> Iterator[tuple[str, Constant]]:
        """Yield each constant with its key, such as ``time.synapse_conv``."""
        yield from _constants_of(self, "")


def _constants_of(item: Any, path: str) -> Iterator[tuple[str, Constant]]:
    if isinstance(item, Constant):
        yield path, item
        return
    parts = item if isinstance(item, dict) else {name: getattr(item, name) for name in type(item).model_fields}
    for name, part in parts.items():
        if isinstance(part, (Frozen, dict)):
            yield from _constants_of(part, f"{path}.{name}" if path else str(name))


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
