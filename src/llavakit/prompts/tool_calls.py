"""Reading tool calls out of an answer while it is being written (see ``prompts.tools``).

A call is reported once it is complete: a framework that sees a fragment of one may complete it, and
run a tool with a number that the model did not write.
"""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from dataclasses import dataclass

from llavakit.prompts.tools import CALL_END, CALL_START
from llavakit.values import CutCall, ToolCall

_BEGUN = re.compile(
    r'\s*\{\s*"name"\s*:\s*"(?P<name>(?:[^"\\]|\\.)*)'
    r'(?:"\s*(?:,\s*"arguments"\s*:\s*(?P<arguments>.*))?)?',
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a fragment of the answer was found to be: text, complete calls, cut calls."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    cut: tuple[CutCall, ...] = ()


class NotACallError(ValueError):
    """The text between the marks of a call is not a call; happens where nothing enforces it."""


class ToolCallReader:
    """Splits an answer into free text and complete calls.

    Args:
        one: nothing is read behind the first call.

    Attributes:
        count: calls that were completed.
    """

    def __init__(self, *, one: bool = False) -> None:
        self.count = 0
        self._one = one
        self._buffer = ""
        self._in_call = False

    @property
    def full(self) -> bool:
        """Whether no more calls are wanted."""
        return self._one and self.count > 0

    def push(self, text: str) -> Pieces:
        """Take in more of the answer; return what is certain by now.

        Raises:
            NotACallError: the text between the marks is not a call.
        """
        self._buffer += text
        texts: list[str] = []
        calls: list[ToolCall] = []
        while not self.full and self._step(texts, calls):
            pass
        return Pieces("".join(texts), tuple(calls))

    def flush(self, *, cut: bool) -> Pieces:
        """Return the rest, when nothing more comes.

        Args:
            cut: the answer was ended from outside (a limit, a stop string); an incomplete
                call is then a cut one.

        Raises:
            NotACallError: it was not ended from outside, and ended inside a call.
        """
        rest, self._buffer = self._buffer, ""
        if self.full:
            return Pieces()
        if not self._in_call:
            return Pieces(rest)
        if not cut:
            return Pieces(calls=(self._read(rest),))
        rest = rest[: len(rest) - _begun(rest, CALL_END)]
        begun = _cut_call(rest)
        if begun.arguments:
            # The arguments may be complete, and only the notation around them not.
            for ending in ("", "}"):
                with contextlib.suppress(NotACallError):
                    return Pieces(calls=(self._read(rest + ending),))
        return Pieces(cut=(begun,))

    def _step(self, texts: list[str], calls: list[ToolCall]) -> bool:
        """Make one step of progress; False when more text is needed."""
        mark = CALL_END if self._in_call else CALL_START
        before, found, behind = self._parted(mark)
        if found:
            self._buffer = behind
            if self._in_call:
                calls.append(self._read(before))
            else:
                texts.append(before)
            self._in_call = not self._in_call
            return True
        if not self._in_call:
            safe = len(self._buffer) - _begun(self._buffer, mark)
            texts.append(self._buffer[:safe])
            self._buffer = self._buffer[safe:]
        return False

    def _parted(self, mark: str) -> tuple[str, str, str]:
        """The buffer around a mark; one inside a string of the call's JSON does not count."""
        if not self._in_call:
            return self._buffer.partition(mark)
        place = self._buffer.find(mark)
        while place >= 0 and _in_string(self._buffer[:place]):
            place = self._buffer.find(mark, place + 1)
        if place < 0:
            return self._buffer, "", ""
        return self._buffer[:place], mark, self._buffer[place + len(mark) :]

    def _read(self, text: str) -> ToolCall:
        try:
            call = json.loads(text)
            name, arguments = call["name"], call.get("arguments") or {}
            valid = isinstance(name, str) and isinstance(arguments, dict)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            valid = False
        if not valid:
            raise NotACallError(text)
        self.count += 1
        return ToolCall(f"call_{uuid.uuid4().hex[:24]}", name, arguments)


def _cut_call(text: str) -> CutCall:
    begun = _BEGUN.match(text)
    if begun is None:
        return CutCall("")
    return CutCall(begun["name"], begun["arguments"] or "")


def _in_string(text: str) -> bool:
    """Whether a string of JSON is open at the end of ``text``."""
    quotes = re.sub(r"\\.", "", text, flags=re.DOTALL).count('"')
    return quotes % 2 == 1


def _begun(text: str, mark: str) -> int:
    """Length of the longest end of ``text`` that begins ``mark``."""
    lengths = range(min(len(text), len(mark) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(mark[:length])), 0)
