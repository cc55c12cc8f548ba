"""Pages that are pixels already: the frames of a TIFF, or one image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llavakit.errors import DocumentError, ImageError
from llavakit.images.convert import to_rgb
from llavakit.images.decode import Metered, check_size, decoding

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from llavakit.documents.limits import PageLimit
    from llavakit.sources import SourcePolicy


class PictureReader:
    """A document of one page."""

    def __init__(self, rgb: PILImage.Image, limit: PageLimit) -> None:
        self._rgb = rgb
        self._limit = limit

    def count(self) -> int:
        return 1

    def page(self, number: int) -> tuple[PILImage.Image, str | None] | None:
        return (_shrunk(self._rgb, self._limit), None) if number == 1 else None

    def close(self) -> None:
        pass


class FrameReader:
    """The frames of a TIFF, decoded one at a time."""

    def __init__(self, data: bytes, name: str, limit: PageLimit, policy: SourcePolicy) -> None:
        from PIL.TiffImagePlugin import TiffImageFile

        self._limit = limit
        self._policy = policy
        self._name = name
        with decoding("TIFF"):
            self._tiff = TiffImageFile(Metered(data), "")

    def count(self) -> int:
        try:
            with decoding("TIFF"):
                return self._tiff.n_frames
        except ImageError as error:
            raise DocumentError(f"{self._name} cannot be read: {error}") from error

    def page(self, number: int) -> tuple[PILImage.Image, str | None] | None:
        with decoding("TIFF"):
            try:
                self._tiff.seek(number - 1)
            except EOFError:
                return None
            check_size(self._tiff.size, self._policy)
            return _shrunk(to_rgb(self._tiff), self._limit), None

    def close(self) -> None:
        self._tiff.close()


def _shrunk(rgb: PILImage.Image, limit: PageLimit) -> PILImage.Image:
    from PIL import Image as PILImage

    width, height = rgb.size
    scale = limit.scale(width, height)
    if scale >= 1:
        return rgb
    size = (math.ceil(width * scale), math.ceil(height * scale))
    return rgb.resize(size, PILImage.Resampling.LANCZOS, reducing_gap=3.0)
