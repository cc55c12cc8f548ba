"""In which words a kind of server is asked for an answer, and how the answer's bytes are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llavakit.remote import ollama
from llavakit.remote.address import RemoteConfig
from llavakit.remote.dialects import Dialect
from llavakit.remote.lines import LineReader
from llavakit.remote.sse import EventReader


@dataclass(frozen=True, slots=True)
class Notation:
    """How one chat is written.

    Attributes:
        path: behind the server's address.
        fields: makes the body beside model and messages of the fields of a chat completion.
        messages: makes its messages of those of a chat completion.
        reader: makes events of an answer's bytes, each the JSON of a chunk or ``[DONE]``.
    """

    path: str
    fields: Callable[[Mapping[str, Any], RemoteConfig], dict[str, Any]]
    messages: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
    reader: Callable[[], LineReader]


OPENAI = Notation(
    "/v1/chat/completions",
    lambda fields, config: dict(fields),
    lambda messages: messages,
    EventReader,
)
OLLAMA = Notation(ollama.PATH, ollama.to_fields, ollama.to_messages, ollama.AnswerReader)


def notation_of(dialect: Dialect) -> Notation:
    """Return the notation that a kind of server is asked in."""
    return OLLAMA if dialect.name == "ollama" else OPENAI
