"""Several pages in one process, each with its own uploads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llavakit.testing import FakeBackend
from llavakit.values import Request
from llavakit.web.catalog import ListedModel
from llavakit.web.folders import VARIABLE, PageFolders
from tests.web.conftest import DATA, quietly
from tests.web.visitor import Visitor


def _web(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that visits a page, as in the other files."""
    marks = (pytest.mark.web, pytest.mark.enable_socket, pytest.mark.filterwarnings("default"))
    for mark in marks:
        test = mark(test)
    return test


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where gradio keeps files before there is a page."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


def test_a_page_is_made_with_its_own_folder_and_runs_below_that_of_all(elsewhere: Path) -> None:
    folders = PageFolders()
    with folders.making() as first:
        assert os.environ[VARIABLE] == str(first / "uploads")
    with folders.making() as second:
        assert os.environ[VARIABLE] == str(second / "uploads")
    above = Path(os.environ[VARIABLE])
    assert first.parent == second.parent == above
    assert above != elsewhere

    folders.remove(second)
    assert (first / "uploads").is_dir() and not second.exists()
    assert os.environ[VARIABLE] == str(above)
    folders.remove(first)
    assert not above.exists()
    assert os.environ[VARIABLE] == str(elsewhere)


def test_without_a_page_gradio_has_its_own_default_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    folders = PageFolders()
    with folders.making() as folder:
        pass
    folders.remove(folder)
    folders.remove(folder)
    assert VARIABLE not in os.environ


def test_a_page_that_cannot_be_made_leaves_nothing(elsewhere: Path) -> None:
    folders = PageFolders()
    with folders.making() as first:
        pass
    with pytest.raises(OSError, match="no port"), folders.making() as second:
        raise OSError("no port")
    assert not second.exists()
    assert os.environ[VARIABLE] == str(first.parent)
    folders.remove(first)
    with pytest.raises(OSError, match="no port"), folders.making() as only:
        raise OSError("no port")
    assert not only.parent.exists()
    assert os.environ[VARIABLE] == str(elsewhere)


@pytest.fixture
def start() -> Iterator[Callable[[], Any]]:
    """Starts pages whose model says how many images it got."""
    with quietly():
        from llavakit.web import serve
    pages: list[Any] = []

    def counting(request: Request) -> str:
        return f"{sum(len(message.images) for message in request.messages)} images"

    def one() -> Any:
        offers = [ListedModel("fake", "fake")]
        pages.append(serve(offers, lambda name: FakeBackend(counting), port=0))
        return pages[-1]

    yield one
    with quietly():
        for page in pages:
            page.close()


@pytest.fixture
def arrive(browser: Any) -> Iterator[Callable[[Any], Visitor]]:
    visitors: list[Visitor] = []

    def one(page: Any) -> Visitor:
        context = browser.new_context(viewport={"width": 1100, "height": 800})
        visitors.append(Visitor(context, page.url))
        return visitors[-1]

    yield one
    for visitor in visitors:
        visitor.leave()


@_web
def test_uploads_of_each_page_arrive_while_another_is_open_and_after_it_closed(
    start: Callable[[], Any], arrive: Callable[[Any], Visitor]
) -> None:
    first, second = start(), start()
    at_first, at_second = arrive(first), arrive(second)
    at_first.ask("How many?", DATA / "shapes.png")
    assert at_first.answer(1) == "1 images"
    at_second.ask("How many?", DATA / "shapes.png", DATA / "heart.png")
    assert at_second.answer(1) == "2 images"
    at_first.attach(DATA / "squares.png")  # before the other page goes

    at_second.leave()
    with quietly():
        second.close()
    at_first.ask("And now?")
    assert at_first.answer(2) == "2 images"
    at_first.ask("And with one more?", DATA / "heart.png")
    assert at_first.answer(3) == "3 images"
    third = start()
    at_third = arrive(third)
    at_third.ask("How many?", DATA / "heart.png")
    assert at_third.answer(1) == "1 images"
    assert at_first.complaints == []


@_web
def test_the_examples_of_a_page_are_served_until_it_is_closed(
    start: Callable[[], Any], arrive: Callable[[Any], Visitor]
) -> None:
    first, second = start(), start()
    with quietly():
        second.close()
    visitor = arrive(first)
    visitor.tab.locator("#lk-chat .example").first.click()
    assert visitor.answer(1) == "1 images"
    assert visitor.complaints == []


@_web
def test_no_page_serves_what_was_uploaded_at_another(start: Callable[[], Any]) -> None:
    first, second = start(), start()
    content = (DATA / "heart.png").read_bytes()

    def upload(page: Any) -> str:
        with httpx.Client(base_url=page.url) as client:
            client.get("/")  # the cookie
            sent = client.post("/gradio_api/upload", files={"files": ("heart.png", content)})
            [path] = sent.json()
            assert client.get(f"/gradio_api/file={path}").content == content
            return str(path)

    paths = {page.url: upload(page) for page in (first, second)}
    assert len(set(paths.values())) == 2
    for page, other in ((first, second), (second, first)):
        with httpx.Client(base_url=page.url) as client:
            client.get("/")
            assert client.get(f"/gradio_api/file={paths[other.url]}").status_code == 403
