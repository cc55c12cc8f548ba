"""The backend that asks a server: the same calls, on another machine."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from llavakit.backend import Backend, Messages, ModelInfo, to_request
from llavakit.errors import (
    EngineClosedError,
    InputError,
    LlavaKitError,
    RemoteError,
)
from llavakit.remote.address import RemoteConfig
from llavakit.remote.answer import RemoteAnswer
from llavakit.remote.checks import check_request
from llavakit.remote.dialects import Dialect
from llavakit.remote.exchange import Exchange, PreparedRequest, timed_out
from llavakit.remote.fields import with_extra_body
from llavakit.remote.lengths import (
    context_of_llamacpp,
    context_of_ollama,
    counted,
    counted_by_template,
)
from llavakit.remote.loop import BackgroundLoop, join
from llavakit.remote.messages import to_wire
from llavakit.remote.notations import notation_of
from llavakit.remote.otherwise import is_of_the_server, otherwise
from llavakit.remote.pictures import counted_data_uri, data_uri
from llavakit.remote.request_fields import continuation, to_fields, to_functions
from llavakit.remote.server import ServedModel, detect, served
from llavakit.remote.text_tools import speaks_of_tools
from llavakit.remote.tool_support import settled
from llavakit.remote.transport import Transport
from llavakit.streams import AnswerStream, Channel
from llavakit.values import Request, Tool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from llavakit.sources import SourcePolicy

T = TypeVar("T")

_PATIENCE = 30.0
"""Seconds for a question about the server itself."""
_LOADING = 600.0
"""Seconds for one that makes it load the model."""


@dataclass(eq=False, slots=True)
class _Link:
    """What a backend has open in this process; a forked child makes its own."""

    loop: BackgroundLoop
    transport: Transport
    process: int = field(default_factory=os.getpid)
    running: dict[Exchange, Callable[[], None]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    asked: dict[str, Future[Dialect]] = field(default_factory=dict)


class RemoteBackend(Backend):
    """A model on an OpenAI-compatible server; nothing is connected before the first use.

    Args:
        config: which server and model, and how they are asked.
        policy: where images may come from. They are opened here, and sent as data.
    """

    def __init__(self, config: RemoteConfig, policy: SourcePolicy) -> None:
        self.config = config
        self._policy = policy
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._leave: weakref.finalize[..., RemoteBackend] | None = None
        self._dialect: Dialect | None = None
        self._settled = False
        self._info: ModelInfo | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<RemoteBackend {self.config.model!r} at {self.config.address}>"

    @property
    def policy(self) -> SourcePolicy:
        return self._policy

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def info(self) -> ModelInfo:
        """Facts about the model, as the server reports them.

        Raises:
            RemoteError: it does not report how long the context is, and no setting says it.
        """
        if self._info is None:
            self._info = ModelInfo(self.config.model, self._context_length())
        return self._info

    def submit(self, request: Request) -> AnswerStream:
        timeout = self.config.timeout if request.timeout is None else request.timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        link = self._linked()
        check_request(request)
        with _within(timeout):
            dialect = self._get_dialect(link, deadline, tools=speaks_of_tools(request))
        channel = Channel()
        exchange = Exchange(
            link.transport,
            self._question(request, dialect),
            lambda refusal: self._asked_otherwise(request, dialect, refusal),
            channel,
            link.counts,
            timeout,
            deadline,
        )
        link.running[exchange] = stop = link.loop.start(lambda: _run(exchange, link))
        if self._closed:
            self._end(link)

        def cancel(keep: RemoteBackend = self) -> None:  # an open stream keeps its connections
            link.counts["cancelled"] += 1
            stop()

        return AnswerStream(channel, cancel)

    def _question(self, request: Request, dialect: Dialect) -> PreparedRequest:
        """What a server of a dialect is asked."""
        fields = with_extra_body(to_fields(dialect, request), self.config.extra_body)
        notation = notation_of(dialect)
        notation.fields(fields, self.config)  # what it refuses is refused where it is asked
        messages = to_wire(request, dialect, lambda image: data_uri(image, self._policy))
        content = _json(notation.messages(messages))
        return PreparedRequest(
            notation, fields, content, RemoteAnswer(request, dialect, self.config)
        )

    def _asked_otherwise(
        self, request: Request, dialect: Dialect, refusal: str
    ) -> PreparedRequest | None:
        """The question in the way that the refusal calls for; if it speaks of the server, so it is
        asked from now on.
        """
        other = otherwise(dialect, refusal) if speaks_of_tools(request) else None
        if other is None:
            return None
        question = self._question(request, other)
        if is_of_the_server(refusal):
            self._dialect = other
        return question

    def count_tokens(
        self,
        messages: Messages,
        *,
        tools: Sequence[Tool] = (),
        continue_final_message: bool = False,
    ) -> int:
        """Tokens of the prompt, by the server's own count.

        Raises:
            RemoteError: this kind of server does not count them exactly.
            ParameterError: it does not know ``continue_final_message``.
        """
        request = to_request(messages, tools=tools, continue_final_message=continue_final_message)
        link = self._linked()
        with _within(None):
            dialect = self._get_dialect(link, None, tools=speaks_of_tools(request))
        pictures = any(message.images or message.videos for message in request.messages)
        if dialect.counts == "no" or (pictures and dialect.counts != "all"):
            what = "tokens" if dialect.counts == "no" else "the tokens of images"
            raise RemoteError(
                f"This server ({dialect.title}) does not count {what} without running the model; "
                "read usage.prompt_tokens of an answer, or count with the model's checkpoint."
            )
        wire = to_wire(
            request,
            dialect,
            lambda image: counted_data_uri(image, self._policy),
            answerable=False,
        )
        offered = to_functions(dialect, tools) if dialect.takes_tools else []
        continued = continuation(dialect, request)
        if dialect.counts == "template":
            return self._asked(link, counted_by_template(link.transport, wire, offered, continued))
        return self._asked(link, counted(link.transport, wire, offered, continued))

    def stats(self) -> dict[str, Any]:
        link = self._link
        if link is None or link.process != os.getpid():
            return {"running": 0, "waiting": 0}
        begun = [exchange.begun for exchange in tuple(link.running) if not exchange.ended]
        return {
            "running": sum(begun),
            "waiting": len(begun) - sum(begun),
            "retries": link.transport.retries,
            "dialect": None if self._dialect is None else self._dialect.name,
            **{name: link.counts[name] for name in _COUNTED},
        }

    def close(self) -> None:
        with self._lock:
            self._closed = True
            link, self._link = self._link, None
            leave, self._leave = self._leave, None
        if link is not None:
            self._end(link)
        if leave is not None:
            leave()

    @staticmethod
    def _end(link: _Link) -> None:
        for exchange, stop in tuple(link.running.items()):
            exchange.fail(EngineClosedError("The backend was closed while this answer came."))
            stop()

    def _linked(self) -> _Link:
        with self._lock:
            if self._closed:
                raise EngineClosedError("This backend was closed; llavakit.load gives a fresh one.")
            if self._link is None or self._link.process != os.getpid():
                transport = Transport(self.config)
                self._link = link = _Link(join(transport.close), transport)
                self._leave = weakref.finalize(self, _leave, link)
            return self._link

    def _get_dialect(self, link: _Link, deadline: float | None, *, tools: bool) -> Dialect:
        if self._dialect is None:
            self._dialect = self._once(link, "kind", detect, deadline)
        if self._settled or not tools:
            return self._dialect
        kind = self._dialect
        try:
            found = self._once(link, "tools", lambda transport: settled(kind, transport), deadline)
        except LlavaKitError:
            return kind.with_tools_in_prompt()  # where any model reads them; asked again next time
        with self._lock:
            if not self._settled:
                self._dialect, self._settled = found, True
        return self._dialect

    def _once(
        self,
        link: _Link,
        name: str,
        question: Callable[[Transport], Coroutine[Any, Any, Dialect]],
        deadline: float | None,
    ) -> Dialect:
        """Ask once for all who wait for it; a failure is theirs, not the next one's."""
        with self._lock:
            asked = link.asked.get(name)
            if asked is None or _failed(asked):
                asked = link.loop.begin(_patient(question(link.transport)))
                link.asked[name] = asked
        return link.loop.result(asked, deadline)

    def _context_length(self) -> int:
        link, asked = self._linked(), self.config.context_length
        try:
            models = self._asked(link, served(link.transport))
        except RemoteError as error:
            if error.status in (None, 401, 403):
                raise
            models = []  # it has no such list, or cannot make it
        reported = _limit(models, self.config.model)
        if reported is None and any(model.owner == "llamacpp" for model in models):
            reported = self._asked(link, context_of_llamacpp(link.transport))
        if reported is None and asked is None:
            with _within(None):
                dialect = self._get_dialect(link, None, tools=False)
            if dialect.name == "ollama":
                reported = self._asked(link, context_of_ollama(link.transport), _LOADING)
        limits = [limit for limit in (asked, reported) if limit is not None]
        if not limits:
            raise RemoteError(
                f"The server at {self.config.address} does not report the context length of "
                f"{self.config.model!r}; give it by context_length=."
            )
        return min(limits)

    @staticmethod
    def _asked(link: _Link, question: Coroutine[Any, Any, T], seconds: float = _PATIENCE) -> T:
        """Waits for a small answer on the caller's thread."""
        with _within(seconds):
            return link.loop.result(link.loop.begin(_patient(question, seconds)))


_COUNTED = ("requests", "failed", "cancelled", "prompt_tokens", "completion_tokens")


def _failed(begun: Future[Any]) -> bool:
    return begun.done() and (begun.cancelled() or begun.exception() is not None)


async def _patient(question: Coroutine[Any, Any, T], seconds: float = _PATIENCE) -> T:
    async with asyncio.timeout(seconds):
        return await question


async def _run(exchange: Exchange, link: _Link) -> None:
    link.counts["requests"] += 1
    try:
        await exchange.run()
    finally:
        link.running.pop(exchange, None)


def _leave(link: _Link) -> None:
    link.loop.leave(link.transport.close)


@contextmanager
def _within(timeout: float | None) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise timed_out(timeout or _PATIENCE) from None


def _json(messages: list[dict[str, Any]]) -> bytes:
    try:
        return json.dumps(messages).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"The messages cannot be written as JSON ({error}).") from error


def _limit(models: Sequence[ServedModel], name: str) -> int | None:
    for model in models:
        if name in (model.id, model.root):
            return model.context_length
    return None
