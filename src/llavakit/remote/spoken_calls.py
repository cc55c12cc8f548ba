"""Tool calls out of the text of a model that nothing held to their notation.

The local engine's reader (``prompts.tool_calls``) may rely on constrained decoding. Here a
call is told once it is whole and has been read; what is no call is an error.
"""

from __future__ import annotations

import json
import uuid

from llavakit.errors import RemoteError
from llavakit.prompts.tool_calls import Pieces
from llavakit.prompts.tools import CALL_END, CALL_START, compact_json
from llavakit.values import ToolCallChunk


class SpokenCalls:
    """Splits an answer into free text and whole calls.

    Args:
        one: nothing is read behind the first call.

    Attributes:
        count: calls that were completed.
    """

    def __init__(self, *, one: bool) -> None:
        self.count = 0
        self._one = one
        self._buffer = ""
        self._in_call = False

    @property
    def full(self) -> bool:
        """Whether no more calls are wanted."""
        return self._one and self.count > 0

    def push(self, text: str) -> Pieces:
        """Take in more of the answer; gives what is certain by now."""
        self._buffer += text
        told: list[str] = []
        calls: list[ToolCallChunk] = []
        while not self.full and self._step(told, calls):
            pass
        return Pieces("".join(told), tuple(calls))

    def flush(self, *, cut: bool) -> Pieces:
        """The rest, when nothing more comes.

        Args:
            cut: the token limit ended the answer; an unfinished call is then told as text.

        Raises:
            RemoteError: the answer ended inside a call.
        """
        rest, self._buffer = self._buffer, ""
        if self.full:
            return Pieces()
        if not self._in_call:
            return Pieces(rest)
        if cut:
            return Pieces(CALL_START + rest)
        return Pieces(calls=(self._read(rest),))

    def _step(self, told: list[str], calls: list[ToolCallChunk]) -> bool:
        mark = CALL_END if self._in_call else CALL_START
        before, found, behind = self._buffer.partition(mark)
        if found:
            self._buffer = behind
            if self._in_call:
                calls.append(self._read(before))
            else:
                told.append(before)
            self._in_call = not self._in_call
            return True
        if not self._in_call:
            safe = len(self._buffer) - _begun(self._buffer, mark)
            told.append(self._buffer[:safe])
            self._buffer = self._buffer[safe:]
        return False

    def _read(self, text: str) -> ToolCallChunk:
        try:
            call = json.loads(text)
            name, arguments = call["name"], call.get("arguments") or {}
            valid = isinstance(name, str) and isinstance(arguments, dict)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            valid = False
        if not valid:
            raise RemoteError(
                f"The model began a tool call and wrote {text.strip()[:120]!r}, which is none; "
                "this server does not hold it to the notation. Ask again, or use one that does "
                "(llavakit serve, vLLM)."
            )
        self.count += 1
        identity = f"call_{uuid.uuid4().hex[:24]}"
        return ToolCallChunk(self.count - 1, identity, name, compact_json(arguments))


def _begun(text: str, mark: str) -> int:
    """Length of the longest end of ``text`` that begins ``mark``."""
    lengths = range(min(len(text), len(mark) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(mark[:length])), 0)
