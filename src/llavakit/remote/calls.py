"""Tool calls of a streamed answer, put together from their fragments."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llavakit.prompts.tools import compact_json
from llavakit.remote.checks import CalledText
from llavakit.values import CutCall, ToolCall


@dataclass(slots=True)
class _Growing:
    """A call of which more may come."""

    id: str
    name: str
    arguments: str = ""
    emitted: bool = False

    @property
    def value(self) -> dict[str, Any] | None:
        """The arguments, once they are whole: behind the brace that closes them nothing comes."""
        if not self.arguments.rstrip().endswith("}"):
            return None
        try:
            value = json.loads(self.arguments)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


class CallFragments:
    """Calls put together from their fragments; each is emitted once, when it is complete."""

    def __init__(self) -> None:
        self._calls: list[_Growing] = []
        self._at: dict[int, _Growing] = {}  # by the server's index

    @property
    def count(self) -> int:
        return len(self._calls)

    def push(self, pieces: Sequence[CallFragment]) -> tuple[ToolCall, ...]:
        """Take in pieces; gives the calls that are whole by now."""
        for piece in pieces:
            call = self._at.get(piece.index)
            # Some servers number every call 0 and distinguish them by their ids.
            new = call is None or (piece.id and piece.name and piece.id != call.id)
            if new or call is None:
                identity = piece.id or f"call_{uuid.uuid4().hex[:24]}"
                call = _Growing(identity, piece.name or "")
                self._calls.append(call)
                self._at[piece.index] = call
            call.arguments += piece.arguments
        return self._whole()

    def add(self, calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
        """Take in calls that are whole."""
        for call in calls:
            arguments = compact_json(call.arguments)
            self._calls.append(_Growing(call.id, call.name, arguments, emitted=True))
        return tuple(calls)

    def completed(self, *, cut: bool) -> tuple[ToolCall, ...]:
        """Calls of tools without arguments may come without any; JSON has ``{}`` for that."""
        for call in self._calls[:-1] if cut else self._calls:
            if not call.arguments.strip():
                call.arguments = "{}"
        return self._whole()

    def cut(self) -> tuple[CutCall, ...]:
        """Calls that never became whole."""
        return tuple(CutCall(call.name, call.arguments) for call in self._calls if not call.emitted)

    def all(self, *, cut: bool) -> list[CalledText]:
        """All calls as they were written; without those that the token limit cut, if it did."""
        return [
            CalledText(call.name, call.arguments) for call in self._calls if call.emitted or not cut
        ]

    def _whole(self) -> tuple[ToolCall, ...]:
        whole: list[ToolCall] = []
        for call in self._calls:
            value = None if call.emitted else call.value
            if value is not None:
                call.emitted = True
                whole.append(ToolCall(call.id, call.name, value))
        return tuple(whole)


@dataclass(frozen=True, slots=True)
class CallFragment:
    """A piece of a call, as servers stream them."""

    index: int
    id: str | None
    name: str | None
    arguments: str


def call_fragments(calls: Any) -> tuple[CallFragment, ...]:
    """Read the fragments of calls in one event."""
    return tuple(_fragment(call, number) for number, call in enumerate(calls))


def _fragment(call: Mapping[str, Any], number: int) -> CallFragment:
    function = call.get("function") or {}
    arguments = function.get("arguments") or ""
    if isinstance(arguments, Mapping):
        arguments = compact_json(arguments)
    index = call.get("index")
    return CallFragment(
        number if index is None else int(index),
        call.get("id") or None,
        function.get("name") or None,
        str(arguments),
    )
