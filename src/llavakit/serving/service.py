"""What the routes do: one service an app, between HTTP and the backend."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from llavakit.backend import Backend, ModelInfo, begins_a_turn
from llavakit.errors import RequestCancelledError, RequestTimeoutError
from llavakit.images.isolated import LIGHT_PIXELS, Decoders
from llavakit.serving import chat, completions, responses
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
from llavakit.serving.answers import to_json
from llavakit.serving.auth import client_of
from llavakit.serving.chat_schema import TokenizeRequest
from llavakit.serving.convert import (
    check_length,
    to_messages,
    to_requests,
    to_tools,
)
from llavakit.serving.errors import Refusal, blamed, refusal
from llavakit.serving.events import PING, EventStream
from llavakit.serving.lanes import Lanes
from llavakit.serving.limits import Gate, Share, read_body
from llavakit.serving.metrics import Clock, Metrics
from llavakit.serving.notation import Asked, Parse, Served, Writer
from llavakit.serving.opening import Opened, Opener
from llavakit.serving.readiness import Readiness, State
from llavakit.serving.settings import ServerSettings
from llavakit.serving.sources import ImageSource, image_sources
from llavakit.serving.validation import parse
from llavakit.streams import AnswerStream
from llavakit.tracing import received
from llavakit.values import Message, Usage
from llavakit.values import Request as LlavaRequest

T = TypeVar("T")
_GONE = Response(status_code=499)
"""Never sent: the client left."""


class Service:
    """The backend as the routes see it.

    Args:
        backend: who answers.
        settings: names and limits.
        loaded: called with how loading ended.
        progress: called as the warm-up goes on.
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
            backend, warm_up=settings.warm_up, reported=loaded, progress=progress
        )
        self.answers = OpenAnswers()
        self._lanes = Lanes()
        self._decoders = Decoders()

    def state(self) -> State:
        """Whether requests are answered; begins to load if that has not begun."""
        self.readiness.begin()
        return self.readiness.state

    def stop(self) -> None:
        """No more requests; those that are open end with an error."""
        self.readiness.stop()
        self.answers.close_all()
        self._lanes.close()
        self._decoders.close()

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
        return await self._answer(request, chat.asked)

    async def responses(self, request: Request) -> Response:
        """Answers a request of the Responses API."""
        return await self._answer(request, responses.asked)

    async def completions(self, request: Request) -> Response:
        """Answers prompts of the older completions."""
        return await self._answer(request, completions.asked)

    async def _answer(self, request: Request, read: Parse) -> Response:
        with ExitStack() as held, self._reported():
            info = self._ready()
            share = held.enter_context(self.gate.enter())
            body = await read_body(request, self.settings, share)
            clock = Clock(self.metrics)
            listener = Listener(request.receive)
            opener = self._opener(request, share)
            with received(request.headers):
                work = self._in_time(self._open(read, body, info, opener))
                asked, writer, streams = await while_connected(listener, work)
            share.give_back(len(body))
            clock.open = len(streams)
            held.callback(clock.over)
            held.callback(close, streams)
            headers = {"X-Request-Id": writer.id}
            if asked.stream:
                events = self._events(writer, streams, clock)
                stack = held.pop_all()
                return EventStream(events, self.settings.send_timeout, stack, headers, listener)
            clock.failed = True  # unless it goes well, or the client leaves
            try:
                answers = gathered(streams, clock, self.settings.ping_seconds)
                found = await while_connected(listener, answers)
            except ClientGone:
                clock.failed = False
                raise
            clock.tokens([completion.usage for completion in found])
            whole = to_json(writer.whole(found))
            return Response(whole, media_type="application/json", headers=headers)
        return _GONE

    async def tokenize(self, request: Request) -> Response:
        """Counts the tokens of a prompt."""
        with ExitStack() as held, self._reported():
            info = self._ready()
            share = held.enter_context(self.gate.enter())
            body = await read_body(request, self.settings, share)
            opener = self._opener(request, share)
            work = self._in_time(self._count(body, info, opener))
            count = await while_connected(request.receive, work)
            return JSONResponse({"count": count, "max_model_len": info.context_length})
        return _GONE

    def _ready(self) -> ModelInfo:
        self.readiness.begin()
        return self.readiness.check()

    @contextlib.contextmanager
    def _reported(self) -> Any:
        """Turn errors into refusals; that a client left is only counted."""
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

    def _opener(self, request: Request, share: Share) -> Opener:
        client = client_of(request, by_key=bool(self.settings.api_keys))
        return Opener(self._lanes, self._decoders, client, self.settings.policy(), share)

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """What is done before a request is submitted has the time of the whole request."""
        seconds = self.settings.request_timeout
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError as error:
            if isinstance(error, RequestTimeoutError):
                raise
            raise RequestTimeoutError(
                f"The request was not read within {seconds:g} seconds; try again later, or send "
                "smaller images."
            ) from None

    async def _open(
        self, read: Parse, body: bytes, info: ModelInfo, opener: Opener
    ) -> tuple[Asked, Writer, list[AnswerStream]]:
        lanes, client = self._lanes, opener.client

        def parsed() -> tuple[Asked, list[list[ImageSource]]]:
            asked = read(body)
            self.check_name(asked.bodies[0].model)
            most = self.settings.max_images
            return asked, [image_sources(one.messages, most, asked.place) for one in asked.bodies]

        asked, sources = await lanes.of(size=len(body)).run(client, parsed)
        most = self.settings.max_images
        pictures = [await opener.open(of_body, most) for of_body in sources]
        flat = [one for of_body in pictures for of_block in of_body for one in of_block]
        largest = max((_work(one) for one in flat), default=0)

        def submitted() -> tuple[Writer, list[AnswerStream]]:
            requests: list[LlavaRequest] = []
            for one, images in zip(asked.bodies, pictures, strict=True):
                requests += to_requests(
                    one, self.settings, info.context_length, images, asked.place
                )
            prompt = 0
            if asked.counts:
                requests = [_counted(one) for one in requests]
                first = requests[0]
                prompt = self.backend.count_tokens(
                    first.messages,
                    tools=first.tools,
                    continue_final_message=first.continue_final_message,
                )
            writer = asked.writer(Served(self.name, info.revision or None, prompt))
            return writer, submit_all(self.backend, requests)

        # The backend scales images and decodes videos here.
        lane = lanes.of(size=len(body), pixels=largest)
        writer, streams = await lane.run(client, submitted, lambda opened: close(opened[1]))
        for stream in streams:
            self.answers.add(stream)
        return asked, writer, streams

    async def _count(self, body: bytes, info: ModelInfo, opener: Opener) -> int:
        lanes, client = self._lanes, opener.client

        def parsed() -> tuple[TokenizeRequest, list[ImageSource]]:
            asked = parse(TokenizeRequest, body)
            if asked.model is not None:
                self.check_name(asked.model)
            if (asked.messages is None) == (asked.prompt is None):
                raise Refusal(
                    400, "Send either messages or prompt.", code="invalid_value", param="messages"
                )
            return asked, image_sources(asked.messages or [], self.settings.max_images)

        asked, sources = await lanes.of(size=len(body)).run(client, parsed)
        pictures = await opener.open(sources, self.settings.max_images)

        def counted() -> int:
            messages = [Message("user", asked.prompt or "")]
            if asked.messages is not None:
                messages = to_messages(asked.messages, pictures)
            tools = to_tools(asked.tools)
            # Counting may well exceed the context; it must not take minutes.
            check_length(messages, tools, None, 16 * info.context_length)
            continues = bool(asked.continue_final_message)
            with blamed("add_generation_prompt"):
                begins_a_turn(asked.add_generation_prompt, continues)
            return self.backend.count_tokens(
                messages, tools=tools, continue_final_message=continues
            )

        return await lanes.of(size=len(body)).run(client, counted)

    async def _events(
        self, writer: Writer, streams: list[AnswerStream], clock: Clock
    ) -> AsyncGenerator[bytes, None]:
        usages: dict[int, Usage] = {}
        for data in writer.begin():
            yield data
        try:
            async with contextlib.aclosing(merged(streams, self.settings.ping_seconds)) as chunks:
                async for said in chunks:
                    if said is None:
                        yield PING
                        continue
                    index, chunk = said
                    clock.chunk(index, chunk)
                    for data in writer.chunk(index, chunk):
                        yield data
                    if chunk.finish_reason is not None:
                        usages[index] = chunk.usage or Usage()
        except Exception as error:
            clock.failed = True
            reason = self._refusal(error)
            self.metrics.refused(reason.code)
            for data in writer.failed(reason):
                yield data
            return
        ordered = [usages[index] for index in range(len(streams))]
        clock.tokens(ordered)
        for data in writer.end(ordered):
            yield data


def _work(opened: Opened) -> int:
    """Pixels that the backend has to look at; decoding a video is always heavy."""
    if isinstance(opened, bytes):
        return LIGHT_PIXELS + 1
    width, height = opened.size
    return width * height


def _counted(request: LlavaRequest) -> LlavaRequest:
    """The request with a log probability for each token, by which tokens are counted."""
    if request.params.logprobs is not None:
        return request
    return replace(request, params=replace(request.params, logprobs=0))


def _short(name: str) -> str:
    """What clients call a model; of a directory, its last part."""
    return Path(name).name if Path(name).is_absolute() else name
