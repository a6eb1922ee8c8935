"""Where cores lie on the mesh, and over which links a message goes from one to another."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stars_deploy.hardware.profile import ChipProfile


@dataclass(frozen=True, kw_only=True)
class Place:
    """A core's chip, and its tile in the mesh of all chips side by side: column ``x``, row ``y``."""

    chip: int
    x: int
    y: int


@dataclass(frozen=True)
class Floor:
    """The mesh of one profile's chips, side by side from west to east.

    Tiles are filled core by core, a row of tiles from west to east and the next one back, so that what follows in the
    network lies near.
    """

    profile: ChipProfile

    def place(self, core: int) -> Place:
        """Return where the core of that index lies."""
        mesh = self.profile.mesh
        chip, within = divmod(core, int(self.profile.limits.cores_per_chip.nominal))
        y, along = divmod(within // mesh.cores_per_tile, mesh.columns)
        x = along if y % 2 == 0 else mesh.columns - 1 - along
        return Place(chip=chip, x=chip * mesh.columns + x, y=y)

    def entry(self) -> Place:
        """Return where messages from outside enter: the first tile of the first chip, by convention."""
        return Place(chip=0, x=0, y=0)


#: A directed link: the tile that it leaves, and the tile that it goes to.
Link = tuple[tuple[int, int], tuple[int, int]]


def links_between(one: Place, other: Place) -> list[Link]:
    """Return the links of the way from one tile to another: along the row first, then along the column (XY routing)."""
    path = [(one.x, one.y)]
    x, y = path[0]
    while x != other.x:
        x += 1 if other.x > x else -1
        path.append((x, y))
    while y != other.y:
        y += 1 if other.y > y else -1
        path.append((x, y))
    return list(itertools.pairwise(path))


@dataclass(frozen=True, kw_only=True)
class Ways:
    """The ways of many pairs of places.

    Parameters
    ----------
    east_west, north_south : array of int, (pairs,)
        Hops of one message.
    links : tuple of Link
        All that any pair uses.
    uses : array of int, (pairs, links)
        1 where the way of a pair goes over a link.
    """

    east_west: npt.NDArray[np.int64]
    north_south: npt.NDArray[np.int64]
    links: tuple[Link, ...]
    uses: npt.NDArray[np.int64]


def find_ways(pairs: list[tuple[Place, Place]]) -> Ways:
    """Return hops and links of each pair of places."""
    paths = [links_between(one, other) for one, other in pairs]
    links = tuple(sorted({link for path in paths for link in path}))
    index = {link: number for number, link in enumerate(links)}
    uses = np.zeros((len(pairs), len(links)), np.int64)
    for number, path in enumerate(paths):
        uses[number, [index[link] for link in path]] = 1
    return Ways(
        east_west=np.array([abs(one.x - other.x) for one, other in pairs], np.int64),
        north_south=np.array([abs(one.y - other.y) for one, other in pairs], np.int64),
        links=links,
        uses=uses,
    )
