"""Bytes of one image to 8-bit RGB pixels.

The only place where Pillow meets bytes from outside. The format is detected from the bytes,
one decoder of the allow-list is called, the size in the header is checked before any pixel
is decoded, and whatever Pillow raises is translated here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from llavakit.errors import ImageDecodeError, ImageTooLargeError
from llavakit.images.convert import orientation, to_rgb, turns_aside
from llavakit.images.guards import check_size, decoding
from llavakit.images.metered import Metered
from llavakit.images.tiff import read_directories
from llavakit.images.tiff_frames import load_directory, open_directory
from llavakit.sources.formats import ALLOWED, refusal, sniff
from llavakit.sources.policy import SourcePolicy

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from PIL.ImageFile import ImageFile

_MAX_SEGMENTS = 10_000
_MAX_SCANS = 100  # encoders write about ten; each costs a pass over all blocks,
_MAX_SCANNED = 2_000_000_000  # so their product with the pixels is bounded, too
_MAX_EXIF = 64  # Pillow joins them one by one, copying all before each time
_WEIGHTS = {"JPEG2000": 16, "AVIF": 8, "HEIC": 8}
"""Decoders that are slow, or keep all other threads waiting (Pillow 12.3; measured beside JPEG)."""
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
    if kind == "TIFF":
        first = read_directories(data).pages[0]
        with open_directory(data, first, policy) as image:
            return load_directory(image, first)
    if kind == "HEIC":
        return heif_images(data, policy)[0]()
    with decoding(kind), _open(kind, data, policy) as image:
        return to_rgb(image)


def peek_size(data: bytes, policy: SourcePolicy) -> tuple[int, int]:
    """Width and height that :func:`decode` would find, before it is turned upright.

    Only the header is read, so that a caller can judge what decoding will cost.

    Raises:
        ImageDecodeError, ImageTooLargeError, UnsupportedImageError: as :func:`decode`.
    """
    kind = _kind(data)
    if kind == "TIFF":
        with open_directory(data, read_directories(data).pages[0], policy) as image:
            return image.size
    if kind == "HEIC":
        from llavakit.images.heif import open_heif

        with decoding(kind):
            return open_heif(data)[0][0]
    with decoding(kind), _open(kind, data, policy) as image:
        return image.size


def peek_cost(data: bytes, policy: SourcePolicy) -> int:
    """What :func:`decode` will cost, in pixels of a format that lets other threads run.

    Raises:
        ImageDecodeError, ImageTooLargeError, UnsupportedImageError: as :func:`decode`.
    """
    width, height = peek_size(data, policy)
    return _WEIGHTS.get(sniff(data), 1) * width * height


def _kind(data: bytes) -> str:
    kind = sniff(data)
    if kind not in ALLOWED:
        raise refusal(kind, len(data))
    return kind


def heif_images(data: bytes, policy: SourcePolicy) -> list[Callable[[], PILImage.Image]]:
    """What decodes each image of a HEIC file: upright, as PIL images in mode RGB.

    Raises:
        MissingDependencyError: HEIC needs ``llavakit[heif]``.
        ImageError: damaged. Decoding one raises it too, and refuses one that is too large.
    """
    from llavakit.images.heif import open_heif

    def decoder(size: tuple[int, int], decode: Callable[[], PILImage.Image]) -> PILImage.Image:
        check_size(size, policy)
        with decoding("HEIC"):
            image = decode()
            image.info.clear()  # libheif turned it upright, whatever its EXIF says
            return to_rgb(image)

    with decoding("HEIC"):
        return [partial(decoder, size, decode) for size, decode in open_heif(data)]


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
    elif kind == "JPEG2000":
        if not features.check("jpg_2000"):
            raise refusal("JPEG2000", 1)
        from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile as Base  # type: ignore[assignment]
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
