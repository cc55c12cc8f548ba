"""How large a page may become when it is rendered."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llavakit._checks import check_integer, check_number
from llavakit.sources import SourcePolicy


@dataclass(frozen=True, slots=True)
class PageLimit:
    """Most pixels of a page, and most along one side."""

    pixels: int
    side: int

    def scale(self, width: float, height: float, wanted: float = 1.0) -> float:
        """The factor, at most ``wanted``, at which a size is within the limit, rounded up."""
        # The product may overflow to infinity, so the root is taken of each side.
        area = math.sqrt(self.pixels) / (math.sqrt(width) * math.sqrt(height))
        scale = min(wanted, area, self.side / width, self.side / height)
        while True:
            across, down = math.ceil(width * scale), math.ceil(height * scale)
            if across * down <= self.pixels and max(across, down) <= self.side:
                return scale
            scale *= 0.99


def page_limit(dpi: float, max_pixels: int, policy: SourcePolicy) -> PageLimit:
    """The caps for pages; raises ``ParameterError`` for numbers that make no sense."""
    check_number("dpi", dpi, above=0)
    check_integer("max_pixels", max_pixels, least=1)
    return PageLimit(min(max_pixels, policy.max_pixels), policy.max_side)
