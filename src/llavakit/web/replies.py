"""Requests of the page's own scripts: whose they are, and what they are answered. ASGI alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]


def token_of(scope: Scope) -> str:
    """Return the tab's token, which stands in a header so that no link leads to a conversation."""
    found = (value for name, value in scope["headers"] if name == b"x-llavakit-visit")
    return bytes(next(found, b"")).decode("latin-1")


def plain_text(text: str) -> tuple[str, bytes]:
    """Return the type and the bytes of a text that is only read."""
    return "text/plain; charset=utf-8", text.encode()


async def reply(send: Send, status: int, content: tuple[str, bytes]) -> None:
    """Send one response, of a type and bytes, which no cache keeps."""
    kind, body = content
    headers = [
        (b"content-type", kind.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if status >= 400:
        headers.append((b"connection", b"close"))  # the body may not have been read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
