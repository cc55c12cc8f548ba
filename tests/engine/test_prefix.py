from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llavakit.engine.extents import Extent
from llavakit.engine.prefix import PrefixTree, Segment, VirtualIds, common_prefix, image_ids

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


class Whole:
    """An owner that has computed all of its tokens."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = np.array(tokens, dtype=np.int64)

    def known_ids(self) -> VirtualIds:
        return self.tokens


def kept(tree: PrefixTree, tokens: list[int], start: int, parent=None, base: int = 0) -> Segment:
    segment = Segment(Extent(start, len(tokens) - base), base, parent, Whole(tokens))
    tree.add(segment)
    segment.disown()
    return segment


def wanted(*tokens: int) -> VirtualIds:
    return np.array(tokens, dtype=np.int64)


def test_longest_prefix_wins():
    tree = PrefixTree()
    kept(tree, [1, 2], 0)
    long = kept(tree, [1, 2, 3, 4], 10)
    kept(tree, [9, 9, 9], 20)
    assert tree.best(wanted(1, 2, 3, 8)) == (long, 3)


def test_prefix_is_followed_from_parent_to_child():
    tree = PrefixTree()
    root = kept(tree, [1, 2, 3, 4], 0)
    child = kept(tree, [1, 2, 3, 7, 8], 10, root, base=3)
    grandchild = kept(tree, [1, 2, 3, 7, 9, 9], 20, child, base=4)
    assert tree.best(wanted(1, 2, 3, 7, 9, 9, 5)) == (grandchild, 6)
    assert tree.best(wanted(1, 2, 3, 7, 8, 8)) == (child, 5)
    assert tree.best(wanted(1, 2, 3, 4, 4)) == (root, 4)
    assert tree.best(wanted(2, 2)) == (None, 0)


def test_tokens_before_a_segment_lie_in_the_used_parts_of_its_parents():
    tree = PrefixTree()
    root = kept(tree, [1, 2, 3, 4], 0)
    child = kept(tree, [1, 2, 3, 7, 8], 10, root, base=3)
    grandchild = kept(tree, [1, 2, 3, 7, 9], 20, child, base=4)
    assert grandchild.prefix == (Extent(0, 3), Extent(10, 1))


def test_segment_that_others_continue_is_not_idle():
    tree = PrefixTree()
    root = kept(tree, [1, 2, 3], 0)
    child = kept(tree, [1, 2, 9], 10, root, base=2)
    assert tree.oldest_idle() is child
    tree.remove(child)
    assert tree.oldest_idle() is root


def test_oldest_is_the_one_not_used_for_longest():
    tree = PrefixTree()
    first, second = kept(tree, [1, 1], 0), kept(tree, [2, 2], 10)
    tree.remove(kept(tree, [1, 1, 5], 20, first, base=2))
    assert tree.oldest_idle() is second
    assert tree.oldest_idle(but=second) is first
