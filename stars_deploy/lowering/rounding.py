"""Integers from a lowered float graph at scales that are known: the same graph and scales give the same integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from stars_deploy.precision import Precision
from stars_deploy.quantized import QuantizedGraph, QuantizedInput


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Everything beside the float graph that fixes the integers.

    Parameters
    ----------
    input : QuantizedInput
        Precision, scale and offset of the payloads; it biases no population.
    scales : mapping of str to float
        For each population, steps [LSB] for one unit of its float potential.
    precisions : mapping of str to Precision
        Of each projection's weights.
    resets : mapping of str to (int, int)
        ``reset_interval`` and ``reset_offset`` of the populations that have them [timesteps].
    """

    input: QuantizedInput
    scales: Mapping[str, float]
    precisions: Mapping[str, Precision]
    resets: Mapping[str, tuple[int, int]] = field(default_factory=lambda: MappingProxyType({}))


def rounding_of(graph: QuantizedGraph) -> Rounding:
    """Return the rounding that made `graph`."""
    return Rounding(
        input=graph.input,
        scales={population.name: population.scale for population in graph.populations},
        precisions={projection.name: projection.precision for projection in graph.projections},
        resets={
            population.name: (population.reset_interval, population.reset_offset)
            for population in graph.populations
            if population.reset_interval or population.reset_offset
        },
    )
