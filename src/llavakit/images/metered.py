"""Bytes that a decoder may read only so often: hostile files cost a bounded time."""

from __future__ import annotations

import io

from llavakit.errors import ImageDecodeError


class ReadBudget:
    """How often a file may be read, and how many bytes of it, all in all.

    Pillow reads headers in Python loops, at worst byte by byte: 60 MB of comments would
    keep it busy for minutes. Honest files need a read for each few kilobytes. And the tags of
    a TIFF may all name the whole file as theirs; honest files are read a few times over.

    Args:
        reads: most reads.
        size: most bytes.
    """

    def __init__(self, reads: int, size: int) -> None:
        self._reads = reads
        self._size = size

    @classmethod
    def of_image(cls, data: bytes) -> ReadBudget:
        """What one image of a file takes at most."""
        return cls(50_000 + len(data) // 500, (1 << 20) + 4 * len(data))

    @classmethod
    def of_all_images(cls, data: bytes) -> ReadBudget:
        """What all images of a file take at most.

        An honest file has at least eight bytes of tables for each strip that is read; each of
        its images reads its own bytes, and never those of another one.
        """
        return cls(1_000_000 + len(data) // 4, (64 << 20) + 8 * len(data))

    @property
    def is_spent(self) -> bool:
        """Whether nothing more may be read."""
        return self._reads < 0 or self._size < 0

    def take(self, size: int) -> None:
        """Count a read of so many bytes.

        Raises:
            ImageDecodeError: it was one too many.
        """
        self._reads -= 1
        self._size -= size
        if self._reads < 0:
            raise ImageDecodeError("The image consists of too many tiny parts; save it again.")
        if self._size < 0:
            raise ImageDecodeError("The image's parts lie in one another; save it again.")


class Metered(io.BytesIO):
    """Bytes of which an image may read so much (see :class:`ReadBudget`)."""

    def __init__(self, data: bytes, *shared: ReadBudget) -> None:
        super().__init__(data)
        self._budgets = (ReadBudget.of_image(data), *shared)

    def read(self, size: int | None = -1, /) -> bytes:
        read = super().read(size)
        for budget in self._budgets:
            budget.take(len(read))
        return read
