"""Where it looked, in a real browser: the dialog, its choices, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.documents.test_pages import pdf
from tests.web.conftest import DATA, until
from tests.web.test_accessible import SCREENS, axe, violations  # noqa: F401
from tests.web.visitor import Visitor

pytestmark = [
    pytest.mark.web,
    pytest.mark.enable_socket,
    pytest.mark.filterwarnings("default"),
]

Visit = Callable[..., Visitor]


def opened(visitor: Visitor) -> Any:
    """The dialog of the last answer, with its map."""
    visitor.tab.get_by_role("button", name="Where it looked").last.click()
    dialog = visitor.tab.get_by_role("dialog", name="Where it looked")
    dialog.locator("img[src^=data]").wait_for()
    return dialog


def asks(visitor: Visitor, path: str = "llavakit/map") -> list[str]:
    found: list[str] = []
    visitor.tab.on("request", lambda one: found.append(one.url) if path in one.url else None)
    return found


def test_pages_of_a_document_are_ranked_and_a_word_is_mapped(visit: Visit, tmp_path: Any) -> None:
    document = tmp_path / "two.pdf"
    document.write_bytes(pdf("1 0 0 rg 9 9 50 50 re f", "0 0 1 rg 20 60 40 40 re f"))
    visitor = visit()
    asked = asks(visitor)
    visitor.ask("Which page shows a red square?", document)
    visitor.answer(1)
    assert asked == []  # nothing is computed before it is asked for

    dialog = opened(visitor)
    pages = dialog.get_by_label("Image, the best match first")
    assert pages.locator("option").count() == 2
    assert "two.pdf, page" in pages.locator("option").first.inner_text()
    words = dialog.get_by_label("Words")
    assert words.locator("option").all_inner_texts() == [
        "The whole question", "Which", "page", "shows", "a", "red", "square",
    ]  # fmt: skip
    whole = dialog.locator("img").get_attribute("src")
    words.select_option("red")
    visitor.tab.wait_for_function(
        "old => document.querySelector('#lk-map img').src !== old", arg=whole
    )
    dialog.get_by_text("red is most like “red”", exact=False).wait_for()
    before = dialog.locator("img").get_attribute("src")
    other = pages.locator("option").last.get_attribute("value")
    pages.select_option(other)
    visitor.tab.wait_for_function(
        "old => document.querySelector('#lk-map img').src !== old", arg=before
    )
    assert words.input_value() == "red" and len(asked) == 3

    visitor.tab.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert visitor.tab.evaluate("document.activeElement.className") == "lk-look"


def test_a_model_without_maps_has_no_control(visit: Visit) -> None:
    visitor = visit()
    visitor.choose("endless-talker", tokens=20)
    visitor.ask("Talk.", DATA / "heart.png")
    visitor.answer(1)
    assert visitor.tab.get_by_role("button", name="Where it looked").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", list(SCREENS))
def test_axe_finds_nothing_in_the_dialog_and_it_fits(
    visit: Visit,
    axe: str,  # noqa: F811
    scheme: str,
    screen: str,
) -> None:
    size = SCREENS[screen]
    visitor = visit(viewport=size, color_scheme=scheme)
    visitor.ask("Which image shows a heart?", DATA / "heart.png", DATA / "invoice.png")
    visitor.answer(1)
    dialog = opened(visitor)
    assert violations(visitor.tab, axe) == []
    box = dialog.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= size["width"]
    assert box["y"] >= 0 and box["y"] + box["height"] <= size["height"]
    assert visitor.tab.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_an_answer_that_is_gone_is_a_sentence_in_the_dialog(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("What is it?", DATA / "heart.png")
    visitor.answer(1)
    visitor.tab.evaluate("document.querySelector('.lk-look').dataset.turn = '7'")
    visitor.tab.get_by_role("button", name="Where it looked").click()
    dialog = visitor.tab.get_by_role("dialog", name="Where it looked")
    dialog.get_by_text("That answer is gone", exact=False).wait_for()
    until(lambda: len(visitor.complaints) == 1)  # the browser itself reports the 400
    visitor.complaints.clear()
