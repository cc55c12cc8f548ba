"""What keeps one client, or all of them together, from using up the server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from llavakit.errors import RequestCancelledError
from llavakit.serving.errors import Refusal
from llavakit.serving.settings import ServerSettings

_LINGER_SECONDS = 2.0
"""A client that sends too much is listened to for so long, or it would never read the answer."""
_LINGER_BYTES = 64 << 20


class Share:
    """The memory that one request holds; thread-safe."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.bytes = 0
        self.over = False

    def take(self, size: int) -> None:
        """Hold so many bytes more.

        Raises:
            Refusal: all open requests together hold too much.
            RequestCancelledError: the request is over; the thread that opens its images did
                not know yet.
        """
        self._gate.take(self, size)

    def give_back(self, size: int) -> None:
        """Hold so many bytes less."""
        self._gate.take(self, -size)


class Gate:
    """Counts the open requests and the memory that they hold."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self.open = 0
        self.bytes = 0

    @contextmanager
    def enter(self) -> Iterator[Share]:
        """One request, from before its body is read to the end of its answer.

        Raises:
            Refusal: as many as may be are open.
        """
        with self._lock:
            if self.open >= self._settings.max_open_requests:
                raise self._full("as many requests as it takes are open", unread=True)
            self.open += 1
        share = Share(self)
        try:
            yield share
        finally:
            with self._lock:
                self.open -= 1
                self.bytes -= share.bytes
                share.bytes, share.over = 0, True

    def take(self, share: Share, size: int) -> None:
        """See :meth:`Share.take`."""
        most = self._settings.max_memory_bytes
        with self._lock:
            if share.over:
                raise RequestCancelledError("The client left while its request was read.")
            if size > 0 and self.bytes + size > most:
                if share.bytes + size > most:
                    raise Refusal(
                        413,
                        "The request needs more memory than the server has for all; send fewer "
                        "or smaller images.",
                        code="request_too_large",
                    )
                raise self._full("the open requests hold as much memory as they may")
            self.bytes += size
            share.bytes += size

    def _full(self, reason: str, *, unread: bool = False) -> Refusal:
        return Refusal(
            429,
            f"The server is full ({reason}); try again later.",
            code="server_full",
            headers={"Retry-After": str(self._settings.retry_after)},
            unread=unread,
        )


async def read_body(request: Request, settings: ServerSettings, share: Share) -> bytes:
    """The body of a request, of bounded length and within a bounded time.

    Raises:
        Refusal: 413 too long, 408 too slow, 415 no JSON.
        ClientDisconnect: the client left while sending.
    """
    _check_type(request)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > settings.max_body_bytes:
        raise _too_long(settings, unread=True)
    body = bytearray()
    more = True
    try:
        async with asyncio.timeout(settings.body_timeout):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece, more = message.get("body", b""), message.get("more_body", False)
                if len(body) + len(piece) > settings.max_body_bytes:
                    raise _too_long(settings, unread=more)
                share.take(len(piece))
                body += piece
    except TimeoutError:
        raise Refusal(
            408,
            f"The body did not come within {settings.body_timeout:g} seconds; send it again.",
            code="body_timeout",
            headers={"Connection": "close"},
        ) from None
    except Refusal as refused:
        refused.unread = more
        raise
    return bytes(body)


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(
            415,
            "The body must be JSON: send the header Content-Type: application/json.",
            code="unsupported_media_type",
            unread=True,
        )
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refusal(
            415,
            "The body must not be compressed: send it without Content-Encoding.",
            code="unsupported_media_type",
            unread=True,
        )


def _too_long(settings: ServerSettings, *, unread: bool) -> Refusal:
    return Refusal(
        413,
        f"The body has more than {settings.max_body_bytes:,} bytes; send fewer or smaller images.",
        code="request_too_large",
        unread=unread,
    )


async def linger(request: Request) -> None:
    """Hears out a client whose request is refused before it was read, for a short while.

    Closing on a client that still sends resets the connection, and the answer is lost.
    """
    left = _LINGER_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while left > 0:
                message = await request.receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))
