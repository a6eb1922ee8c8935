"""Populations on cores: how many, which part each holds, what that takes of its limits, and what does not fit.

Deterministic. No two populations share a core, as in Lava's compiler tables.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from stars_deploy.errors import ConfigError
from stars_deploy.hardware.fans import OUTSIDE, Fan, Route, find_fans, find_route
from stars_deploy.hardware.memory import words_of
from stars_deploy.hardware.placement import Floor, Place
from stars_deploy.hardware.profile import ChipProfile
from stars_deploy.hardware.tiling import Box, Tiling, boxes, cut, finer
from stars_deploy.populations import IntArray
from stars_deploy.projections import DenseProjection
from stars_deploy.quantized import QuantizedGraph

#: What a core has a limit of, in the words of reports.
LIMITS = ("neurons", "synaptic_words", "axons_in", "axons_out")


@dataclass(frozen=True, kw_only=True)
class Core:
    """One core: which part of which population it holds, where it lies, and what it uses of its limits."""

    index: int
    layer: str
    box: Box
    place: Place
    neurons: int
    synaptic_words: int
    axons_in: int
    axons_out: int


@dataclass(frozen=True, kw_only=True)
class LayerMapping:
    """Cores of one population: their number, the tile (channels, rows, columns) of a full one, and its largest uses.

    ``binding`` names the limit that decided the number of cores; ``none`` where one core has room to spare.
    """

    name: str
    neurons: int
    cores: int
    tile: tuple[int, int, int]
    synaptic_words: int
    axons_in: int
    axons_out: int
    binding: str


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that a chip cannot hold: where, what was got, what is allowed, and what would help."""

    layer: str
    limit: str
    got: int
    allowed: int
    remedy: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.got:,} {_WORDS[self.limit]}, at most {self.allowed:,}"


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """A network on the cores of a chip.

    Parameters
    ----------
    profile : ChipProfile
    cores : tuple of Core
    layers : tuple of LayerMapping
        In the order of the graph's populations.
    chips, tiles : int
        Whole chips, and tiles with at least one core in use.
    fans : tuple of Fan
    routes : tuple of Route
    problems : tuple of Problem
        What does not fit; empty for a network that can be deployed.
    notes : tuple of str
        What is in doubt.
    """

    profile: ChipProfile
    cores: tuple[Core, ...]
    layers: tuple[LayerMapping, ...]
    chips: int
    tiles: int
    fans: tuple[Fan, ...]
    routes: tuple[Route, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    def utilisation(self) -> dict[str, tuple[int, int]]:
        """Return (used, limit) of the fullest core for each of :data:`LIMITS`, and of the cores of the chips."""
        pairs = {
            name: (max(int(getattr(core, name)) for core in self.cores), _limit(self.profile, name)) for name in LIMITS
        }
        return {**pairs, "cores": (len(self.cores), self.chips * int(self.profile.limits.cores_per_chip.nominal))}

    @property
    def largest(self) -> LayerMapping:
        """The population that takes the most cores."""
        return max(self.layers, key=lambda layer: layer.cores)


_WORDS = {
    "neurons": "neurons on one core",
    "synaptic_words": "64-bit words of synapses on one core",
    "axons_in": "input axons on one core",
    "axons_out": "output axons on one core",
    "weight_bits": "bits a weight",
}
_REMEDIES = {
    "neurons": "make the layer smaller",
    "synaptic_words": "lower --bits, or give the layer fewer inputs (a stride or fewer channels before it)",
    "axons_in": "give the layer fewer inputs (a stride or fewer channels before it)",
    "axons_out": "make the layer after it smaller, so that it takes fewer cores",
    "weight_bits": "quantise with fewer --bits",
}


def map_network(graph: QuantizedGraph, profile: ChipProfile) -> Mapping:
    """Return where each neuron of `graph` goes on the chips of `profile`, at its nominal limits.

    Each population is cut by :func:`~stars_deploy.hardware.tiling.cut`; then, while a core has more axons than its
    limits, the population that can help is cut finer. What even the finest cut cannot hold is named in ``problems``.
    """
    tilings = {
        population.name: cut(population, graph.into(population.name), profile) for population in graph.populations
    }
    while True:
        drawn = _draw(graph, profile, tilings)
        again = _finer_axons(graph, profile, drawn, tilings)
        if again is None:
            return _finish(graph, profile, drawn, tilings)
        tilings = again


def check_mapped(mapping: Mapping) -> Mapping:
    """Return `mapping` if the network fits.

    Raises
    ------
    ConfigError
        Naming each layer that does not fit, the limit and what would help.
    """
    if mapping.problems:
        first = mapping.problems[0]
        raise ConfigError(
            f"--hardware {mapping.profile.name}: {first.layer}",
            "; ".join(str(problem) for problem in mapping.problems),
            "a network within the limits of its cores",
            first.remedy,
        )
    return mapping


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    cores: tuple[Core, ...]
    fans: tuple[Fan, ...]
    routes: tuple[Route, ...]


def _draw(graph: QuantizedGraph, profile: ChipProfile, tilings: dict[str, Tiling]) -> _Drawn:
    parts: list[tuple[str, Box]] = []
    core_of: dict[str, IntArray] = {}
    for population in graph.populations:
        owner = np.zeros(population.shape, np.int64)
        for box in boxes(tilings[population.name], population):
            owner[tuple(slice(*span) for span in box)] = len(parts)
            parts.append((population.name, box))
        core_of[population.name] = owner.ravel()
    fans: list[Fan] = []
    routes: list[Route] = []
    for core, (name, box) in enumerate(parts):
        from_source: dict[str, list[Fan]] = {}
        for projection in graph.into(name):
            from_source.setdefault(projection.source, []).extend(find_fans(graph, projection, core, box))
        for found in from_source.values():
            fans += found
            routes.append(find_route(graph, tuple(found), core_of))
    axons_in, axons_out = np.zeros(len(parts), np.int64), np.zeros(len(parts), np.int64)
    for route in routes:
        axons_in[route.core] += route.axons_in
        inside = route.source_cores != OUTSIDE
        np.add.at(axons_out, route.source_cores[inside], route.axons[inside])
    floor = Floor(profile)

    @functools.cache
    def words(name: str, channels: int) -> int:
        # Looks through all weights: once for each size of a part, not for each core.
        return sum(words_of(one, channels, profile) for one in graph.into(name))

    cores = tuple(
        Core(
            index=core,
            layer=name,
            box=box,
            place=floor.place(core),
            neurons=math.prod(last - first for first, last in box),
            synaptic_words=words(name, box[0][1] - box[0][0]),
            axons_in=int(axons_in[core]),
            axons_out=int(axons_out[core]),
        )
        for core, (name, box) in enumerate(parts)
    )
    return _Drawn(cores=cores, fans=tuple(fans), routes=tuple(routes))


def _finer_axons(
    graph: QuantizedGraph, profile: ChipProfile, drawn: _Drawn, tilings: dict[str, Tiling]
) -> dict[str, Tiling] | None:
    """Return finer tilings if some core has too many axons and a finer cut of its population helps, else None.

    Fewer neurons on a core send along fewer axons. They listen to fewer only where each sees a window of the source: a
    dense layer's neuron listens to every axon wherever it lies.
    """
    for core in drawn.cores:
        for name in ("axons_out", "axons_in"):
            if getattr(core, name) <= _limit(profile, name):
                continue
            if name == "axons_in" and any(isinstance(one, DenseProjection) for one in graph.into(core.layer)):
                continue
            again = finer(tilings[core.layer], graph.population(core.layer), name)
            if again is not None:
                return {**tilings, core.layer: again}
    return None


def _finish(graph: QuantizedGraph, profile: ChipProfile, drawn: _Drawn, tilings: dict[str, Tiling]) -> Mapping:
    layers = []
    for population in graph.populations:
        own = [core for core in drawn.cores if core.layer == population.name]
        tiling = tilings[population.name]
        layers.append(
            LayerMapping(
                name=population.name, neurons=population.size, cores=len(own), tile=tiling.tile,
                synaptic_words=max(core.synaptic_words for core in own), axons_in=max(core.axons_in for core in own),
                axons_out=max(core.axons_out for core in own), binding=tiling.binding,
            )
        )  # fmt: skip
    chips = math.ceil(len(drawn.cores) / profile.limits.cores_per_chip.nominal)
    return Mapping(
        profile=profile,
        cores=drawn.cores,
        layers=tuple(layers),
        chips=chips,
        tiles=len({core.place for core in drawn.cores}),
        fans=drawn.fans,
        routes=drawn.routes,
        problems=tuple(_problems(graph, profile, drawn.cores)),
        notes=tuple(_notes(graph, profile, layers, drawn.cores, chips)),
    )


def _problems(graph: QuantizedGraph, profile: ChipProfile, cores: tuple[Core, ...]) -> list[Problem]:
    found: dict[tuple[str, str], Problem] = {}

    def over(layer: str, limit: str, got: int) -> None:
        allowed = _limit(profile, limit)
        known = found.get((layer, limit))
        if got > allowed and (known is None or got > known.got):
            found[layer, limit] = Problem(layer=layer, limit=limit, got=got, allowed=allowed, remedy=_REMEDIES[limit])

    for core in cores:
        for limit in LIMITS:
            over(core.layer, limit, int(getattr(core, limit)))
    for projection in graph.projections:
        over(projection.target, "weight_bits", projection.precision.bits)
    return list(found.values())


def _notes(
    graph: QuantizedGraph, profile: ChipProfile, layers: list[LayerMapping], cores: tuple[Core, ...], chips: int
) -> list[str]:
    notes = []
    for name in LIMITS:
        limit = getattr(profile.limits, f"{name}_per_core")
        most = max(cores, key=lambda core: int(getattr(core, name)))
        used = int(getattr(most, name))
        if limit.low < used <= limit.nominal:
            notes.append(
                f"{most.layer} uses {used:,} {_WORDS[name]}: within the {int(limit.nominal):,} assumed, beyond the "
                f"{int(limit.low):,} at the low end of that limit ({limit.evidence})"
            )
    if chips > 1:
        notes.append(
            f"{chips} chips: messages between them are counted as hops of one mesh; links between chips are slower and "
            "cost more, and are not modelled, so latency and energy are lower bounds"
        )
    bits = max(graph.input.precision.bits - graph.input.precision.signed, 1)
    if not graph.input.biases and bits > profile.limits.message_bits.nominal:
        notes.append(
            f"the input sends graded messages of {bits} bits, which {profile.name} does not have: they are counted as "
            "if it had"
        )
    return notes


def _limit(profile: ChipProfile, name: str) -> int:
    limit = profile.limits.weight_bits if name == "weight_bits" else getattr(profile.limits, f"{name}_per_core")
    return int(limit.nominal)
