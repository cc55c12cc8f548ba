"""The line before the model is bounded, fair and exact."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit.errors import QueueFullError
from llavakit.web.queue import Queue, Ticket


async def test_who_comes_first_sits_first_and_the_others_know_their_place() -> None:
    line = Queue(seats=1, places=2)
    first, second, third = line.enter(), line.enter(), line.enter()
    assert [first.place, second.place, third.place] == [0, 1, 2]
    with pytest.raises(QueueFullError, match="Too many are waiting"):
        line.enter()
    first.leave()
    assert [second.place, third.place] == [0, 1]
    assert third.moved.is_set()


async def test_who_leaves_twice_frees_one_seat() -> None:
    line = Queue(seats=1, places=2)
    first, second, third = line.enter(), line.enter(), line.enter()
    first.leave()
    first.leave()
    assert (second.place, third.place) == (0, 1)


@given(st.lists(st.integers(-6, 6), max_size=60), st.integers(1, 3), st.integers(0, 3))
async def test_no_seat_is_empty_while_somebody_waits(
    moves: list[int], seats: int, places: int
) -> None:
    line = Queue(seats, places)
    inside: list[Ticket] = []
    for move in moves:
        if move > 0 and inside:
            inside.pop(move % len(inside)).leave()
        else:
            try:
                inside.append(line.enter())
            except QueueFullError:
                assert len(inside) == seats + places
        assert line.seated == min(seats, len(inside))
        assert line.waiting == len(inside) - line.seated <= places
        assert [ticket.place for ticket in inside] == [
            max(0, number - seats + 1) for number in range(len(inside))
        ]
