"""``QuantizedGraph``: the integer network, in the chip's words.

What it means is defined by :mod:`stars_deploy.targets.reference`. Time is layer-synchronous: at timestep t a
population sees what its sources emitted at timestep t - delay; all state starts at 0 for every sample, and nothing is
in flight. Its parts are in :mod:`stars_deploy.populations` and :mod:`stars_deploy.projections`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from stars_deploy.errors import GraphError
from stars_deploy.populations import (
    BIAS_LIMIT,
    DECAY_BITS,
    DECAY_ONE,
    STATE_EXP,
    STATE_LIMIT,
    VTH_NEVER,
    IntArray,
    Population,
    QuantizedInput,
    decayed,
)
from stars_deploy.projections import ConvProjection, DenseProjection, Projection

__all__ = [
    "BIAS_LIMIT",
    "DECAY_BITS",
    "DECAY_ONE",
    "STATE_EXP",
    "STATE_LIMIT",
    "VTH_NEVER",
    "ConvProjection",
    "DenseProjection",
    "IntArray",
    "Population",
    "Projection",
    "QuantizedGraph",
    "QuantizedInput",
    "decayed",
    "find_difference",
]


@dataclass(frozen=True, kw_only=True)
class QuantizedGraph:
    """An integer spiking network.

    Parameters
    ----------
    input : QuantizedInput
    populations : tuple of Population
        Each after the sources of its undelayed projections.
    projections : tuple of Projection
        Several may enter one population; their activations add up (a residual sum). A population that the input
        biases needs none.
    timesteps : int
        Timesteps for one inference (T).
    labels : tuple of str
        Class names in the order of the last population; may be empty.

    Raises
    ------
    GraphError
        Duplicate or unknown names, shapes that do not fit, an undelayed cycle, or an input that is both the bias of a
        population and a source of spikes.
    """

    input: QuantizedInput
    populations: tuple[Population, ...]
    projections: tuple[Projection, ...]
    timesteps: int
    labels: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.timesteps < 1:
            raise GraphError("timesteps", self.timesteps, "at least 1")
        if not self.populations:
            raise GraphError("populations", "none", "at least one population")
        names = [self.input.name, *(population.name for population in self.populations)]
        if len(set(names)) != len(names):
            raise GraphError("populations", f"names {names}", "unique names")
        self._check_projections(names)
        if self.input.biases:
            self._check_biased()
        for population in self.populations:
            if not self.into(population.name) and population.name != self.input.biases:
                raise GraphError(population.name, "no projection enters it", "at least one")

    def _check_biased(self) -> None:
        population = self.population(self.input.biases)
        if population.shape != tuple(self.input.shape):
            raise GraphError(population.name, f"shape {population.shape}", f"{self.input.shape}, that of its biases")
        if population.bias.any():
            raise GraphError(f"{population.name}.bias", "a bias of its own", "0: the input sets it")
        for projection in self.projections:
            if projection.source == self.input.name:
                raise GraphError(projection.name, f"comes from {self.input.name}, which sets biases", "a population")

    def _check_projections(self, names: list[str]) -> None:
        position = {name: index for index, name in enumerate(names)}
        for projection in self.projections:
            if projection.source not in position or projection.target not in names[1:]:
                raise GraphError(projection.name, f"{projection.source} -> {projection.target}", f"one of {names}")
            if np.min(projection.delay) == 0 and position[projection.source] >= position[projection.target]:
                raise GraphError(
                    projection.name,
                    f"{projection.source} -> {projection.target} goes back without a delay",
                    "sources before targets, or a delay of at least 1 timestep",
                )
            shape = projection.output_shape(self.shape_of(projection.source))
            if shape != self.shape_of(projection.target):
                raise GraphError(projection.name, f"makes {shape}", f"{self.shape_of(projection.target)}")

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of the input or population called `name`."""
        return self.input.shape if name == self.input.name else self.population(name).shape

    def population(self, name: str) -> Population:
        """Return the population called `name`."""
        for candidate in self.populations:
            if candidate.name == name:
                return candidate
        raise GraphError("population", name, f"{[candidate.name for candidate in self.populations]}")

    def into(self, name: str) -> tuple[Projection, ...]:
        """Return the projections that enter population `name`."""
        return tuple(projection for projection in self.projections if projection.target == name)

    @property
    def output(self) -> Population:
        """The last population, whose membrane potential after T timesteps holds the logits."""
        return self.populations[-1]

    def with_timesteps(self, timesteps: int) -> QuantizedGraph:
        """Return the same network with another number of timesteps (prove its bounds again before use)."""
        return replace(self, timesteps=timesteps)


def find_difference(one: QuantizedGraph, other: QuantizedGraph) -> str:
    """Return the path of the first difference between two graphs, or an empty string if they are equal.

    Compares everything that execution depends on, names included, not ``scale``, ``offset`` or ``labels``.
    """
    if one.timesteps != other.timesteps:
        return "timesteps"
    if difference := _first_difference(one.input, other.input):
        return difference
    if (len(one.populations), len(one.projections)) != (len(other.populations), len(other.projections)):
        return "number of layers"
    pairs: list[tuple[object, object]] = [
        *zip(one.populations, other.populations, strict=True),
        *zip(one.projections, other.projections, strict=True),
    ]
    for left, right in pairs:
        difference = _first_difference(left, right)
        if difference:
            return difference
    return ""


def _first_difference(left: object, right: object) -> str:
    if type(left) is not type(right):
        return str(getattr(left, "name", left))
    for name in getattr(left, "__dataclass_fields__", {}):
        if name not in ("scale", "offset") and not np.array_equal(getattr(left, name), getattr(right, name)):
            return f"{getattr(left, 'name', '')}.{name}"
    return ""
