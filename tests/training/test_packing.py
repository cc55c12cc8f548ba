"""Packed conversations read as if each stood alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.demo_model.model import build_model, text_states
from llavakit.training.labels import IGNORED
from llavakit.training.packing import Tree, pack, tree

PADDING = 99


@dataclass(frozen=True)
class Said:
    """Tokens; those from ``first`` are learnt."""

    ids: tuple[int, ...]
    first: int

    @property
    def labels(self) -> tuple[int, ...]:
        return (IGNORED,) * self.first + self.ids[self.first :]


@st.composite
def said(draw: st.DrawFn) -> Said:
    # Few different tokens, so that many begin alike.
    ids = draw(st.lists(st.integers(1, 3), min_size=2, max_size=12))
    return Said(tuple(ids), draw(st.integers(1, len(ids) - 1)))


conversations = st.lists(said(), min_size=1, max_size=5)
books = st.lists(conversations, min_size=1, max_size=6)


def alone(grown: Tree, branch: int) -> list[int]:
    """Where the tokens of a conversation stand in a tree."""
    return [at for at, one in enumerate(grown.branches) if one in (0, branch)]


@given(conversations)
def test_a_tree_holds_every_conversation(spoken: list[Said]):
    grown = tree(spoken)
    for number, one in enumerate(spoken, 1):
        places = alone(grown, number if len(spoken) > 1 else 0)
        assert tuple(grown.ids[at] for at in places) == one.ids
        assert tuple(grown.labels[at] for at in places) == one.labels
        assert [grown.positions[at] for at in places] == list(range(len(one.ids)))


@given(conversations)
def test_what_is_learnt_is_predicted_by_a_token_of_its_own_branch(spoken: list[Said]):
    grown = tree(spoken)
    for at in range(len(grown)):
        if grown.labels[at] != IGNORED:
            assert at and grown.branches[at - 1] == grown.branches[at]


@given(books, st.integers(1, 40))
def test_a_token_sees_its_own_conversation_up_to_itself_and_nothing_else(
    book: list[list[Said]], length: int
):
    trees = [tree(spoken) for spoken in book]
    rows = pack(trees, length, PADDING)
    assert sorted(rows.order) == list(range(len(trees)))
    left = list(rows.order)
    for row in range(len(rows.ids)):
        at = 0
        while left and at + len(trees[left[0]]) <= rows.ids.size(1):
            if rows.positions[row, at] != 0 or rows.ids[row, at] == PADDING:
                break
            number = left.pop(0)
            one, spoken = trees[number], book[number]
            place = slice(at, at + len(one))
            assert tuple(rows.ids[row, place].tolist()) == one.ids
            assert tuple(rows.labels[row, place].tolist()) == one.labels
            for index in range(len(one)):
                branch = one.branches[index] if len(spoken) > 1 else 0
                mine = [at + k for k in alone(one, branch) if k <= index]
                assert rows.seen[row, 0, at + index].nonzero().flatten().tolist() == mine
            at += len(one)
        assert (rows.ids[row, at:] == PADDING).all() and (rows.labels[row, at:] == IGNORED).all()
    assert not left


@given(books)
def test_rows_are_no_more_than_trees_and_no_two_rows_would_fit_in_one(book: list[list[Said]]):
    trees = [tree(spoken) for spoken in book]
    rows = pack(trees, 16, PADDING)
    used = (rows.ids != PADDING).sum(1).tolist()
    assert len(used) <= len(trees) and sum(used) == sum(len(one) for one in trees)
    pairs = [(a, b) for at, a in enumerate(used) for b in used[at + 1 :]]
    assert all(a + b > rows.ids.size(1) for a, b in pairs)


def test_questions_about_one_picture_share_its_tokens():
    picture = (7,) * 20
    spoken = [Said((1, *picture, 3, 4, 5), 22), Said((1, *picture, 3, 6, 8, 9), 22)]
    grown = tree(spoken)
    assert grown.ids == (1, *picture, 3, 4, 5, 3, 6, 8, 9)[: len(grown.ids)]
    assert len(grown) == 21 + 3 + 4


def test_equal_questions_still_have_answers_of_their_own():
    grown = tree([Said((1, 2, 3, 4), 2), Said((1, 2, 3, 4), 2)])
    assert sum(label != IGNORED for label in grown.labels) == 4


@pytest.mark.parametrize("first", [0, 1])
def test_a_model_reads_a_packed_conversation_as_one_that_stands_alone(first: int):
    model = build_model(seed=1, image_token_id=1880, pad_token_id=1881).eval()
    spoken = [Said((1, 5, 6, 7, 10, 11, 12), 5), Said((1, 5, 6, 7, 20, 21), 5)]
    grown = tree(spoken)
    rows = pack([tree([Said((1, 8, 9), 1)]), grown], 40, 1881)
    embed = model.model.language_model.embed_tokens
    with torch.no_grad():
        packed = text_states(model, embed(rows.ids), rows.seen, rows.positions)
        expected = text_states(model, embed(torch.tensor([spoken[first].ids])))
    assert rows.order == (1, 0)
    places = torch.tensor(alone(grown, first + 1))
    torch.testing.assert_close(packed[0, places], expected[0], atol=1e-5, rtol=1e-4)
