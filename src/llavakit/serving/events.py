"""A streamed answer: server-sent events, each with a piece, and ``[DONE]`` only at a true end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llavakit.serving.answering import ClientGone, Listener, while_connected

DONE = b"data: [DONE]\n\n"
PING = b": still working\n\n"


def event(data: bytes) -> bytes:
    """One event; ``data`` is JSON and so has no line breaks."""
    return b"data: " + data + b"\n\n"


class EventStream(Response):
    """Sends events as they come, and ends them when the client leaves or stops reading.

    Args:
        events: encoded events; closed in any case.
        send_timeout: seconds that one event may wait for its reader.
        held: closed at the end, whatever happens.
        headers: further headers.
        listener: hears of the client's leaving; the request's own, which may have heard already.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        send_timeout: float,
        held: ExitStack,
        headers: Mapping[str, str],
        listener: Listener,
    ) -> None:
        super().__init__(
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers}
        )
        # Its length is not known; chunks are.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._events = events
        self._send_timeout = send_timeout
        self._held = held
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientGone, TimeoutError):
                await while_connected(self._listener, self._tell(send))
        finally:
            self._held.close()
            await self._events.aclose()

    async def _tell(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async with contextlib.aclosing(self._events) as events:
            async for data in events:
                async with asyncio.timeout(self._send_timeout):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
