"""The page is readable and usable for everybody: axe-core in a real browser, and our own eyes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llavakit.testing import FakeBackend
from llavakit.web.catalog import ListedModel
from tests.web.conftest import DATA, quietly
from tests.web.visitor import Visitor

pytestmark = [
    pytest.mark.web,
    pytest.mark.enable_socket,
    pytest.mark.filterwarnings("default"),
]

Visit = Callable[..., Visitor]
SCREENS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}

_CONTRAST = """(selector) => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = numbers(colour).slice(0, 3).map((part) => {
            const share = part / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const element = document.querySelector(selector);
    let behind = element;
    const clear = (one) => (numbers(getComputedStyle(one).backgroundColor)[3] ?? 1) === 0;
    while (clear(behind)) behind = behind.parentElement;
    const part = element.placeholder ? '::placeholder' : undefined;
    const pair = [light(getComputedStyle(element, part).color),
                  light(getComputedStyle(behind).backgroundColor)].sort((a, b) => a - b);
    return (pair[1] + 0.05) / (pair[0] + 0.05);
}"""


@pytest.fixture(scope="module")
def axe() -> str:
    package = pytest.importorskip("axe_playwright_python")
    return (Path(package.__file__).parent / "axe.min.js").read_text("utf-8")


def violations(tab: Any, axe: str) -> list[Any]:
    """What axe-core finds on the page as it stands, whatever its weight."""
    tab.evaluate(axe)
    found = tab.evaluate("async () => (await axe.run()).violations")
    return [
        (rule["impact"], rule["id"], [node["html"][:200] for node in rule["nodes"]])
        for rule in found
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", list(SCREENS))
def test_axe_finds_nothing_on_the_page(visit: Visit, axe: str, scheme: str, screen: str) -> None:
    visitor = visit(viewport=SCREENS[screen], color_scheme=scheme)
    tab = visitor.tab
    tab.locator("#lk-chat .examples[role=group]").wait_for()
    assert violations(tab, axe) == []

    visitor.ask("Which image shows a heart?", DATA / "heart.png", DATA / "shapes.png")
    assert visitor.answer(1) == "the first image"
    visitor.attach(DATA / "squares.png")
    tab.locator("#lk-box .thumbnail-wrapper[role=group]").wait_for()
    assert violations(tab, axe) == []

    visitor.press("Settings")
    tab.get_by_label("Seed").wait_for()
    assert violations(tab, axe) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_grey_text_stands_out(visit: Visit, scheme: str) -> None:
    visitor = visit(color_scheme=scheme)
    visitor.ask("What colour is the circle?", DATA / "shapes.png")
    assert visitor.answer(1) == "red"
    for grey in (".lk-facts", "div.lk-foot", ".lk-model", "#lk-box textarea"):
        assert visitor.tab.evaluate(_CONTRAST, grey) >= 4.5, grey


def test_every_button_has_a_name_and_icons_say_it_when_pointed_at(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("What colour is the circle?", DATA / "shapes.png")
    assert visitor.answer(1) == "red"
    visitor.tab.locator("#lk-dark[title='Light or dark']").wait_for()
    nameless = """() => [...document.querySelectorAll('button')]
        .filter((button) => button.checkVisibility({visibilityProperty: true}))
        .filter((button) => !/\\w/.test(button.innerText) && !(button.ariaLabel && button.title))
        .map((button) => button.outerHTML.slice(0, 200))"""
    assert visitor.tab.evaluate(nameless) == []


@pytest.mark.parametrize("attached", [0, 1])
@pytest.mark.parametrize("screen", list(SCREENS))
def test_the_notice_below_is_whole(visit: Visit, screen: str, attached: int) -> None:
    visitor = visit(viewport=SCREENS[screen])
    if attached:
        visitor.attach(DATA / "heart.png")
    place = visitor.tab.locator("div.lk-foot").bounding_box()
    assert place is not None
    assert place["y"] >= 0 and place["x"] >= 0
    assert place["y"] + place["height"] <= SCREENS[screen]["height"]
    assert place["x"] + place["width"] <= SCREENS[screen]["width"]


def test_the_model_that_answers_is_in_view_and_follows_the_choice(visit: Visit) -> None:
    visitor = visit(viewport=SCREENS["phone"])
    shown = visitor.tab.locator(".lk-model")
    assert shown.inner_text() == "demo"
    visitor.choose("endless-talker")
    visitor.tab.locator(".lk-model", has_text="endless-talker").wait_for()
    visitor.tab.wait_for_timeout(400)  # the settings slide away
    place = shown.bounding_box()
    assert place is not None and place["x"] >= 0 and place["y"] >= 0


@pytest.fixture
def locked() -> Iterator[Any]:
    """A page with an account, and a backend that answers at once."""
    with quietly():
        from llavakit.web import serve
    accounts = [("anna", "right")]
    page = serve([ListedModel("fake", "fake")], lambda _: FakeBackend(), port=0, accounts=accounts)
    yield page
    with quietly():
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_where_one_logs_in(
    browser: Any, locked: Any, axe: str, scheme: str
) -> None:
    with browser.new_context(viewport=SCREENS["phone"], color_scheme=scheme) as context:
        tab = context.new_page()
        tab.goto(locked.url)
        tab.get_by_role("heading", name="llavakit").wait_for()
        found = violations(tab, axe)
        assert [rule for rule in found if rule[0] in ("serious", "critical")] == []
        tab.get_by_label("username").fill("anna")
        tab.get_by_label("password").fill("right")
        tab.get_by_role("button", name="Login").click()
        tab.locator("#lk-box").wait_for()
