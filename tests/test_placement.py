"""Cores on the mesh, and the ways between them."""

import itertools

import numpy as np
from chips import small_chip
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_cost import path

from stars_deploy.hardware import load_profile
from stars_deploy.hardware.placement import Floor, Place, find_ways, links_between

PLACES = st.builds(lambda x, y: Place(chip=x // 8, x=x, y=y), st.integers(0, 20), st.integers(0, 3))


def test_tiles_are_filled_core_by_core_row_by_row_and_back():
    floor = Floor(small_chip())  # 3 x 2 tiles of 2 cores
    found = [(place.chip, place.x, place.y) for place in map(floor.place, range(14))]
    tiles = [(0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 2, 1), (0, 1, 1), (0, 0, 1), (1, 3, 0)]
    assert found == [tile for tile in tiles for _ in range(2)]


def test_chips_lie_side_by_side():
    floor = Floor(load_profile("loihi2"))  # 120 of 128 cores
    assert floor.place(119) == Place(chip=0, x=6 - 4, y=3)  # 30 tiles: the last row runs back from column 7 to 2
    assert floor.place(120) == Place(chip=1, x=8, y=0)
    assert floor.place(240) == Place(chip=2, x=16, y=0)
    assert floor.entry() == Place(chip=0, x=0, y=0)


def test_tiles_that_follow_each_other_are_neighbours():
    floor = Floor(load_profile("loihi1"))
    tiles = [floor.place(core) for core in range(0, 128, 4)]
    assert len(set(tiles)) == 32
    assert all(abs(one.x - other.x) + abs(one.y - other.y) == 1 for one, other in itertools.pairwise(tiles))
    assert {floor.place(core) for core in range(128)} == set(tiles)


@given(PLACES, PLACES)
@settings(deadline=None)
def test_messages_go_along_the_row_first(one, other):
    links = links_between(one, other)
    assert len(links) == abs(one.x - other.x) + abs(one.y - other.y)
    assert links == list(itertools.pairwise(path((one.x, one.y), (other.x, other.y))))
    turned = ["x" if a[1] == b[1] else "y" for a, b in links]
    assert turned == sorted(turned)
    if links:
        assert links[0][0] == (one.x, one.y) and links[-1][1] == (other.x, other.y)


def test_links_are_directed():
    one, other = Place(chip=0, x=0, y=0), Place(chip=0, x=2, y=1)
    there, back = links_between(one, other), links_between(other, one)
    assert there == [((0, 0), (1, 0)), ((1, 0), (2, 0)), ((2, 0), (2, 1))]
    assert back == [((2, 1), (1, 1)), ((1, 1), (0, 1)), ((0, 1), (0, 0))]
    assert not set(there) & set(back)
    straight = Place(chip=0, x=2, y=0)
    there, back = links_between(one, straight), links_between(straight, one)
    assert {link[::-1] for link in there} == set(back) and not set(there) & set(back)
    assert links_between(one, one) == []


@given(st.lists(st.tuples(PLACES, PLACES), max_size=8))
@settings(deadline=None)
def test_ways_of_many_pairs(pairs):
    ways = find_ways(pairs)
    assert ways.uses.shape == (len(pairs), len(ways.links))
    assert list(ways.links) == sorted(set(ways.links))
    np.testing.assert_array_equal(ways.uses.sum(axis=1), ways.east_west + ways.north_south)
    assert (ways.uses.sum(axis=0) >= 1).all()  # no link that nothing uses
    for number, (one, other) in enumerate(pairs):
        used = {link for link, use in zip(ways.links, ways.uses[number], strict=True) if use}
        assert used == set(links_between(one, other))
        assert ways.east_west[number] == abs(one.x - other.x)
        assert ways.north_south[number] == abs(one.y - other.y)
