"""What a link to the page looks like where it is pasted."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from llavakit.web.preview import previewing, with_preview


class Head(HTMLParser):
    """The title and the described properties, each with all values that it was given."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.told: dict[str, list[str]] = {}
        self._in_title = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        name = given.get("property") or given.get("name")
        if tag == "meta" and name:
            self.told.setdefault(name, []).append(given.get("content", ""))
        self._in_title = tag == "title"

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.told.setdefault("title", []).append(data)
        self._in_title = False


def page_of_the_framework() -> bytes:
    gradio = pytest.importorskip("gradio")
    page = Path(gradio.__file__).parent / "templates" / "frontend" / "index.html"
    return page.read_bytes()


def test_previews_of_the_frameworks_own_page_say_llavakit() -> None:
    page = page_of_the_framework()
    assert b'content="Gradio"' in page  # else there is nothing to rewrite
    told = Head(with_preview(page).decode()).told
    for name in ("title", "og:title", "twitter:title", "og:site_name"):
        assert told[name] == ["llavakit"]
    for name in ("description", "og:description", "twitter:description"):
        assert len(told[name]) == 1 and "images" in told[name][0]
    assert "og:image" not in told and "twitter:creator" not in told
    assert told["viewport"]  # what has nothing to do with previews stays


@pytest.mark.parametrize(
    "kept",
    [
        b'<script>x = \'<meta property="og:title" content="Gradio" />\'</script>',
        b'<meta charset="utf-8" />',
        b'<link rel="stylesheet" href="x.css">',
    ],
)
def test_everything_else_in_the_head_stays(kept: bytes) -> None:
    page = b'<html><head><meta name="twitter:title" content="Gradio" />' + kept + b"</head></html>"
    rewritten = with_preview(page)
    assert kept in rewritten
    assert b'name="twitter:title" content="Gradio"' not in rewritten


@pytest.mark.parametrize("page", [b"", b"no html at all", b"<p>a paragraph</p>"])
def test_what_has_no_head_is_left_alone(page: bytes) -> None:
    assert with_preview(page) == page


async def _served(kind: bytes, parts: list[bytes], **headers: str) -> httpx.Response:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        send = previewing(send)
        length = str(sum(map(len, parts))).encode()
        fields = [(b"content-type", kind), (b"content-length", length)]
        fields += [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        for number, part in enumerate(parts, 1):
            more = number < len(parts)
            await send({"type": "http.response.body", "body": part, "more_body": more})

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as client:
        return await client.get("http://page.invalid/")


async def test_a_page_in_parts_is_rewritten_with_its_new_length() -> None:
    answer = await _served(b"text/html; charset=utf-8", [b"<html><he", b"ad></he", b"ad></html>"])
    assert "og:title" in answer.text
    assert int(answer.headers["content-length"]) == len(answer.content)


async def test_what_is_no_html_passes_part_by_part() -> None:
    answer = await _served(b"application/json", [b'"<he', b'ad></head>"'])
    assert answer.text == '"<head></head>"'
