"""Earlier chats in the browser's own storage, and downloads, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import DATA
from tests.web.test_accessible import axe, violations
from tests.web.visitor import Visitor

pytestmark = [
    pytest.mark.web,
    pytest.mark.enable_socket,
    pytest.mark.filterwarnings("default"),
]
__all__ = ["axe"]

Visit = Callable[..., Visitor]
_STORED = """async (store) => {
    const base = await new Promise((resolve) => {
        const request = indexedDB.open('llavakit', 1);
        request.onsuccess = () => resolve(request.result);
    });
    const all = base.transaction(store).objectStore(store).getAllKeys();
    await new Promise((resolve) => all.onsuccess = resolve);
    base.close();
    return all.result.length;
}"""


def earlier(visitor: Visitor, count: int) -> Any:
    """The list of earlier chats, as soon as it has so many."""
    rows = visitor.tab.locator(".lk-chat-list li")
    visitor.tab.wait_for_function(
        "n => document.querySelectorAll('.lk-chat-list li').length === n", arg=count
    )
    return rows


def test_an_earlier_chat_is_opened_and_goes_on_with_its_images(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("What colour is the circle?", DATA / "shapes.png")
    assert visitor.answer(1) == "red"
    earlier(visitor, 1)
    visitor.press("New chat")
    visitor.tab.get_by_text("Ask about an image").wait_for()
    visitor.ask("What is in this image?", DATA / "heart.png")
    assert visitor.answer(1) == "a red heart"

    visitor.press("Chats")
    earlier(visitor, 2).nth(1).get_by_role("button").first.click()
    visitor.tab.get_by_text("What colour is the circle?", exact=True).first.wait_for()
    visitor.tab.wait_for_function("!document.querySelector('#lk-chats.open')")
    assert visitor.answer(1) == "red"
    assert visitor.turns()[0]["pictures"] == 1
    visitor.ask("How many shapes are there?")
    assert visitor.answer(2) == "3"
    earlier(visitor, 2)  # it is the same chat still


def test_chats_outlive_the_tab_and_can_be_deleted(visit: Visit) -> None:
    visitor = visit()
    for question in ("What is in this image?", "What colour is it?"):
        visitor.ask(question, DATA / "heart.png")
        assert visitor.answer(1)
        visitor.press("New chat")
        visitor.tab.get_by_text("Ask about an image").wait_for()
    earlier(visitor, 2)
    assert visitor.tab.evaluate(_STORED, "images") == 1  # one image, however often it is shown
    visitor.tab.evaluate("sessionStorage.clear()")
    visitor.reload()

    visitor.press("Chats")
    earlier(visitor, 2).first.get_by_role("button", name="Delete").click()
    earlier(visitor, 1)
    visitor.press("Delete all earlier chats")
    earlier(visitor, 0)
    assert visitor.tab.evaluate(_STORED, "chats") == visitor.tab.evaluate(_STORED, "images") == 0


def test_a_visitor_can_have_nothing_kept(visit: Visit) -> None:
    visitor = visit()
    visitor.press("Chats")
    visitor.tab.get_by_label("Keep chats in this browser").uncheck()
    visitor.tab.click("#lk-chats .toggle-button")
    visitor.ask("What is in this image?", DATA / "heart.png")
    assert visitor.answer(1)
    visitor.tab.wait_for_timeout(300)
    assert visitor.tab.evaluate(_STORED, "chats") == 0


def test_other_browsers_have_chats_of_their_own(visit: Visit) -> None:
    first, second = visit(), visit()
    first.ask("What is in this image?", DATA / "heart.png")
    assert first.answer(1)
    earlier(first, 1)
    second.press("Chats")
    second.tab.get_by_text("There are none yet.").wait_for()


@pytest.mark.parametrize("form", ["Markdown", "JSON"])
def test_a_chat_is_downloaded_with_its_images(visit: Visit, form: str) -> None:
    visitor = visit()
    visitor.press("Chats")
    visitor.press(f"Download as {form}")
    visitor.tab.get_by_text("Ask something first").wait_for()
    visitor.tab.click("#lk-chats .toggle-button")
    visitor.ask("What is in this image?", DATA / "heart.png")
    assert visitor.answer(1) == "a red heart"
    visitor.press("Chats")
    with visitor.tab.expect_download() as download:
        visitor.press(f"Download as {form}")
    text = Path(download.value.path()).read_text("utf-8")
    assert "data:image/png;base64," in text
    if form == "JSON":
        assert json.loads(text)["turns"][0]["answer"] == "a red heart"
        assert download.value.suggested_filename.endswith(".json")
    else:
        assert "a red heart" in text and "heart.png" in text
        assert download.value.suggested_filename.endswith(".md")


def test_a_question_that_holds_markup_is_listed_as_text(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("<img src=x onerror=alert(1)>")
    assert visitor.answer(1)
    visitor.press("Chats")
    earlier(visitor, 1).filter(has_text="<img src=x").wait_for()
    assert visitor.tab.locator(".lk-chat-list img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_chats(visit: Visit, axe: str, scheme: str) -> None:
    visitor = visit(color_scheme=scheme)
    visitor.ask("What is in this image?", DATA / "heart.png")
    assert visitor.answer(1)
    visitor.press("Chats")
    earlier(visitor, 1)
    visitor.tab.wait_for_timeout(500)  # they slide in
    assert violations(visitor.tab, axe) == []
