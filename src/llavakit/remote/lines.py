"""Lines out of the bytes of a response, wherever they were cut, and bounded."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterator

from llavakit.errors import RemoteError

MAX_EVENT = 8 << 20
"""Most characters of one event; a chunk of an answer has some hundred."""


class LineReader(ABC):
    """Takes bytes as they come, gives the events that their lines complete."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line: list[str] = []  # pieces of the line that is not yet complete
        self._size = 0
        self._after_cr = False

    def push(self, data: bytes) -> Iterator[str]:
        """The events that these bytes complete.

        Raises:
            RemoteError: an event without end.
        """
        yield from self._read(self._decoder.decode(data))

    def flush(self) -> Iterator[str]:
        """The event that the end of the stream completes, if there is one."""
        yield from self._read(self._decoder.decode(b"", final=True))
        self._after_cr = False
        yield from self._read("\n\n" if self._line else "\n")

    @abstractmethod
    def _take(self, line: str) -> Iterator[str]:
        """The events that a whole line completes."""

    def _read(self, text: str) -> Iterator[str]:
        if self._after_cr and text:
            self._after_cr = False
            text = text.removeprefix("\n")
        if text.endswith("\r"):
            self._after_cr = True
        # Not splitlines: it splits at characters that JSON may hold.
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines:
            self._size -= sum(map(len, self._line))  # whole, it is counted as what is kept of it
            line = "".join([*self._line, line])
            self._line = []
            yield from self._take(line)
        if rest:
            self._line.append(rest)
            self._grow(len(rest))

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > MAX_EVENT:
            raise RemoteError("The server sends an event without end; is base_url right?")
