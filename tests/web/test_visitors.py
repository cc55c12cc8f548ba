"""Visits: held for a while, found again by their token, bounded."""

from __future__ import annotations

import pytest

from llavakit.errors import QueueFullError
from llavakit.web.settings import WebSettings
from llavakit.web.visitors import Visitors


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_reloaded_page_finds_its_conversation_for_a_while() -> None:
    clock = Clock()
    visitors = Visitors(WebSettings(linger=60), clock)
    visitors.came("before", "browser")
    visit = visitors.of("before")
    visitors.left("before")
    clock.now = 59
    visitors.came("after", "browser")
    assert visitors.enter("after", visit.token) is visit
    assert visit.present
    assert visitors.of("after") is visit
    assert len(visitors) == 1

    visitors.left("after")
    clock.now = 200
    assert visitors.enter("late", visit.token) is not visit


def test_a_copied_tab_gets_a_conversation_of_its_own() -> None:
    visitors = Visitors(WebSettings())
    visitors.came("first", "browser")
    token = visitors.of("first").token
    assert visitors.enter("copy", token) is not visitors.of("first")
    assert visitors.enter("stranger", "") is not visitors.of("first")


def test_too_many_visitors_are_told_and_those_who_left_make_room() -> None:
    clock = Clock()
    visitors = Visitors(WebSettings(max_visitors=2, linger=10), clock)
    for tab in ("a", "b"):
        visitors.came(tab, tab)
    with pytest.raises(QueueFullError, match="too many visitors"):
        visitors.of("c")
    visitors.left("a")
    clock.now = 11
    assert visitors.of("c")
    assert visitors.has("b") and not visitors.has("a")
