"""One request to a server: sent, streamed into its channel, ended exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from llavakit.errors import (
    ContextLengthError,
    EngineClosedError,
    LlavaKitError,
    ModelNotFoundError,
    RemoteError,
    RequestTimeoutError,
)
from llavakit.remote.answer import RemoteAnswer
from llavakit.remote.notations import OPENAI, Notation
from llavakit.remote.server import served
from llavakit.remote.transport import Transport, read
from llavakit.streams import Channel
from llavakit.values import Chunk

_LEAST_ROOM = 64 << 20
_ROOM_PER_TOKEN = 16 << 10  # with twenty alternatives it takes some two kilobytes


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request as one kind of server is asked it.

    Attributes:
        notation: how it is written.
        fields: of a chat completion, beside its messages.
        messages: JSON, in the notation.
        answer: makes chunks of the events.
    """

    notation: Notation
    fields: Mapping[str, Any]
    messages: bytes
    answer: RemoteAnswer


class Exchange:
    """One request on its way.

    Args:
        transport: to the server.
        question: what is asked.
        otherwise: how else it is asked, when the server refused it with these words; None where
            there is no other way. It may take its time.
        channel: where they go.
        counts: of the backend.
        timeout: seconds for the whole, as errors state it; None if there is none.
        deadline: on the clock of ``time.monotonic``.

    Attributes:
        begun: whether something of the answer has come.
    """

    def __init__(
        self,
        transport: Transport,
        question: PreparedRequest,
        otherwise: Callable[[str], PreparedRequest | None],
        channel: Channel,
        counts: Counter[str],
        timeout: float | None,
        deadline: float | None,
    ) -> None:
        self.begun = False
        self._transport = transport
        self._take(question)
        self._otherwise = otherwise
        self._channel = channel
        self._counts = counts
        self._timeout = timeout
        self._deadline = deadline

    def _take(self, question: PreparedRequest) -> None:
        self._notation = question.notation
        self._fields = dict(question.fields)
        self._messages = question.messages
        self._answer = question.answer

    @property
    def ended(self) -> bool:
        """Whether the end of the answer was emitted."""
        return self._channel.ended

    def fail(self, error: BaseException) -> None:
        """End the answer with an error."""
        if not self.ended:
            self._counts["failed"] += 1
        self._channel.fail(error)

    async def run(self) -> None:
        """Everything; ends the channel, whatever happens."""
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._converse()
        except TimeoutError as error:
            self.fail(error if isinstance(error, LlavaKitError) else timed_out(self._timeout))
        except asyncio.CancelledError:
            self._channel.fail(EngineClosedError("The connection to the server was closed."))
            raise
        except LlavaKitError as error:
            self.fail(error)
        except Exception as error:  # a bug of ours; the caller must not wait for ever
            self.fail(RemoteError(f"The answer could not be read ({error!r})."))

    async def _converse(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            response = await self._opened(stack)
            self.begun = True
            kind = response.headers.get("content-type", "")
            try:
                whole = kind.startswith("application/json") and self._notation is OPENAI
                if whole:  # it does not stream, although asked to
                    self._put(self._answer.push(await read(response, self._room)))
                    self._answer.complete = True
                    self._put(self._answer.end())
                else:
                    await self._stream(response)
            except httpx.ReadTimeout:
                raise self._transport.silent() from None
            except httpx.HTTPError as error:
                raise RemoteError(
                    f"The connection to the server at {self._transport.config.address} broke in "
                    f"the middle of the answer ({type(error).__name__}). Ask again."
                ) from None
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                if isinstance(error, LlavaKitError):
                    raise
                raise RemoteError(
                    f"The server at {self._transport.config.address} sent what is no event of a "
                    f"chat completion ({type(error).__name__}); is base_url right?"
                ) from error

    async def _stream(self, response: httpx.Response) -> None:
        events, size = self._notation.reader(), 0
        pieces = response.aiter_bytes()
        async for piece in pieces:
            size += len(piece)
            if size > self._room:
                raise RemoteError("The server sends an answer without end; it was given up.")
            for event in events.push(piece):
                self._put(self._answer.push(event))
            if self._answer.complete:
                break
        else:
            for event in events.flush():
                self._put(self._answer.push(event))
        self._put(self._answer.end())
        # What is left is the end of the body; read to it, the connection serves again.
        with contextlib.suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(0.2):
                await anext(pieces, None)

    @property
    def _room(self) -> int:
        return max(_LEAST_ROOM, _ROOM_PER_TOKEN * int(self._fields["max_tokens"]))

    def _put(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            if chunk.usage is not None:
                self._counts["prompt_tokens"] += chunk.usage.prompt_tokens
                self._counts["completion_tokens"] += chunk.usage.completion_tokens
            self._channel.put(chunk)

    async def _opened(self, stack: contextlib.AsyncExitStack) -> httpx.Response:
        """The response; where the server names what it cannot take, asked again without."""
        for _ in range(3):
            try:
                return await self._open(stack)
            except ContextLengthError as error:
                room = error.context_length - error.prompt_tokens
                if not 0 < room < self._fields["max_tokens"]:
                    raise
                # As here: the answer gets what the context has left. Where the refusal does not
                # say how long the prompt is, the server may still know, asked for less.
                self._fields["max_tokens"] = room
            except ModelNotFoundError as error:
                raise await self._explained(error) from None
            except RemoteError as error:
                if error.status not in (400, 422, 500) or not await self._changed(str(error)):
                    raise
        return await self._open(stack)

    async def _changed(self, refusal: str) -> bool:
        """Whether there is another way to ask, which is then taken."""
        if "stream_options" in refusal and self._fields.pop("stream_options", None) is not None:
            return True
        other = await asyncio.to_thread(self._otherwise, refusal)
        if other is not None:
            self._take(other)
        return other is not None

    async def _open(self, stack: contextlib.AsyncExitStack) -> httpx.Response:
        config, notation = self._transport.config, self._notation
        fields = notation.fields(self._fields, config)
        head = json.dumps({"model": config.model, **fields}).encode()
        content = head[:-1] + b', "messages": ' + self._messages + b"}"
        opened = self._transport.opened("POST", notation.path, content, fields=self._fields)
        return await stack.enter_async_context(opened)

    async def _explained(self, error: ModelNotFoundError) -> LlavaKitError:
        """Add the names of the models that the server has, where it lists them."""
        config = self._transport.config
        try:
            names = [model.id for model in await served(self._transport)]
        except LlavaKitError:
            return error
        if config.model in names:
            return RemoteError(
                f"The server at {config.address} has the model and answers nothing at "
                f"{self._notation.path} ({error})",
                status=404,
            )
        known = ", ".join(names[:20]) or "none"
        return ModelNotFoundError(f"{str(error).rstrip('.')}; its models: {known}.")


def timed_out(timeout: float | None) -> RequestTimeoutError:
    """The error for an answer that was not whole in time."""
    return RequestTimeoutError(
        f"The answer was not whole within {timeout:g} seconds; the request was cancelled."
        if timeout is not None
        else "The server was silent for too long; the request was cancelled."
    )
