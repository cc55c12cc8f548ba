from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit.engine.extents import Extent, ExtentMap


def test_tightest_free_stretch_is_taken():
    extents = ExtentMap(30)
    first, second, third = (extents.take(n) for n in (4, 10, 16))
    assert first and second and third
    extents.give(first)
    extents.give(third)
    assert extents.take(4) == Extent(0, 4)


def test_freed_neighbours_become_one_stretch():
    extents = ExtentMap(30)
    parts = [extents.take(10) for _ in range(3)]
    for part in (parts[0], parts[2], parts[1]):
        assert part
        extents.give(part)
    assert extents.free == (Extent(0, 30),)


def test_no_stretch_is_given_when_none_is_long_enough():
    extents = ExtentMap(10)
    assert extents.take(11) is None
    assert extents.free_tokens == 10


def test_extent_grows_into_the_room_behind_it():
    extents = ExtentMap(10)
    part = extents.take(4)
    assert part
    assert extents.room_behind(part) == 6
    assert extents.grow(part, 9) == Extent(0, 9)
    assert extents.free == (Extent(9, 1),)


def test_freeing_twice_is_noticed():
    extents = ExtentMap(10)
    part = extents.take(4)
    assert part
    extents.give(part)
    with pytest.raises(AssertionError):
        extents.give(part)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 20)), max_size=60))
def test_taken_and_free_always_make_up_the_arena(moves: list[tuple[bool, int]]):
    extents = ExtentMap(64)
    taken: list[Extent] = []
    for take, size in moves:
        if take and (extent := extents.take(size)) is not None:
            taken.append(extent)
        elif not take and taken:
            extents.give(taken.pop(size % len(taken)))
        owned = sorted([*taken, *extents.free])
        assert sum(extent.length for extent in owned) == 64
        assert all(a.end <= b.start for a, b in itertools.pairwise(owned))
        free = extents.free
        assert all(a.end < b.start for a, b in itertools.pairwise(free))
