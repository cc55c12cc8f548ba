"""Reading tool calls out of an answer while it is being written (see ``prompts.tools``)."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, replace

from llavakit.prompts.tools import CALL_END, CALL_START
from llavakit.values import ToolCallChunk

_HEAD = '{"name":'
_MIDDLE = ',"arguments":'


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a piece of text turned out to be."""

    text: str = ""
    calls: tuple[ToolCallChunk, ...] = ()


class ToolCallReader:
    """Splits an answer into free text and pieces of calls.

    Relies on the notation that constrained decoding enforces: compact JSON, ``name`` first.
    The arguments' JSON is passed on as it comes, without the brace that closes the call.

    Attributes:
        count: calls that were completed.
    """

    def __init__(self) -> None:
        self.count = 0
        self._buffer = ""
        self._in_call = False
        self._named = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, text: str) -> Pieces:
        """Take in more of the answer; gives what is certain by now."""
        self._buffer += text
        told: list[str] = []
        # One piece of each call: frameworks put pieces together by their index, but only those
        # of different chunks.
        calls: dict[int, ToolCallChunk] = {}
        while self._step(told, calls):
            pass
        return Pieces("".join(told), tuple(calls.values()))

    def flush(self) -> Pieces:
        """The rest, when nothing more comes; a call that was cut stays as it was told."""
        rest, self._buffer = self._buffer, ""
        return Pieces("" if self._in_call else rest)

    def _step(self, told: list[str], calls: dict[int, ToolCallChunk]) -> bool:
        """Make one step of progress; False when more text is needed."""
        if not self._in_call:
            return self._read_text(told)
        if not self._named:
            return self._read_name(calls)
        return self._read_arguments(calls)

    def _read_text(self, told: list[str]) -> bool:
        place = self._buffer.find(CALL_START)
        if place >= 0:
            told.append(self._buffer[:place])
            self._buffer = self._buffer[place + len(CALL_START) :]
            self._in_call, self._named = True, False
            return True
        safe = len(self._buffer)
        for length in range(min(safe, len(CALL_START) - 1), 0, -1):
            if self._buffer.endswith(CALL_START[:length]):
                safe -= length
                break
        told.append(self._buffer[:safe])
        self._buffer = self._buffer[safe:]
        return False

    def _read_name(self, calls: dict[int, ToolCallChunk]) -> bool:
        place = self._buffer.find(_MIDDLE)
        if place < 0:
            return False
        name = json.loads(self._buffer[len(_HEAD) : place])
        self._buffer = self._buffer[place + len(_MIDDLE) :]
        self._named = True
        self._depth, self._in_string, self._escaped = 0, False, False
        call_id = f"call_{uuid.uuid4().hex[:24]}"
        calls[self.count] = ToolCallChunk(self.count, id=call_id, name=name)
        return True

    def _read_arguments(self, calls: dict[int, ToolCallChunk]) -> bool:
        end = self._end_of_arguments()
        if end is None:
            if self._buffer:
                self._tell(calls, self._buffer)
                self._buffer = ""
            return False
        if end:
            self._tell(calls, self._buffer[:end])
            self._buffer = self._buffer[end:]
            self._depth = -1  # complete: only the call's own end is left
        closing = "}" + CALL_END
        if len(self._buffer) < len(closing):
            return False
        self._buffer = self._buffer[len(closing) :]
        self._in_call = False
        self.count += 1
        return True

    def _tell(self, calls: dict[int, ToolCallChunk], arguments: str) -> None:
        piece = calls.get(self.count, ToolCallChunk(self.count))
        calls[self.count] = replace(piece, arguments=piece.arguments + arguments)

    def _end_of_arguments(self) -> int | None:
        """Index behind the closing brace of the arguments; 0 if they are complete already."""
        if self._depth < 0:
            return 0
        for index, character in enumerate(self._buffer):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return index + 1
        return None
