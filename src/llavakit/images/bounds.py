"""TIFFs whose decoding takes long although they are small.

Pillow decodes formats in C, some tens of megapixels a second, and with other threads running. What
it does in Python keeps the whole process waiting: its steps over a header are counted where bytes
are read (``metered.Metered``), and the parts of a TIFF here. A million of them took 10 seconds.
"""

from __future__ import annotations

from typing import Any

from llavakit.errors import ImageTooLargeError

MAX_PARTS = 50_000
"""Half a second. The most of an honest file is a strip for each of its rows (32,768)."""
_OFFSETS = (273, 324)  # of strips, of tiles


def tiff_decoder() -> Any:
    """Return the class that opens TIFF."""
    from PIL.TiffImagePlugin import TiffImageFile

    class BoundedTiffImageFile(TiffImageFile):
        """As Pillow's, but refuses very many parts before it makes an object of each."""

        def _setup(self) -> None:
            for tag in _OFFSETS:
                offsets = self.tag_v2.get(tag, ())
                parts = len(offsets) if isinstance(offsets, tuple) else 1
                if parts > MAX_PARTS:
                    raise ImageTooLargeError(
                        f"The TIFF consists of {parts:,} parts, above {MAX_PARTS:,}; save it again."
                    )
            super()._setup()

    return BoundedTiffImageFile
