"""One answer, from the question to its last word; knows the model, not the browser."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from llavakit.backend import Backend
from llavakit.errors import (
    ContextLengthError,
    LlavaKitError,
    ModelError,
    RemoteError,
    RequestCancelledError,
)
from llavakit.streams import AnswerStream
from llavakit.values import Chunk, Message, SamplingParams
from llavakit.web.conversation import AnswerStage, ShownAnswer
from llavakit.web.model_cache import ModelCache
from llavakit.web.moderation import Moderation, judge
from llavakit.web.pictures import prepared
from llavakit.web.queue import Queue, Ticket

logger = logging.getLogger(__name__)

PACE = 0.05
"""Seconds between two looks at an answer that is being written."""


@dataclass(frozen=True, slots=True)
class WebQuestion:
    """What one answer depends on."""

    messages: tuple[Message, ...]
    params: SamplingParams
    model: str


class AnswerTask:
    """An answer on its way. Runs as a task of its own, with or without a viewer.

    Args:
        question: what is asked.
        answer: filled in while it comes.
        line: where to wait for a seat.
        model_cache: where the models are.
        moderation: the hook that may refuse.
        timeout: seconds for the answer, without the time in the queue.
    """

    def __init__(
        self,
        question: WebQuestion,
        answer: ShownAnswer,
        *,
        line: Queue,
        model_cache: ModelCache,
        moderation: Moderation | None = None,
        timeout: float | None = None,
    ) -> None:
        self.answer = answer
        self._question = question
        self._line = line
        self._model_cache = model_cache
        self._moderation = moderation
        self._timeout = timeout
        self._stopped = False
        self._stream: AnswerStream | None = None
        self._ticket: Ticket | None = None
        self._changed = asyncio.Event()
        self._after: asyncio.Task[None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def over(self) -> bool:
        """Return whether nothing more comes."""
        return self._task.done()

    def stop(self) -> None:
        """End it; the model is free at its next step. What has come stays. Safe to call twice."""
        self._stopped = True
        if self._ticket is not None:
            self._ticket.leave()
        if self._stream is not None:
            self._stream.close()

    async def looks(self) -> AsyncIterator[None]:
        """Yield whenever there is something new to see, at most every :data:`PACE`."""
        while not self._task.done():
            await self._changed.wait()
            self._changed.clear()
            yield
            await asyncio.sleep(PACE)
        yield

    def then(self, do: Callable[[], Awaitable[None]]) -> None:
        """Call something once it is over, with or without a viewer."""

        async def wait() -> None:
            await self.ended()
            await do()

        self._after = asyncio.get_running_loop().create_task(wait())

    async def ended(self) -> None:
        """Wait for the end, however it comes."""
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            await judge(self._moderation, self._question.messages)
            await self._wait_in_line()
            if not self._stopped:
                await self._write()
            self._end(AnswerStage.STOPPED if self._stopped else AnswerStage.DONE)
        except RequestCancelledError as error:
            if self._stopped:
                self._end(AnswerStage.STOPPED)
            else:
                self._fail(error)
        except Exception as error:
            self._fail(error)
        finally:
            if self._stream is not None:
                self._stream.close()
            if self._ticket is not None:
                self._ticket.leave()
            self._changed.set()

    async def _wait_in_line(self) -> None:
        ticket = self._ticket = self._line.enter()
        while not self._stopped and (place := ticket.place):
            self._show(AnswerStage.WAITING, place)
            await ticket.moved.wait()
            ticket.moved.clear()

    async def _write(self) -> None:
        question, answer = self._question, self.answer
        with self._model_cache.using(question.model) as backend:
            answer.model = question.model
            self._show(
                AnswerStage.READING
                if self._model_cache.is_loaded(question.model)
                else AnswerStage.LOADING
            )
            # Weights are loaded and images opened here, off the event loop.
            self._stream = stream = await asyncio.to_thread(self._begun, backend)
            self._model_cache.loaded(question.model)
            if self._stopped:
                return
            self._show(AnswerStage.READING)
            begun, first = time.monotonic(), 0.0
            async for chunk in stream:
                if not first:
                    first = time.monotonic()
                    answer.first_token = first - begun
                self._take(chunk)
                answer.writing = time.monotonic() - first

    def _begun(self, backend: Backend) -> AnswerStream:
        question = self._question
        messages = prepared(question.messages)
        return backend.stream(messages, question.params, timeout=self._timeout)

    def _take(self, chunk: Chunk) -> None:
        answer = self.answer
        answer.text += chunk.text
        if chunk.finish_reason is not None:
            answer.usage = chunk.usage
            answer.cut = chunk.finish_reason == "length"
        self._show(AnswerStage.WRITING)

    def _show(self, stage: AnswerStage, place: int = 0) -> None:
        self.answer.stage, self.answer.place = stage, place
        self._changed.set()

    def _end(self, stage: AnswerStage) -> None:
        self.answer.text = self.answer.text.strip()
        self._show(stage)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, (ModelError, RemoteError)):
            logger.warning("%s", error)  # it may tell of addresses and directories
        elif not isinstance(error, LlavaKitError):
            logger.error("An answer failed", exc_info=error)
        self.answer.error = sentence(error)
        self._end(AnswerStage.FAILED)


def sentence(error: BaseException) -> str:
    """Return an error in words for a visitor; what only the operator may know stays in the log."""
    if isinstance(error, ContextLengthError):
        return f"{' '.join(str(error).split())} A new chat begins with an empty context."
    if isinstance(error, (ModelError, RemoteError)):
        return "The model cannot answer now; the reason is in the server's log."
    if isinstance(error, LlavaKitError):
        return " ".join(str(error).split())
    return f"Something went wrong here ({type(error).__name__}); the server's log has the details."
