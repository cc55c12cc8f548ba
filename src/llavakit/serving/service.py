"""What the routes do: one service an app, between HTTP and the backend."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from llavakit._threads import off_loop
from llavakit.backend import Backend, ModelInfo
from llavakit.errors import RequestCancelledError
from llavakit.images import Picture
from llavakit.serving.answering import (
    ClientGone,
    Listener,
    OpenAnswers,
    close,
    gathered,
    merged,
    submit_all,
    while_connected,
)
from llavakit.serving.answers import Envelope, delta, to_json
from llavakit.serving.convert import check_length, to_messages, to_requests, to_tools
from llavakit.serving.errors import Refusal, refusal
from llavakit.serving.events import DONE, PING, EventStream, event
from llavakit.serving.limits import Gate, Share, read_body
from llavakit.serving.metrics import Clock, Metrics
from llavakit.serving.readiness import Readiness, State
from llavakit.serving.schema import ChatRequest, TokenizeRequest
from llavakit.serving.settings import ServerSettings
from llavakit.serving.validation import parse
from llavakit.streams import AnswerStream
from llavakit.tracing import received
from llavakit.values import Message, Usage

T = TypeVar("T", bound=BaseModel)
_GONE = Response(status_code=499)
"""Sent to nobody."""


class Service:
    """The backend as the routes see it.

    Args:
        backend: who answers.
        settings: names and limits.
        loaded: told how loading ended.
        progress: told how the warm-up goes on.
    """

    def __init__(
        self,
        backend: Backend,
        settings: ServerSettings,
        loaded: Callable[[BaseException | None], None] | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self.backend = backend
        self.settings = settings
        self.name = settings.model_name or _short(backend.info.name)
        self.metrics = Metrics(self.name, backend.stats)
        self.gate = Gate(settings)
        self.readiness = Readiness(
            backend, warm_up=settings.warm_up, told=loaded, progress=progress
        )
        self.answers = OpenAnswers()
        # Fetching waits, decoding computes.
        workers = 32 if settings.allow_urls else min(8, (os.cpu_count() or 1) + 2)
        self._pool = ThreadPoolExecutor(workers, "llavakit-serve")

    def state(self) -> State:
        """Whether requests are answered; begins to load if nobody has."""
        self.readiness.begin()
        return self.readiness.state

    def stop(self) -> None:
        """No more requests; those that are open end with an error."""
        self.readiness.stop()
        self.answers.close_all()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def model(self) -> dict[str, Any]:
        """The entry of ``/v1/models``."""
        info = self._ready()
        return {
            "id": self.name,
            "object": "model",
            "created": self.readiness.since,
            "owned_by": "llavakit",
            "root": self.name,
            "max_model_len": info.context_length,
        }

    def check_name(self, name: str) -> None:
        """Refuses another model than the one that is served.

        Raises:
            Refusal: 404.
        """
        if name != self.name:
            raise Refusal(
                404,
                f"The model {name[:100]!r} is not served here; ask for {self.name!r}.",
                code="model_not_found",
                param="model",
            )

    async def chat(self, request: Request) -> Response:
        """Answers a conversation."""
        with ExitStack() as held, self._told():
            info = self._ready()
            share = held.enter_context(self.gate.enter())
            body = await read_body(request, self.settings, share)
            clock = Clock(self.metrics)
            listener = Listener(request.receive)
            with received(request.headers):
                asked, streams = await while_connected(listener, self._open(body, info, share))
            clock.open = len(streams)
            held.callback(clock.over)
            held.callback(close, streams)
            told = Envelope(self.name, info.revision or None)
            headers = {"X-Request-Id": told.id}
            if asked.stream:
                events = self._events(asked, streams, told, clock)
                stack = held.pop_all()
                return EventStream(events, self.settings.send_timeout, stack, headers, listener)
            clock.failed = True  # unless it goes well, or the client leaves
            try:
                work = gathered(streams, clock, self.settings.ping_seconds)
                completions = await while_connected(listener, work)
            except ClientGone:
                clock.failed = False
                raise
            clock.tokens([completion.usage for completion in completions])
            whole = told.whole(completions, logprobs=bool(asked.logprobs))
            return Response(to_json(whole), media_type="application/json", headers=headers)
        return _GONE

    async def tokenize(self, request: Request) -> Response:
        """Counts the tokens of a prompt."""
        with ExitStack() as held, self._told():
            info = self._ready()
            share = held.enter_context(self.gate.enter())
            body = await read_body(request, self.settings, share)
            work = off_loop(self._pool, lambda: self._count(body, info, share), lambda count: None)
            count = await while_connected(request.receive, work)
            return JSONResponse({"count": count, "max_model_len": info.context_length})
        return _GONE

    def _ready(self) -> ModelInfo:
        self.readiness.begin()
        return self.readiness.check()

    @contextlib.contextmanager
    def _told(self) -> Any:
        """Errors become refusals; of a client that left nobody is told."""
        try:
            yield
        except (ClientGone, ClientDisconnect):
            self.metrics.refused("client_left")
        except Exception as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> Refusal:
        if isinstance(error, RequestCancelledError) and self.readiness.state == "stopping":
            error = RequestCancelledError("The server is going down; ask another one.")
        return refusal(error, self.settings.retry_after)

    async def _open(
        self, body: bytes, info: ModelInfo, share: Share
    ) -> tuple[ChatRequest, list[AnswerStream]]:
        def work() -> tuple[ChatRequest, list[AnswerStream]]:
            asked = parse(ChatRequest, body)
            self.check_name(asked.model)
            requests = to_requests(asked, self.settings, info.context_length, _charged(share))
            return asked, submit_all(self.backend, requests)

        asked, streams = await off_loop(self._pool, work, lambda opened: close(opened[1]))
        share.give_back(len(body))
        for stream in streams:
            self.answers.add(stream)
        return asked, streams

    def _count(self, body: bytes, info: ModelInfo, share: Share) -> int:
        asked = parse(TokenizeRequest, body)
        if asked.model is not None:
            self.check_name(asked.model)
        if (asked.messages is None) == (asked.prompt is None):
            raise Refusal(
                400, "Send either messages or prompt.", code="invalid_value", param="messages"
            )
        messages = [Message("user", asked.prompt or "")]
        if asked.messages is not None:
            policy = self.settings.policy()
            most = self.settings.max_images
            messages = to_messages(asked.messages, policy, most, _charged(share))
        tools = to_tools(asked.tools)
        # Counting may well exceed the context; it must not take minutes.
        check_length(messages, tools, None, 16 * info.context_length)
        return self.backend.count_tokens(messages, tools=tools)

    async def _events(
        self, asked: ChatRequest, streams: list[AnswerStream], told: Envelope, clock: Clock
    ) -> AsyncGenerator[bytes, None]:
        wants_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        usages: dict[int, Usage] = {}
        calls = [0] * len(streams)

        def piece(*args: Any, **rest: Any) -> bytes:
            made = told.piece(*args, **rest)
            return event(to_json(made | {"usage": None} if wants_usage else made))

        for index in range(len(streams)):
            yield piece(index, {"role": "assistant", "content": ""})
        try:
            async with contextlib.aclosing(merged(streams, self.settings.ping_seconds)) as chunks:
                async for said in chunks:
                    if said is None:
                        yield PING
                        continue
                    index, chunk = said
                    clock.chunk(index, chunk)
                    change = delta(chunk, calls[index])
                    calls[index] += len(chunk.tool_calls)
                    if change or chunk.logprobs:
                        yield piece(index, change, logprobs=chunk.logprobs)
                    if chunk.finish_reason is not None:
                        usages[index] = chunk.usage or Usage()
                        yield piece(index, {}, finish=chunk.finish_reason)
        except Exception as error:
            clock.failed = True
            reason = self._refusal(error)
            self.metrics.refused(reason.code)
            yield event(to_json(reason.body()))
            return
        ordered = [usages[index] for index in range(len(streams))]
        clock.tokens(ordered)
        if wants_usage:
            yield event(to_json(told.total(ordered)))
        yield DONE


def _short(name: str) -> str:
    """What clients call a model; of a directory, its last part."""
    return Path(name).name if Path(name).is_absolute() else name


def _charged(share: Share) -> Callable[[Picture], None]:
    """Counts the memory of the images that a request opens."""

    def opened(picture: Picture) -> None:
        width, height = picture.size
        share.take(3 * width * height)

    return opened
