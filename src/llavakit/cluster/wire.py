"""A request to an app and its response as plain values, which travel between processes.

A response is a sequence of batches of pieces: ``("from", replica)``, ``("start", status,
headers)``, ``("body", bytes)`` and, only at a true end, ``("end",)``. Without that mark the
response broke off, whatever the transport says: a process that was killed can look like one that
had nothing more to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from starlette.types import ASGIApp, Message

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
From: TypeAlias = tuple[Literal["from"], str]
Start: TypeAlias = tuple[Literal["start"], int, Headers]
Body: TypeAlias = tuple[Literal["body"], bytes]
End: TypeAlias = tuple[Literal["end"]]
Piece: TypeAlias = From | Start | Body | End
END: End = ("end",)


@dataclass(frozen=True, slots=True)
class WireRequest:
    """A request whose body is there.

    Attributes:
        method, path, query: as in HTTP; the path is decoded.
        headers: those that the app may see, with names in lower case.
        body: all of it.
    """

    method: str
    path: str
    query: bytes = b""
    headers: Headers = ()
    body: bytes = b""

    @property
    def scope(self) -> dict[str, Any]:
        """The scope of ASGI."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode("utf-8", "surrogateescape"),
            "root_path": "",
            "query_string": self.query,
            "headers": list(self.headers),
            "client": None,
            "server": None,
        }


async def response(app: ASGIApp, call: WireRequest) -> AsyncGenerator[list[Piece], None]:
    """The response of an app, in batches of what was there at once.

    Leaving the iteration cancels the call.
    """
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    called = False

    async def receive() -> Message:
        nonlocal called
        if not called:
            called = True
            return {"type": "http.request", "body": call.body, "more_body": False}
        await asyncio.Event().wait()  # a client that leaves cancels the call
        raise AssertionError("unreachable")

    running = asyncio.ensure_future(app(call.scope, receive, sent.put))
    running.add_done_callback(lambda done: sent.put_nowait(None))
    try:
        over = ended = False
        while not over:
            batch: list[Piece] = []
            messages = [await sent.get()]
            while not sent.empty():
                messages.append(sent.get_nowait())
            for message in messages:
                over = over or message is None
                if message is not None:
                    batch += _pieces(message)
            ended = ended or END in batch
            if batch:
                yield batch
        if not ended:
            await running  # raises what ended it
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)  # an app logs what it answered 500


def _pieces(message: Message) -> list[Piece]:
    if message["type"] == "http.response.start":
        headers = tuple((bytes(name), bytes(value)) for name, value in message["headers"])
        return [("start", message["status"], headers)]
    pieces: list[Piece] = [("body", message["body"])] if message.get("body") else []
    return pieces if message.get("more_body", False) else [*pieces, END]
