"""One answer on its way from the thread that computes it to its consumer.

A :class:`Channel` is the producer's end: thread-safe, and closed by exactly one terminal
event (the last chunk, or an error). An :class:`AnswerStream` is the consumer's end: the same
queue seen as an iterator and as an async iterator. Dropping, closing or cancelling the
stream cancels the request. Knows no torch, no engine and no framework.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from llavakit.errors import LlavaKitError, RequestCancelledError
from llavakit.values import Chunk, Completion, CutCall, TokenLogprob, ToolCall, Usage


class Channel:
    """The producer's end of one answer.

    ``put`` any number of chunks, then end once: by a chunk with a ``finish_reason`` or by
    ``fail``. Whatever comes after the end is ignored, so that a cancel that races with the
    last token is harmless. Memory is bounded by the request's ``max_tokens``.
    """

    def __init__(self) -> None:
        self._chunks: deque[Chunk] = deque()
        self._error: BaseException | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        self._watchers: tuple[Callable[[Chunk | BaseException], None], ...] = ()

    def watch(self, watcher: Callable[[Chunk | BaseException], None]) -> None:
        """Pass all chunks, those that wait to be taken too, and an error to a watcher.

        It is called on the producer's thread, and must neither block nor raise.
        """
        with self._changed:
            for chunk in self._chunks:
                watcher(chunk)
            if self._error is not None:
                watcher(self._error)
            self._watchers += (watcher,)

    @property
    def ended(self) -> bool:
        """Whether the terminal event was put."""
        return self._ended

    def put(self, chunk: Chunk) -> None:
        """Append a chunk; one with a ``finish_reason`` is the terminal event."""
        with self._changed:
            if self._ended:
                return
            self._chunks.append(chunk)
            self._ended = chunk.finish_reason is not None
            for watcher in self._watchers:
                watcher(chunk)
            self._wake()

    def fail(self, error: BaseException) -> None:
        """End the answer with an error; chunks that were put before are still delivered."""
        with self._changed:
            if self._ended:
                return
            self._error = error
            self._ended = True
            for watcher in self._watchers:
                watcher(error)
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            loop, future = waiter
            with contextlib.suppress(RuntimeError):  # a closed loop: nothing waits there any more
                loop.call_soon_threadsafe(_resolve, future)

    def take(self) -> Chunk | None:
        """Take the next chunk, waiting for it; None at the end; raises the error it ended with."""
        with self._changed:
            while not (self._chunks or self._ended):
                self._changed.wait()
            return self._pop()

    async def take_async(self) -> Chunk | None:
        """Take the next chunk without blocking the event loop."""
        while True:
            with self._changed:
                if self._chunks or self._ended:
                    return self._pop()
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._waiter = (loop, future)
            await future

    def _pop(self) -> Chunk | None:
        if self._chunks:
            return self._chunks.popleft()
        if self._error is not None:
            raise self._error
        return None


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class AnswerStream(Iterator[Chunk], AsyncIterator[Chunk]):
    """The consumer's end: iterate, or ``async for``; ``close()`` cancels the request.

    Args:
        channel: where the chunks come from.
        cancel: called once if the consumer leaves before the end. Must not block.
    """

    def __init__(self, channel: Channel, cancel: Callable[[], None]) -> None:
        self._channel = channel
        self._cancel = cancel
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        chunk = None if self._closed else self._channel.take()
        if chunk is None:
            self._closed = True
            raise StopIteration
        return chunk

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        try:
            chunk = None if self._closed else await self._channel.take_async()
        except asyncio.CancelledError:
            self.close()
            raise
        if chunk is None:
            self._closed = True
            raise StopAsyncIteration
        return chunk

    def watch(self, watcher: Callable[[Chunk | BaseException], None]) -> None:
        """Pass the answer to a watcher, whether it is read or not (see :meth:`Channel.watch`)."""
        self._channel.watch(watcher)

    def close(self) -> None:
        """Cancel the request unless it has ended; safe to call twice and from any thread."""
        if self._closed:
            return
        self._closed = True
        if not self._channel.ended:
            self._cancel()
            self._channel.fail(RequestCancelledError("The stream was closed by its caller."))

    async def aclose(self) -> None:
        """Close the stream, as :meth:`close` does."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        self.close()


class Gathering:
    """Gathers the chunks of one answer into a :class:`Completion`."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._calls: list[ToolCall] = []
        self._cut: list[CutCall] = []
        self._last: Chunk | None = None

    def add(self, chunk: Chunk) -> None:
        """Take in the next chunk."""
        self._text.append(chunk.text)
        self._logprobs.extend(chunk.logprobs)
        self._calls.extend(chunk.tool_calls)
        self._cut.extend(chunk.cut_calls)
        if chunk.finish_reason is not None:
            self._last = chunk

    def completion(self) -> Completion:
        """Return the complete answer; raises if the stream broke off before its end."""
        if self._last is None or self._last.finish_reason is None:
            raise LlavaKitError("The answer broke off before its end; ask again.")
        return Completion(
            text="".join(self._text),
            tool_calls=tuple(self._calls),
            finish_reason=self._last.finish_reason,
            usage=self._last.usage or Usage(),
            logprobs=tuple(self._logprobs),
            cut_calls=tuple(self._cut),
        )


def gather_all(streams: Sequence[AnswerStream]) -> list[Completion]:
    """Gather all answers; the first error is raised at once, and the other requests go on."""
    events: SimpleQueue[tuple[int, Chunk | BaseException]] = SimpleQueue()
    for index, stream in enumerate(streams):
        stream.watch(lambda one, index=index: events.put((index, one)))  # type: ignore[misc]
    gatherings = [Gathering() for _ in streams]
    left = len(streams)
    while left:
        index, one = events.get()
        if isinstance(one, BaseException):
            raise one
        gatherings[index].add(one)
        left -= one.finish_reason is not None
    return [gathering.completion() for gathering in gatherings]


async def agather(stream: AnswerStream) -> Completion:
    """Run :func:`gather` without blocking the event loop."""
    gathering = Gathering()
    async for chunk in stream:
        gathering.add(chunk)
    return gathering.completion()


def gather(chunks: Iterable[Chunk]) -> Completion:
    """Gather the chunks of an answer."""
    gathering = Gathering()
    for chunk in chunks:
        gathering.add(chunk)
    return gathering.completion()
