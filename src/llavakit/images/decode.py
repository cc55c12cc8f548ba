"""Bytes of one image to 8-bit RGB pixels.

The only place where Pillow meets bytes from outside. The format is told from the bytes,
one decoder of the allow-list is called, the size in the header is checked before any pixel
is decoded, and whatever Pillow raises is translated here.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from llavakit.errors import ImageDecodeError, ImageTooLargeError, LlavaKitError
from llavakit.images.convert import orientation, to_rgb, turns_aside
from llavakit.sources.formats import ALLOWED, refusal, sniff
from llavakit.sources.policy import SourcePolicy

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from PIL.ImageFile import ImageFile

_MAX_SEGMENTS = 10_000
_MAX_SCANS = 100  # encoders write about ten; each costs a pass over all blocks,
_MAX_SCANNED = 2_000_000_000  # so their product with the pixels is bounded, too
_MAX_EXIF = 64  # Pillow joins them one by one, copying all before each time
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # one that has a length, or the end


def decode(data: bytes, policy: SourcePolicy) -> PILImage.Image:
    """The first frame of an image, upright, as a PIL image in mode RGB.

    EXIF orientation is applied, transparency is laid on white, ICC profiles are ignored
    (as LLaVA's own preprocessing does).

    Raises:
        ImageDecodeError: truncated, damaged, or not an image.
        ImageTooLargeError: over ``max_pixels`` or ``max_side`` of the policy.
        UnsupportedImageError: a format that is not on the allow-list.
    """
    kind = _kind(data)
    with decoding(kind), _open(kind, data, policy) as image:
        return to_rgb(image)


def peek_size(data: bytes, policy: SourcePolicy) -> tuple[int, int]:
    """Width and height that :func:`decode` would find, before it is turned upright.

    Only the header is read, so that a caller can judge what decoding will cost.

    Raises:
        ImageDecodeError, ImageTooLargeError, UnsupportedImageError: as :func:`decode`.
    """
    kind = _kind(data)
    with decoding(kind), _open(kind, data, policy) as image:
        return image.size


def _kind(data: bytes) -> str:
    kind = sniff(data)
    if kind not in ALLOWED:
        raise refusal(kind, len(data))
    return kind


def header_size(data: bytes, policy: SourcePolicy) -> tuple[int, int] | None:
    """Width and height of the upright image, of a file's beginning; None if that needs more.

    TIFF, WebP and AVIF may say behind the pixels how they are to be turned: they always do.

    Raises:
        ImageTooLargeError: over ``max_pixels`` or ``max_side`` of the policy.
    """
    kind = sniff(data)
    if kind not in ("PNG", "JPEG", "GIF", "BMP"):
        return None
    try:
        with decoding(kind), _open(kind, data, policy) as image:
            lies = turns_aside(orientation(image.info))
            return (image.height, image.width) if lies else image.size
    except ImageDecodeError:  # its header goes on
        return None


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """The border at which Pillow's errors, some ten types of them, become ours."""
    try:
        yield
    except LlavaKitError:
        raise
    except MemoryError as error:
        raise ImageTooLargeError(
            "The image needs more memory than there is; shrink it or lower max_pixels.",
            public="The image needs more memory than there is; shrink it.",
        ) from error
    except Exception as error:
        from PIL import Image as PILImage

        bombs = (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning)
        if isinstance(error, bombs):
            raise ImageTooLargeError(
                f"The {what} has more pixels than Pillow allows; shrink it."
            ) from error
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ImageDecodeError(
            f"The {what} is truncated or damaged ({reason}); send the whole file."
        ) from error


def check_size(size: tuple[int, int], policy: SourcePolicy) -> None:
    """Refuses an image of ``size`` (width, height) that is empty or over the caps."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageDecodeError("The image has no pixels: its width or height is 0.")
    if width * height > policy.max_pixels:
        raise ImageTooLargeError(
            f"The image has {width} x {height} pixels, above the {policy.max_pixels:,} of "
            "SourcePolicy.max_pixels; shrink it or raise the cap.",
            public=f"The image has {width} x {height} pixels, more than the {policy.max_pixels:,} "
            "that are taken here; shrink it.",
        )
    if max(width, height) > policy.max_side:
        raise ImageTooLargeError(
            f"The image has {width} x {height} pixels, a side above the "
            f"{policy.max_side:,} of SourcePolicy.max_side; cut it into pieces.",
            public=f"The image has {width} x {height} pixels, and a side of at most "
            f"{policy.max_side:,} is taken here; cut it into pieces.",
        )


def _open(kind: str, data: bytes, policy: SourcePolicy) -> ImageFile:
    """Opens the header with the one decoder for ``kind``.

    Not ``PIL.Image.open``: that warns about large images, and warnings can be silenced
    only for the whole process, other threads included; :func:`check_size` judges instead.
    """
    scans = _count_scans(data) if kind == "JPEG" else 0
    if kind == "WEBP" and (canvas := _webp_canvas(data)):
        check_size(canvas, policy)  # older Pillows take a canvas that is too large for a damage
    image: ImageFile = _decoder(kind)(Metered(data), "")
    check_size(image.size, policy)
    if scans * image.width * image.height > _MAX_SCANNED:
        raise ImageTooLargeError("The JPEG has too many scans for its size; save it again.")
    return image


@cache
def _decoder(kind: str) -> Any:
    from PIL import Image as PILImage
    from PIL import features

    if kind == "PNG":
        from PIL.PngImagePlugin import PngImageFile as Base
    elif kind == "JPEG":
        from PIL.JpegImagePlugin import JpegImageFile as Base  # type: ignore[assignment]
    elif kind == "WEBP":
        from PIL.WebPImagePlugin import WebPImageFile as Base  # type: ignore[assignment]
    elif kind == "GIF":
        from PIL.GifImagePlugin import GifImageFile as Base  # type: ignore[assignment]
    elif kind == "BMP":
        from PIL.BmpImagePlugin import BmpImageFile as Base  # type: ignore[assignment]
    elif kind == "PPM":
        from llavakit.images.pnm import pnm_decoder

        Base = pnm_decoder()  # type: ignore[misc]
    elif kind == "TIFF":
        from llavakit.images.bounds import tiff_decoder

        return tiff_decoder()  # turns itself upright while loading, and needs its tags for it
    else:
        if not features.check("avif"):
            raise refusal("AVIF", 1)
        from PIL.AvifImagePlugin import AvifImageFile as Base  # type: ignore[assignment]

    class WithoutExif(Base):
        """Metadata are read by :func:`llavakit.images.convert.orientation` alone: Pillow's EXIF
        reader warns on damaged tags, which would make the outcome depend on the filters.
        """

        def getexif(self) -> PILImage.Exif:
            return PILImage.Exif()

    return WithoutExif


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Width and height of an extended WebP, as its header says; None for a simple one."""
    if data[12:16] != b"VP8X" or len(data) < 30:
        return None
    width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    return width, height


def _count_scans(data: bytes) -> int:
    """The scans of a JPEG; refuses one of so many segments that reading it takes minutes."""
    position, scans, exifs = 2, 0, 0
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, position)  # over rubbish and pixels, like libjpeg
        if found is None or data[found.end() - 1] == 0xD9:
            return scans
        position = found.end()
        scans += data[position - 1] == 0xDA
        exifs += data.startswith(b"Exif\0", position + 2)
        if scans > _MAX_SCANS or exifs > _MAX_EXIF:
            break
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
    raise ImageDecodeError("The JPEG has too many segments or scans; save it again.")


class Metered(io.BytesIO):
    """Bytes that may be read only so often, and so many of them.

    Pillow reads headers in Python loops, at worst byte by byte: 60 MB of comments would
    keep it busy for minutes. Honest files need a read for each few kilobytes. And the tags of
    a TIFF may all name the whole file as theirs; honest files are read a few times over.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = 50_000 + len(data) // 500
        self._bytes_left = (1 << 20) + 4 * len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        read = super().read(size)
        self._left -= 1
        self._bytes_left -= len(read)
        if self._left < 0:
            raise ImageDecodeError("The image consists of too many tiny parts; save it again.")
        if self._bytes_left < 0:
            raise ImageDecodeError("The image's parts lie in one another; save it again.")
        return read
