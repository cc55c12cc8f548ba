"""Pages that are pixels already: the pages of a TIFF, the images of a HEIC, or one image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llavakit.errors import DocumentError
from llavakit.images.metered import ReadBudget
from llavakit.images.tiff import read_directories
from llavakit.images.tiff_frames import load_directory, open_directory

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from llavakit.documents.limits import PageLimit
    from llavakit.documents.text_layer import TextLayer
    from llavakit.sources import SourcePolicy


class ImageReader:
    """A document of images, each of which is a page; most have one."""

    spent = ""

    def __init__(self, images: Sequence[Callable[[], PILImage.Image]], limit: PageLimit) -> None:
        self._images = images
        self._limit = limit

    def count(self) -> int:
        return len(self._images)

    def page(self, number: int) -> tuple[PILImage.Image, TextLayer | None] | None:
        if number > len(self._images):
            return None
        return _fitted(self._images[number - 1](), self._limit), None

    def attachments(self) -> list[str]:
        return []

    def attachment(self, index: int) -> bytes:
        raise DocumentError("It has no attachments.")

    def close(self) -> None:
        pass


class FrameReader:
    """The pages of a TIFF, decoded one at a time, each under budgets of its own.

    Where the chain of its pages breaks off, the page that it would go on with is the last one,
    and cannot be read.
    """

    def __init__(self, data: bytes, name: str, limit: PageLimit, policy: SourcePolicy) -> None:
        found = read_directories(data)
        self._data = data
        self._name = name
        self._limit = limit
        self._policy = policy
        self._pages = found.pages
        self._broken = found.broken
        self._budget = ReadBudget.of_all_images(data)

    @property
    def spent(self) -> str:
        """Why no more pages are read; "" while they are."""
        return "all its pages together have too many tiny parts" if self._budget.is_spent else ""

    def count(self) -> int:
        return len(self._pages) + bool(self._broken)

    def page(self, number: int) -> tuple[PILImage.Image, TextLayer | None] | None:
        if number > self.count():
            return None
        if number > len(self._pages):
            raise DocumentError(
                f"Page {number} of {self._name}, and what may follow, cannot be found: the list of "
                f"pages breaks off ({self._broken}); send the whole file, or save it again."
            )
        directory = self._pages[number - 1]
        with open_directory(self._data, directory, self._policy, self._budget) as image:
            rgb = load_directory(image, directory)
        return _fitted(rgb, self._limit, directory.stretch), None

    def attachments(self) -> list[str]:
        return []

    def attachment(self, index: int) -> bytes:
        raise DocumentError("It has no attachments.")

    def close(self) -> None:
        pass


def _fitted(rgb: PILImage.Image, limit: PageLimit, stretch: float = 1.0) -> PILImage.Image:
    """The image within the limit and with square pixels.

    Args:
        rgb: its pixels.
        limit: most pixels.
        stretch: pixels across an inch for each pixel down an inch. The coarser side is enlarged,
            so that nothing is lost; what is within half a percent of 1 is a matter of rounding.
    """
    from PIL import Image as PILImage

    width, height = map(float, rgb.size)
    if abs(stretch - 1) > 0.005:
        width, height = (width, height * stretch) if stretch > 1 else (width / stretch, height)
    scale = limit.scale(width, height)
    size = (max(1, math.ceil(width * scale)), max(1, math.ceil(height * scale)))
    if size == rgb.size:
        return rgb
    return rgb.resize(size, PILImage.Resampling.LANCZOS, reducing_gap=3.0)
