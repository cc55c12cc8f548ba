"""Server-sent events out of the bytes of a response.

The format is https://html.spec.whatwg.org/multipage/server-sent-events.html. One thing is
read more kindly: an event that the end of the stream cuts off before its blank line counts,
because some servers leave that line out behind the last one.
"""

from __future__ import annotations

from collections.abc import Iterator

from llavakit.remote.lines import LineReader

_LINE = 64
"""Characters that a line counts for beside its own: short ones take more memory than they say."""


class EventReader(LineReader):
    """Takes bytes as they come, gives the ``data`` of each event that is complete."""

    def __init__(self) -> None:
        super().__init__()
        self._data: list[str] = []  # lines of the event that is not yet complete

    def _take(self, line: str) -> Iterator[str]:
        if not line:
            if self._data:
                yield "\n".join(self._data)
            self._data, self._size = [], 0
            return
        field, _, value = line.partition(":")
        if field == "data":
            value = value.removeprefix(" ")
            self._data.append(value)
            self._grow(len(value) + _LINE)
