"""Giving a request to replicas until one gives a whole response.

A request that a replica did not answer, because it died or broke off, is given to another one as
long as the client has seen nothing of an answer; after that the client receives an error event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from typing import Protocol

from fastapi import Response
from starlette.types import Receive, Scope, Send

from llavakit.cluster.wire import Headers, Piece, WireRequest
from llavakit.serving.answering import ClientGone, while_connected
from llavakit.serving.answers import to_json
from llavakit.serving.errors import Refusal
from llavakit.serving.events import PING, event
from llavakit.serving.settings import ServerSettings

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Replicas that may be lost over one request: it may be the request that ends them."""
_REFUSALS = 20  # by replicas that never got the request
_PAUSE = 0.1
_OPENINGS = (
    b'"delta":{"role":"assistant","content":""}',
    b"event: response.created\n",
    b"event: response.in_progress\n",
    b"event: response.output_item.added\n",
    b"event: response.content_part.added\n",
)
"""What events have that open an answer and hold nothing of it."""


class ReplicaLost(Exception):
    """A replica died, or its response ended without an end."""


class Replicas(Protocol):
    """What reaches the replicas."""

    def ask(
        self, call: WireRequest, keys: Sequence[str], avoid: Sequence[str]
    ) -> AsyncGenerator[list[Piece], None]:
        """The response of a replica; leaving the iteration cancels the call.

        Args:
            call: the request.
            keys: beginnings by which a replica is preferred.
            avoid: replicas that failed it before.

        Raises:
            ReplicaLost: it has no end.
        """

    async def states(self) -> dict[str, int]:
        """How many replicas there are by state; those that are ``RUNNING`` answer."""

    async def metrics(self) -> bytes:
        """The figures of all replicas in Prometheus' text format."""


def going_down(settings: ServerSettings, *, unread: bool = False) -> Refusal:
    """A refusal of a server that stops."""
    return Refusal(
        503,
        "The server is going down; ask another one.",
        code="stopping",
        headers={"Retry-After": str(settings.retry_after)},
        unread=unread,
    )


class Failover(Response):
    """The response of whichever replica gives a whole one.

    Args:
        replicas: whom to ask.
        call: the request.
        keys: its beginnings.
        settings: timeouts.
        held: closed at the end, whatever happens.
    """

    def __init__(
        self,
        replicas: Replicas,
        call: WireRequest,
        keys: Sequence[str],
        settings: ServerSettings,
        held: ExitStack,
    ) -> None:
        super().__init__()
        self._replicas = replicas
        self._call = call
        self._keys = keys
        self._settings = settings
        self._held = held
        self._asking: asyncio.Task[None] | None = None
        self._closed = False

    def close(self) -> None:
        """Ends it with an error."""
        self._closed = True
        if self._asking is not None:
            self._asking.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        said = _BufferedResponse(send, self._settings.send_timeout)
        try:
            await while_connected(receive, self._answered(said))
        except (ClientGone, TimeoutError):
            pass  # the client left, or does not read
        finally:
            self._held.close()

    async def _answered(self, said: _BufferedResponse) -> None:
        self._asking = asyncio.create_task(self._ask(said))
        if self._closed:
            self._asking.cancel()
        try:
            await self._asking
        except asyncio.CancelledError:
            if not self._closed:
                raise
            await said.refuse(going_down(self._settings))
        finally:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self, said: _BufferedResponse) -> None:
        lost: list[str] = []
        for number in range(_REFUSALS):
            said.forget()
            try:
                await self._one(said, lost)
                return
            except ReplicaLost:
                if said.replica is not None:
                    lost.append(said.replica)
                log.warning("a replica was lost: %s", said.replica or "before it had the request")
                if said.anything or len(lost) >= ATTEMPTS:
                    break
            await asyncio.sleep(min(_PAUSE * 2**number, 1.0))
        await said.refuse(
            Refusal(
                503,
                "The replica that answered was lost; ask again.",
                code="replica_lost",
                headers={"Retry-After": str(self._settings.retry_after)},
            )
        )

    async def _one(self, said: _BufferedResponse, lost: Sequence[str]) -> None:
        # The replica has its own timeout for an answer; this one is for not finding a replica.
        patience = self._settings.request_timeout + self._settings.ping_seconds
        async with aclosing(self._replicas.ask(self._call, self._keys, lost)) as batches:
            while True:
                try:
                    batch = await asyncio.wait_for(anext(batches), patience)
                except StopAsyncIteration:
                    raise ReplicaLost from None
                except TimeoutError:
                    await said.refuse(
                        Refusal(504, "No replica answered in time; ask again.", code="timeout")
                    )
                    return
                for piece in batch:
                    if piece[0] == "end":
                        await said.end()
                        return
                    if piece[0] == "start" and piece[1] == 503 and len(lost) < ATTEMPTS - 1:
                        raise ReplicaLost  # it goes down, or has no model any more
                    await said.take(piece)


def _opens(data: bytes) -> bool:
    return any(opening in data for opening in _OPENINGS)


class _BufferedResponse:
    """What was sent to a client so far, and what waits until it is sure.

    A response that is no stream waits until it is whole. Of a stream waits what says nothing:
    its head, and the events that open the answers; signs of life go out at once.

    Attributes:
        anything: whether the client has a piece of an answer.
        replica: who answers, once it is known.
    """

    def __init__(self, send: Send, timeout: float) -> None:
        self._send = send
        self._timeout = timeout
        self._waiting: list[bytes] = []
        self._head: tuple[int, Headers] | None = None
        self._begun = False
        self._over = False
        self.anything = False
        self.replica: str | None = None

    async def take(self, piece: Piece) -> None:
        """The next piece of a replica's response."""
        if piece[0] == "from":
            self.replica = piece[1]
        elif piece[0] == "start":
            self._head = (piece[1], piece[2])
        elif piece[0] == "body":
            data = piece[1]
            if data == PING and self._streams:
                await self._begin()
                await self._body(data)
            elif not self._streams or (not self.anything and _opens(data)):
                self._waiting.append(data)
            else:
                self.anything = True
                await self._flush()
                await self._body(data)

    def forget(self) -> None:
        """Another replica begins anew."""
        self._waiting.clear()
        self._head = None
        self.replica = None

    async def end(self) -> None:
        """The response is whole."""
        if self._begun and not self._streams:
            # The stream is open and another replica refuses the request: sent as an event.
            self._waiting = [event(b"".join(self._waiting))]
        await self._flush()
        await self._body(b"", more=False)

    async def refuse(self, reason: Refusal) -> None:
        """There will be no (further) answer."""
        if self._over:
            return
        self._waiting.clear()
        body = to_json(reason.body())
        if self._begun:
            await self._body(event(body))
        else:
            response = reason.response()
            self._head = (reason.status, tuple(response.raw_headers))
            await self._begin()
            await self._body(bytes(response.body))
        await self._body(b"", more=False)

    @property
    def _streams(self) -> bool:
        if self._head is None:
            return False
        status, headers = self._head
        kind = dict(headers).get(b"content-type", b"")
        return status == 200 and kind.startswith(b"text/event-stream")

    async def _begin(self) -> None:
        if self._begun or self._head is None:
            return
        self._begun = True
        status, headers = self._head
        await self._send(
            {"type": "http.response.start", "status": status, "headers": list(headers)}
        )

    async def _flush(self) -> None:
        await self._begin()
        for data in self._waiting:
            await self._body(data)
        self._waiting.clear()

    async def _body(self, data: bytes, *, more: bool = True) -> None:
        self._over = not more
        async with asyncio.timeout(self._timeout):
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
