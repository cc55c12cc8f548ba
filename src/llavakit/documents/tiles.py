"""Pages cut into tiles, because a vision tower of 336 pixels cannot see small print."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from llavakit._checks import check_integer, checked
from llavakit.errors import ParameterError
from llavakit.images import Picture

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 64
"""Most tiles of a page; each is an image of hundreds of tokens."""

_SHIFT = 0.08  # of a tile's side: how far a cut may move to go between two lines
_GRID = re.compile(r"(\d{1,2})x(\d{1,2})")
_GOOD_SIDE = 672  # pixels: twice what LLaVA-1.5's tower sees


@dataclass(frozen=True, slots=True)
class Tiles:
    """Into how many tiles a page is cut.

    Attributes:
        columns, rows: the grid; 0 and 0 takes as many as give tiles of about 672 pixels a side.
    """

    columns: int = 0
    rows: int = 0

    def __post_init__(self) -> None:
        check_integer("columns", self.columns)
        check_integer("rows", self.rows)
        if (self.columns, self.rows) == (0, 0):
            return
        if self.columns < 1 or self.rows < 1 or self.columns * self.rows > MOST:
            raise ParameterError(
                f"{self.columns}x{self.rows} are no tiles; a page is cut into 1 to {MOST}."
            )

    @classmethod
    @checked
    def parse(cls, text: str) -> Tiles:
        """Reads ``"2x3"`` (columns x rows) or ``"auto"``.

        Raises:
            ParameterError: it is neither.
        """
        if text == "auto":
            return cls()
        match = _GRID.fullmatch(text)
        if match is None or "0" in match.groups():
            raise ParameterError(f"tiles is {text[:40]!r}; write columns x rows as 2x3, or auto.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.columns}x{self.rows}" if self.columns else "auto"

    @checked
    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Columns and rows for a page of ``size`` (width, height) in pixels."""
        width, height = size
        if self.columns:
            return min(self.columns, width), min(self.rows, height)
        columns, rows = (max(1, round(side / _GOOD_SIDE)) for side in size)
        while columns * rows > MOST:
            columns, rows = max(1, columns * 3 // 4), max(1, rows * 3 // 4)
        return columns, rows

    @checked
    def cut(self, page: Picture) -> list[Picture]:
        """The tiles, row by row from the top left.

        They do not overlap. A cut moves by up to 8% of a tile to where the page is emptiest,
        so that it goes between lines and columns of print and not through them.
        """
        import numpy as np

        columns, rows = self.grid(page.size)
        if columns * rows == 1:
            return [page]
        grey = np.asarray(page.rgb.convert("L"), dtype=np.float32)
        tops = _cuts(grey.std(axis=1), rows)
        tiles = []
        for top, bottom in pairwise(tops):
            lefts = _cuts(grey[top:bottom].std(axis=0), columns)
            for left, right in pairwise(lefts):
                tiles.append(Picture(page.rgb.crop((left, top, right, bottom))))
        return tiles


def _cuts(ink: NDArray[Any], parts: int) -> list[int]:
    """Where to cut a side into parts, its ends included, given how much is printed there."""
    length = len(ink)
    shift = int(length / parts * _SHIFT)
    cuts = [0]
    for part in range(1, parts):
        middle = length * part // parts
        near = range(middle - shift, middle + shift + 1)
        # What is printed on both sides of the cut counts.
        cuts.append(min(near, key=lambda at: (ink[at - 1] + ink[at], abs(at - middle))))
    return [*cuts, length]
