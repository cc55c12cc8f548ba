"""How many tokens an image of an ``anyres`` model takes, and where they come from.

The arithmetic is the original's (``llava/mm_utils.py``, ``unpad_image`` in
``llava/model/llava_arch.py``). transformers rounds to seven digits before it cuts, which gives
a few sizes, such as 47x188, one row more or less.
"""

from __future__ import annotations

from dataclasses import dataclass

from llavakit.model.layout import Size, best_grid
from llavakit.model.original.config import Merge


@dataclass(frozen=True, slots=True)
class AnyresFeatures:
    """One view of the whole image and a grid of tiles; counts them (an ``ImageLayout``).

    Attributes:
        grids: allowed grids as (width, height) in pixels, in the checkpoint's order.
        view: side of one view in pixels.
        side: patches along one side of a view.
        merge: how the views are put together.
        extra: features of a view beside its patches (1 with the CLS feature).
    """

    grids: tuple[tuple[int, int], ...]
    view: int
    side: int
    merge: Merge
    extra: int = 0

    def grid(self, size: Size) -> tuple[int, int]:
        """Columns and rows of tiles for an image of this (width, height)."""
        height, width = best_grid(size, [(height, width) for width, height in self.grids])
        return width // self.view, height // self.view

    def tokens(self, size: Size, pictures: int = 1) -> int:
        columns, rows = self.grid(size)
        each = self.side * self.side + self.extra
        if self.merge != "spatial_unpad":
            return (1 + columns * rows) * each
        top, left = self.margins(size)
        high, wide = rows * self.side - 2 * top, columns * self.side - 2 * left
        return each + high * (wide + 1)  # a newline feature ends each row

    def margins(self, size: Size) -> tuple[int, int]:
        """Rows and columns of features at each edge that show nothing but padding."""
        width, height = size
        columns, rows = (self.side * count for count in self.grid(size))
        if width / height > columns / rows:
            return (rows - int(height * (columns / width))) // 2, 0
        return 0, (columns - int(width * (rows / height))) // 2
