"""Populations in order, those of one loop together: what a Scan of the sequence model steps through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stars_deploy.populations import Population
from stars_deploy.projections import Projection
from stars_deploy.quantized import QuantizedGraph


@dataclass(frozen=True, kw_only=True)
class Block:
    """Populations that a loop spans, or one that none spans.

    Parameters
    ----------
    populations : tuple of Population
    inside, outside : mapping of str to tuple of (int, Projection)
        For each population, the projections that enter it from the block, and from before it, with their numbers.
    """

    populations: tuple[Population, ...]
    inside: dict[str, tuple[tuple[int, Projection], ...]]
    outside: dict[str, tuple[tuple[int, Projection], ...]]

    def longest(self, source: str) -> int:
        """Return the longest delay [timesteps] at which the block looks back at `source`, one of its own."""
        return longest_delay(source, [item for items in self.inside.values() for _, item in items])


def longest_delay(source: str, projections: list[Projection]) -> int:
    """Return the longest delay of those `projections` that come from `source`."""
    return max((int(np.max(item.delay)) for item in projections if item.source == source), default=0)


def find_blocks(graph: QuantizedGraph) -> tuple[Block, ...]:
    """Return the populations of `graph` in order, in the shortest runs that every loop stays within."""
    names = [population.name for population in graph.populations]
    place = {name: index for index, name in enumerate(names)}
    reach = list(range(len(names)))
    for projection in graph.projections:
        target = place[projection.target]
        reach[target] = max(reach[target], place.get(projection.source, -1))
    blocks, start = [], 0
    while start < len(names):
        last = index = start
        while index <= last:
            last = max(last, reach[index])
            index += 1
        blocks.append(_make_block(graph, names[start : last + 1]))
        start = last + 1
    return tuple(blocks)


def _make_block(graph: QuantizedGraph, names: list[str]) -> Block:
    inside: dict[str, tuple[tuple[int, Projection], ...]] = {}
    outside: dict[str, tuple[tuple[int, Projection], ...]] = {}
    for name in names:
        entering = [(index, item) for index, item in enumerate(graph.projections) if item.target == name]
        inside[name] = tuple(pair for pair in entering if pair[1].source in names)
        outside[name] = tuple(pair for pair in entering if pair[1].source not in names)
    return Block(populations=tuple(graph.population(name) for name in names), inside=inside, outside=outside)
