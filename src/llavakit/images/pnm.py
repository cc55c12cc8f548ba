"""Binary PNM (P4, P5, P6) of any depth, without a loop over pixels.

Pillow reads a depth other than 8 bits (P6) or 8 and 16 bits (P5) number by number in Python, which
takes seconds for a few megapixels and keeps other threads waiting. One look-up in a table does it
here. http://netpbm.sourceforge.net/doc/ppm.html
"""

from __future__ import annotations

from typing import Any, cast


def pnm_decoder() -> Any:
    """Return the class that opens binary PNM."""
    from PIL.PpmImagePlugin import PpmImageFile

    class PnmImageFile(PpmImageFile):
        """As Pillow's, but rescales numbers of unusual depth in one go."""

        def load(self) -> Any:
            if self.tile and self.tile[0].codec_name == "ppm":
                (tile,), self.tile = self.tile, []
                assert self.fp is not None
                self.fp.seek(tile.offset)
                _, largest = cast("tuple[str, int]", tile.args)
                self._im = _rescaled(self, self.fp.read(), largest).im
            return super().load()

    return PnmImageFile


def _rescaled(image: Any, raw: bytes, largest: int) -> Any:
    """The pixels of numbers from 0 to ``largest``, as 8 bits or (mode I) as 16 bits."""
    import numpy as np
    from PIL import Image as PILImage

    bands = len(image.getbands())
    kind = np.dtype("u1" if largest < 256 else ">u2")
    count = image.width * image.height * bands
    if len(raw) < count * kind.itemsize:
        raise ValueError("not enough image data")
    top, target = (65535, np.dtype("i4")) if image.mode == "I" else (255, np.dtype("u1"))
    values = np.arange(256 if largest < 256 else 65536)
    # Numbers above the largest one are white, as Pillow has it.
    table = np.minimum(top, np.rint(values / largest * top)).astype(target)
    pixels = table[np.frombuffer(raw, kind, count)]
    return PILImage.frombytes(image.mode, image.size, pixels.tobytes())
