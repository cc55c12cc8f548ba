"""From a request's body to the open streams of its answers, and from those to a completion."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.types import Message, Receive

from llavakit.backend import Backend
from llavakit.errors import EngineError
from llavakit.serving.metrics import Clock
from llavakit.streams import AnswerStream, Gathering
from llavakit.values import Chunk, Completion, Request

T = TypeVar("T")


class OpenAnswers:
    """All streams that are not at their end, so that a server that goes down can end them."""

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[AnswerStream] = weakref.WeakSet()

    def add(self, stream: AnswerStream) -> None:
        """Remember a stream while it lives."""
        self._streams.add(stream)

    def close_all(self) -> None:
        """End all with an error."""
        for stream in list(self._streams):
            stream.close()


def submit_all(backend: Backend, requests: list[Request]) -> list[AnswerStream]:
    """The streams of all choices; none is left behind if one of them is refused."""
    streams: list[AnswerStream] = []
    try:
        for request in requests:
            streams.append(backend.submit(request))
    except BaseException:
        close(streams)
        raise
    return streams


def close(streams: list[AnswerStream]) -> None:
    """Cancel what is not at its end."""
    for stream in streams:
        stream.close()


async def merged(
    streams: list[AnswerStream], ping_seconds: float
) -> AsyncGenerator[tuple[int, Chunk] | None, None]:
    """The chunks of all choices as they come, with their index; closes what it leaves behind.

    Args:
        streams: one a choice.
        ping_seconds: after so long a silence comes None.

    Raises:
        LlavaKitError: what one of them ended with, or that it ended without an end.
    """
    queue: asyncio.Queue[tuple[int, Chunk | BaseException]] = asyncio.Queue()
    pumps = [
        asyncio.create_task(_pump(index, stream, queue)) for index, stream in enumerate(streams)
    ]
    left = len(streams)
    try:
        while left:
            try:
                async with asyncio.timeout(ping_seconds):
                    index, chunk = await queue.get()
            except TimeoutError:
                yield None
                continue
            if isinstance(chunk, BaseException):
                raise chunk
            left -= chunk.finish_reason is not None
            yield index, chunk
    finally:
        for pump in pumps:
            pump.cancel()
        close(streams)


async def _pump(
    index: int, stream: AnswerStream, queue: asyncio.Queue[tuple[int, Chunk | BaseException]]
) -> None:
    try:
        async for chunk in stream:
            queue.put_nowait((index, chunk))
            if chunk.finish_reason is not None:
                return
        raise EngineError("The answer broke off before its end; ask again.")
    except Exception as error:
        queue.put_nowait((index, error))


async def gathered(
    streams: list[AnswerStream], clock: Clock, ping_seconds: float
) -> list[Completion]:
    """All answers whole; the first error ends them all."""
    gatherings = [Gathering() for _ in streams]
    async with contextlib.aclosing(merged(streams, ping_seconds)) as chunks:
        async for said in chunks:
            if said is not None:
                index, chunk = said
                clock.chunk(index, chunk)
                gatherings[index].add(chunk)
    return [gathering.completion() for gathering in gatherings]


class ClientGone(Exception):
    """The client left; no one receives the answer."""


class Listener:
    """A request's ``receive`` that remembers that the client left: not every server says it twice.

    Args:
        receive: of ASGI.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._left: Message | None = None

    async def __call__(self) -> Message:
        """The next message."""
        if self._left is not None:
            return self._left
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._left = message
        return message


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled if the client leaves.

    Raises:
        ClientGone: it left.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _ended(task, gone)


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    # Their ends have been looked at, or are those of a client that left.
    await asyncio.gather(*tasks, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
