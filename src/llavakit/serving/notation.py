"""What the service asks of a notation: how one API writes its requests and its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from llavakit.serving.chat_schema import ChatRequest
from llavakit.serving.errors import Refusal
from llavakit.serving.sources import Place, in_messages
from llavakit.values import Chunk, Completion, Usage


class Writer(Protocol):
    """Writes one answer, whole or as events.

    Attributes:
        id: of the answer.
    """

    id: str

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return the body of a response."""

    def begin(self) -> Iterable[bytes]:
        """Return the events before any chunk."""

    def chunk(self, index: int, chunk: Chunk) -> Iterable[bytes]:
        """Return the events of a chunk of one choice."""

    def end(self, usages: Sequence[Usage]) -> Iterable[bytes]:
        """Return the events behind all chunks, when every choice has its end."""

    def failed(self, reason: Refusal) -> Iterable[bytes]:
        """Return the last events of an answer that was not completed."""


@dataclass(frozen=True, slots=True)
class Served:
    """The model that answers.

    Attributes:
        model: its name for clients.
        fingerprint: its revision.
        prompt_tokens: of the request; 0 where they were not counted.
    """

    model: str
    fingerprint: str | None
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """A request in the notation of chat completions, whatever it was written in.

    Attributes:
        bodies: one for each prompt; most notations have one.
        stream: whether it is answered in events.
        writer: makes the writer of its answer.
        place: names messages in errors.
        counts: whether each event has the usage so far.
    """

    bodies: tuple[ChatRequest, ...]
    stream: bool
    writer: Callable[[Served], Writer]
    place: Place = field(default=in_messages)
    counts: bool = False


Parse: TypeAlias = Callable[[bytes], Asked]
"""Reads a body.

Raises:
    Refusal: it is not what it should be.
"""
