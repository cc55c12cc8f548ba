"""Rewrite what the page's head says of the page: its title, and what previews of links show."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from llavakit.web import style

_META = re.compile(
    rb"""<meta\s[^>]*?(?:property|name)\s*=\s*"(?:og:|twitter:|description")[^>]*>\s*""", re.I
)
_TITLE = re.compile(rb"<title>.*?</title>\s*", re.I | re.S)
_HEAD = re.compile(rb"<head\b[^>]*>", re.I)
_TAGS = f"""
<title>llavakit</title>
<meta name="description" content="{style.DESCRIPTION}" />
<meta property="og:title" content="llavakit" />
<meta property="og:site_name" content="llavakit" />
<meta property="og:type" content="website" />
<meta property="og:description" content="{style.DESCRIPTION}" />
<meta name="twitter:card" content="summary" />
<meta name="twitter:title" content="llavakit" />
<meta name="twitter:description" content="{style.DESCRIPTION}" />
""".encode()


def with_preview(page: bytes) -> bytes:
    """Return a page of HTML whose head describes llavakit, and not the web framework.

    See https://ogp.me/ for the properties. There is no image: its address would have to be
    absolute, and this server does not know by which name the public reaches it.
    """
    head = _HEAD.search(page)
    if head is None:
        return page
    end = page.find(b"</head>")
    end = len(page) if end < 0 else end
    # Scripts hold the conversation page's settings, in which such a tag is only text.
    parts = re.split(rb"(<script\b.*?</script>)", page[head.end() : end], flags=re.S | re.I)
    kept = [part if number % 2 else _cleared(part) for number, part in enumerate(parts)]
    return page[: head.end()] + _TAGS + b"".join(kept) + page[end:]


def _cleared(part: bytes) -> bytes:
    return _TITLE.sub(b"", _META.sub(b"", part))


Event = MutableMapping[str, Any]
Send = Callable[[Event], Awaitable[None]]


def previewing(send: Send) -> Send:
    """Rewrite a response if it is HTML; everything else passes as it is."""
    start: Event | None = None
    body = bytearray()

    async def sending(event: Event) -> None:
        nonlocal start
        if event["type"] == "http.response.start" and _is_html(event):
            start = event
        elif event["type"] == "http.response.body" and start is not None:
            body.extend(event.get("body", b""))
            if event.get("more_body", False):
                return
            page = with_preview(bytes(body))
            headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
            headers.append((b"content-length", str(len(page)).encode()))
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": page})
        else:
            await send(event)

    return sending


def _is_html(event: Event) -> bool:
    headers = {name.lower(): value for name, value in event.get("headers", [])}
    html = headers.get(b"content-type", b"").startswith(b"text/html")
    return html and b"content-encoding" not in headers
