from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llavakit.engine.extents import Extent
from llavakit.engine.prefix import Donor, DonorTable, common_prefix, image_ids

ids = st.lists(st.integers(0, 3), max_size=12).map(lambda x: np.array(x, dtype=np.int64))


@given(ids, ids)
def test_common_prefix_is_what_a_loop_finds(one, other):
    expected = 0
    for a, b in zip(one.tolist(), other.tolist(), strict=False):
        if a != b:
            break
        expected += 1
    assert common_prefix(one, other) == expected


def test_two_pictures_share_no_id_and_none_is_a_text_token():
    red, blue = image_ids("red", 576), image_ids("blue", 576)
    assert not set(red.tolist()) & set(blue.tolist())
    assert (red < 0).all() and len(set(red.tolist())) == 576


def test_one_picture_always_has_the_same_ids():
    assert (image_ids("red", 64) == image_ids("red", 64)).all()


def test_one_picture_in_two_layouts_has_other_ids():
    assert image_ids("red", 64)[0] != image_ids("red", 65)[0]


def donor(tokens: list[int], start: int) -> Donor:
    return Donor(np.array(tokens, dtype=np.int64), Extent(start, len(tokens)))


def test_longest_prefix_wins():
    table = DonorTable()
    table.add(donor([1, 2], 0))
    long = donor([1, 2, 3, 4], 10)
    table.add(donor([9, 9, 9], 20))
    table.add(long)
    found, length = table.best(np.array([1, 2, 3, 8], dtype=np.int64))
    assert (found, length) == (long, 3)


def test_donor_that_begins_another_is_given_up():
    table = DonorTable()
    short = donor([1, 2], 0)
    table.add(short)
    assert table.add(donor([1, 2, 3], 10)) == [short]
    assert len(table) == 1


def test_oldest_donor_is_the_one_not_used_for_longest():
    table = DonorTable()
    first, second = donor([1], 0), donor([2], 10)
    table.add(first)
    table.add(second)
    table.touch(first)
    assert table.oldest() is second
    assert table.oldest(but=second) is first
