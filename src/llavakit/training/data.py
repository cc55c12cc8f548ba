"""Conversations to learn from: the original's records and chat messages, as turns.

Two forms are read, and distinguished by their keys:

- the original LLaVA's, ``{"id", "image"?, "conversations": [{"from": "human", "value": ...}]}``,
  where ``<image>`` in a value stands for an image;
- chat messages, ``{"id"?, "images"?, "messages": [{"role": "user", "content": ...}]}``, where
  content is a string with ``<image>`` or a list of parts.

A ``system`` beside either is the conversation's system text. What else would change the meaning
of a record is refused (:mod:`llavakit.training.record_keys`). What is wrong with a record has a
name (:data:`KINDS`) and is raised as a :class:`FaultyRecord`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavakit.prompts.conversation import Turn, TurnRole
from llavakit.prompts.styles import IMAGE
from llavakit.training.record_keys import (
    IMAGE_KEYS,
    KINDS,
    SYSTEM_KEYS,
    FaultyRecord,
    is_absent,
    refuse_unsupported,
    refuse_unsupported_turn,
)
from llavakit.values import Image, Part, Text

__all__ = ["ACCEPTABLE", "KINDS", "FaultyRecord", "Record", "conversation_of"]

ACCEPTABLE = ("assistant-first", "duplicate-id", "over-length")
"""Faults that one may decide to live with, as the original did: a first turn of the assistant's
is left out, an id is only a name, and what is too long is cut."""

_ROLES: Mapping[str, TurnRole] = {
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True, slots=True)
class Record:
    """What one record says.

    Attributes:
        id: its name, if it has one.
        turns: perhaps the system's; then user and assistant by turns.
    """

    id: str | None
    turns: tuple[Turn, ...]

    @property
    def pictures(self) -> tuple[Image, ...]:
        """Its images in their order, not opened."""
        parts = (part for turn in self.turns for part in turn.parts)
        return tuple(part for part in parts if isinstance(part, Image))

    @property
    def answers(self) -> int:
        """How many turns are the assistant's."""
        return sum(turn.role == "assistant" for turn in self.turns)


def conversation_of(
    record: Any, folder: Path | None = None, *, assistant_first: bool = False
) -> Record:
    """The conversation of a record.

    Args:
        record: what its JSON says, or a row of a data set.
        folder: where relative paths of images begin; None takes them as they are.
        assistant_first: whether the assistant may begin.

    Raises:
        FaultyRecord: no conversation can be made of it.
    """
    if not isinstance(record, Mapping):
        raise FaultyRecord("malformed", f"it is a {type(record).__name__} and not an object")
    refuse_unsupported(record)
    pictures = _pictures(record)
    if "conversations" in record:
        turns = _turns(record["conversations"], "from", "value")
        filled = [_original(turn, pictures, folder) for turn in turns]
    elif "messages" in record:
        turns = _turns(record["messages"], "role", "content")
        filled = [_chat(turn, pictures, folder) for turn in turns]
    else:
        raise FaultyRecord("malformed", 'it has neither "conversations" nor "messages"')
    filled = [*_system(record, filled), *filled]
    left = len(list(pictures))
    if left:
        marks = sum(isinstance(part, Image) for turn in filled for part in turn.parts)
        raise FaultyRecord("image-count", f"it has {marks + left} images and {marks} {IMAGE} marks")
    _check_order(filled, assistant_first)
    name = record.get("id")
    return Record(None if name is None else str(name), tuple(filled))


def _turns(said: Any, who: str, what: str) -> list[tuple[TurnRole, Any]]:
    if not isinstance(said, Sequence) or isinstance(said, str) or not said:
        raise FaultyRecord("malformed", "its conversation is no list of turns")
    turns: list[tuple[TurnRole, Any]] = []
    for number, turn in enumerate(said, 1):
        if not isinstance(turn, Mapping) or who not in turn or what not in turn:
            raise FaultyRecord("malformed", f'turn {number} has not both "{who}" and "{what}"')
        refuse_unsupported_turn(turn, number)
        role = _ROLES.get(turn[who]) if isinstance(turn[who], str) else None
        if role is None:
            known = "human and gpt" if who == "from" else "system, user and assistant"
            raise FaultyRecord(
                "unknown-role", f'turn {number} is of {turn[who]!r}; "{who}" knows {known}'
            )
        turns.append((role, turn[what]))
    return turns


def _system(record: Mapping[str, Any], turns: Sequence[Turn]) -> list[Turn]:
    """The system text that a record names beside its conversation."""
    named = [key for key in SYSTEM_KEYS if record.get(key)]
    if not named:
        return []
    text = record[named[0]]
    if not isinstance(text, str):
        raise FaultyRecord("malformed", f'its "{named[0]}" is a {type(text).__name__} and no text')
    if len(named) > 1 or any(turn.role == "system" for turn in turns):
        raise FaultyRecord("malformed", f'it has a system text beside its "{named[0]}"')
    return [Turn("system", (Text(text),))]


def _pictures(record: Mapping[str, Any]) -> Iterator[Any]:
    named = {key: record[key] for key in IMAGE_KEYS if not is_absent(record.get(key))}
    lists = [list(one) if isinstance(one, (list, tuple)) else [one] for one in named.values()]
    if len(lists) > 1 and any(one != lists[0] for one in lists):
        keys = " and ".join(f'"{key}"' for key in named)
        raise FaultyRecord("malformed", f"it has both {keys}, with other images; leave one out")
    return iter(lists[0] if lists else [])


def _original(said: tuple[TurnRole, Any], pictures: Iterator[Any], folder: Path | None) -> Turn:
    """A turn as the original wrote it: an image among words goes to their beginning.

    The original's own code made one image of several in a turn; here they stay, each where
    it stands.
    """
    role, value = said
    if not isinstance(value, str):
        raise FaultyRecord("malformed", f"a turn's value is a {type(value).__name__} and no text")
    count = value.count(IMAGE)
    if count and role != "user":
        raise FaultyRecord("image-count", f"an {IMAGE} mark stands outside of questions")
    if count == 1:
        rest = value.replace(IMAGE, "").strip()
        words = (Text(rest),) if rest else ()
        return Turn(role, (_next_picture(pictures, folder), *words))
    return Turn(role, _marked(value, pictures, folder))


def _chat(said: tuple[TurnRole, Any], pictures: Iterator[Any], folder: Path | None) -> Turn:
    role, content = said
    parts: list[Part] = []
    if isinstance(content, str):
        parts += _marked(content, pictures, folder)
    elif isinstance(content, Sequence):
        for part in content:
            parts.append(_part(part, pictures, folder))
    else:
        raise FaultyRecord("malformed", f"a message's content is a {type(content).__name__}")
    if role != "user" and any(isinstance(part, Image) for part in parts):
        raise FaultyRecord("image-count", "an image stands outside of questions")
    return Turn(role, tuple(part for part in parts if part != Text("")))


def _marked(text: str, pictures: Iterator[Any], folder: Path | None) -> tuple[Part, ...]:
    """Words and images in their order; line ends around an image are the template's."""
    parts: list[Part] = []
    pieces = text.split(IMAGE)
    for number, piece in enumerate(pieces):
        if number:
            parts.append(_next_picture(pictures, folder))
            piece = piece.removeprefix("\n")
        if piece:
            parts.append(Text(piece))
    return tuple(parts)


def _part(part: Any, pictures: Iterator[Any], folder: Path | None) -> Part:
    if isinstance(part, Mapping):
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            return Text(part["text"])
        if kind == "image":
            own = next((part[k] for k in ("image", "path", "url") if part.get(k)), None)
            return _next_picture(pictures, folder) if own is None else picture_of(own, folder)
        if kind == "image_url":
            url = part.get("image_url")
            return picture_of(url.get("url") if isinstance(url, Mapping) else url, folder)
    raise FaultyRecord("malformed", f"a part of a message is not understood: {str(part)[:80]}")


def _next_picture(pictures: Iterator[Any], folder: Path | None) -> Image:
    missing = object()
    found = next(pictures, missing)
    if found is missing:
        raise FaultyRecord("image-count", f"it has more {IMAGE} marks than images")
    return picture_of(found, folder)


def picture_of(source: Any, folder: Path | None) -> Image:
    """An image of a record: a path, bytes, a data URL, or what a data set decoded.

    Raises:
        FaultyRecord: it is none, or a URL.
    """
    if isinstance(source, Mapping):  # an undecoded image of a data set
        source = source.get("bytes") or source.get("path")
    if isinstance(source, str):
        if source.lower().startswith(("http://", "https://")):
            raise FaultyRecord("missing-image", f"{source} is a URL; download it and name the file")
        if source.startswith("data:"):
            return Image(source)
        return Image((folder or Path()) / source)
    if source is None:
        raise FaultyRecord("missing-image", "an image is null")
    try:
        return Image(source)
    except ValueError as error:
        raise FaultyRecord("unreadable-image", str(error)) from error


def _check_order(turns: Sequence[Turn], assistant_first: bool) -> None:
    spoken = [turn for turn in turns if turn.role != "system"]
    if any(turn.role == "system" for turn in turns[1:]):
        raise FaultyRecord("role-order", "a system text stands behind the first turn")
    if not any(turn.role == "assistant" for turn in spoken):
        raise FaultyRecord("no-answer", "the assistant says nothing in it")
    for number, turn in enumerate(spoken, 1):
        if not any(isinstance(part, Image) or part.text.strip() for part in turn.parts):
            kind = "empty-answer" if turn.role == "assistant" else "empty-question"
            raise FaultyRecord(kind, f"turn {number} is empty")
    if spoken[0].role == "assistant":
        if not assistant_first:
            raise FaultyRecord("assistant-first", "the assistant begins, without a question")
        spoken = spoken[1:]
        if not spoken:
            raise FaultyRecord("no-answer", "the assistant answers no question in it")
    for number, turn in enumerate(spoken):
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected:
            raise FaultyRecord(
                "role-order", f"two turns in a row are of the {turn.role}; they must alternate"
            )
    if spoken[-1].role != "assistant":
        raise FaultyRecord("role-order", "the last question has no answer")
