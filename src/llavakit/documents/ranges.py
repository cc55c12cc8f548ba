"""Ranges of pages as people write them: ``1-3,7``, ``5-``, ``-2``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from llavakit._checks import checked
from llavakit.errors import ParameterError

_FRAGMENT = re.compile(r"(.+)#pages?=([\d,\s-]+)", re.IGNORECASE | re.DOTALL)
_LONGEST_NAME = 4096
_PART = re.compile(r"(\d{1,9})?\s*(-)?\s*(\d{1,9})?")
_MOST_PARTS = 1000
_ENDLESS = 2**62


@checked
@dataclass(frozen=True, slots=True)
class PageRange:
    """Some pages of a document, none twice.

    Attributes:
        parts: (first, last) of each part, in the order in which they are read; a last of
            None is the document's end.
    """

    parts: tuple[tuple[int, int | None], ...]

    @classmethod
    @checked
    def parse(cls, text: str) -> PageRange:
        """Reads ``"1-3,7"``; ``"5-"`` goes to the end, ``"-2"`` comes from the beginning.

        Raises:
            ParameterError: it is no such text.
        """
        parts = tuple(_part(part.strip(), text) for part in text.split(",", _MOST_PARTS))
        return cls(parts)

    @checked
    def within(self, last: int) -> PageRange:
        """Return the pages that a document of ``last`` pages has, in order, no part in another.

        A part that reaches over the end is cut there. One that begins behind the end gives
        its first number, so that it is reported.
        """
        found: list[tuple[int, int | None]] = []
        for index, (begin, end) in enumerate(self.parts):
            end = begin if begin > last else min(end or last, last)
            free = [(begin, end)]
            for known in self.parts[:index]:
                free = [rest for one in free for rest in _without(one, known)]
            found += free
        return PageRange(tuple(found))

    @checked
    def numbers(self, last: int | None) -> Iterator[int]:
        """The numbers of the pages.

        Args:
            last: how many pages there are; None if it is not known: open parts never end then.
        """
        for begin, end in self.within(_ENDLESS if last is None else last).parts:
            yield from range(begin, (end or _ENDLESS) + 1)

    @checked
    def behind(self, count: int) -> PageRange:
        """Return what is left of a range without open ends after its first ``count`` pages."""
        left = []
        for begin, end in self.parts:
            assert end is not None
            length = end - begin + 1
            if count < length:
                left.append((begin + count, end))
            count = max(0, count - length)
        return PageRange(tuple(left))

    def __len__(self) -> int:
        return sum((end or _ENDLESS) - begin + 1 for begin, end in self.parts)

    def __bool__(self) -> bool:
        return bool(self.parts)

    def __str__(self) -> str:
        return ",".join(map(_written, self.parts))


def named_range(name: str) -> tuple[str, PageRange | None]:
    """A document's name and the pages that it names: ``scan.pdf#page=2``, ``scan.pdf#pages=1-3,7``.

    A file that is called so is that file.

    Raises:
        ParameterError: what it names is no range of pages.
    """
    match = _FRAGMENT.fullmatch(name) if len(name) < _LONGEST_NAME else None
    if match is None or _exists(name):
        return name, None
    return match[1], PageRange.parse(match[2])


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):  # characters that no path has
        return False


def _without(part: tuple[int, int], taken: tuple[int, int | None]) -> Iterator[tuple[int, int]]:
    """What is left of a part without the pages of another one."""
    (begin, end), first, last = part, taken[0], taken[1] or _ENDLESS
    if begin <= min(end, first - 1):
        yield begin, min(end, first - 1)
    if max(begin, last + 1) <= end:
        yield max(begin, last + 1), end


def _written(part: tuple[int, int | None]) -> str:
    begin, end = part
    return str(begin) if begin == end else f"{begin}-{end or ''}"


def _part(part: str, whole: str) -> tuple[int, int | None]:
    match = _PART.fullmatch(part)
    if match is None or not (match[1] or match[3]) or (match[1] and match[3] and not match[2]):
        raise ParameterError(f"{whole[:80]!r} is no range of pages; write one such as 1-3,7 or 5-.")
    begin = int(match[1] or 1)
    end = int(match[3]) if match[3] else None if match[2] else begin
    if begin < 1 or (end is not None and end < begin):
        raise ParameterError(
            f"{part!r} is no range of pages; they are numbered from 1, and the smaller comes first."
        )
    return begin, end
