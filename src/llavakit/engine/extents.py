"""Which stretches of the KV arena are free or owned. Integers only; no torch, no requests.

The arena is a row of ``total`` token slots. Every owner holds one contiguous extent: a
running sequence (for its prompt and the longest answer it may give), or the computed tokens
of a finished one, kept because another sequence may begin with the same tokens.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple


class Extent(NamedTuple):
    """Slots ``start`` to ``start + length`` (exclusive); made by the hundred for every step."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The first slot behind it."""
        return self.start + self.length


class ExtentMap:
    """Free stretches of the arena, merged and sorted by their start.

    ``take`` and ``give`` keep one invariant: free stretches never touch or overlap, and what was
    taken was free. ``give`` raises AssertionError if it is broken: that is a bug here.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free: list[Extent] = [Extent(0, total)] if total else []

    @property
    def free_tokens(self) -> int:
        """The number of slots without an owner."""
        return sum(extent.length for extent in self._free)

    @property
    def free(self) -> tuple[Extent, ...]:
        """The free stretches, sorted."""
        return tuple(self._free)

    def take(self, length: int) -> Extent | None:
        """Take the tightest free stretch that holds ``length`` slots; None if none does."""
        fitting = [extent for extent in self._free if extent.length >= length]
        if not fitting:
            return None
        chosen = min(fitting, key=lambda extent: extent.length)
        self._free.remove(chosen)
        if chosen.length > length:
            insort(self._free, Extent(chosen.start + length, chosen.length - length))
        return Extent(chosen.start, length)

    def room_behind(self, extent: Extent) -> int:
        """Free slots that follow the extent directly."""
        index = bisect_left(self._free, Extent(extent.end, 0))
        if index < len(self._free) and self._free[index].start == extent.end:
            return self._free[index].length
        return 0

    def grow(self, extent: Extent, length: int) -> Extent:
        """Lengthen an extent into the free slots behind it; check ``room_behind`` first."""
        more = length - extent.length
        assert 0 <= more <= self.room_behind(extent), "an extent grows only into free slots"
        if more:
            index = bisect_left(self._free, Extent(extent.end, 0))
            gap = self._free.pop(index)
            if gap.length > more:
                insort(self._free, Extent(gap.start + more, gap.length - more))
        return Extent(extent.start, length)

    def give(self, extent: Extent) -> None:
        """Free an extent; neighbours are merged."""
        if not extent.length:
            return
        index = bisect_left(self._free, extent)
        before = self._free[index - 1] if index else None
        after = self._free[index] if index < len(self._free) else None
        assert before is None or before.end <= extent.start, "slots were freed twice"
        assert after is None or extent.end <= after.start, "slots were freed twice"
        start, end = extent.start, extent.end
        if after is not None and after.start == end:
            end = after.end
            del self._free[index]
        if before is not None and before.end == start:
            start = before.start
            del self._free[index - 1]
        insort(self._free, Extent(start, end - start))

    def shrink(self, extent: Extent, length: int) -> Extent:
        """Cut an extent to its first ``length`` slots; the rest becomes free."""
        self.give(Extent(extent.start + length, extent.length - length))
        return Extent(extent.start, length)
