"""The pixels of one image of a TIFF, opened at its own directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from llavakit.errors import ImageDecodeError, UnsupportedImageError
from llavakit.images.bounds import tiff_decoder
from llavakit.images.convert import to_rgb
from llavakit.images.guards import check_size, decoding
from llavakit.images.metered import Metered, ReadBudget
from llavakit.images.tiff import Directory, doubtful_codec, pixel_kind, undecoded_codec
from llavakit.sources.policy import SourcePolicy

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from PIL.ImageFile import ImageFile


class OneDirectory(Metered):
    """A TIFF whose first directory is the one at an offset: Pillow begins there."""

    def __init__(self, data: bytes, offset: int, *shared: ReadBudget) -> None:
        super().__init__(data, *shared)
        order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
        big = data[2:4] in (b"+\0", b"\0+")
        place, width = (8, 8) if big else (4, 4)
        self._head = data[:place] + offset.to_bytes(width, order)

    def read(self, size: int | None = -1, /) -> bytes:
        at = self.tell()
        read = super().read(size)
        if at >= len(self._head):
            return read
        patched = self._head[at : at + len(read)]
        return patched + read[len(patched) :]


def open_directory(
    data: bytes, directory: Directory, policy: SourcePolicy, *shared: ReadBudget
) -> ImageFile:
    """Open one image of a TIFF, under budgets of its own and those that it shares with others.

    Raises:
        UnsupportedImageError: its pixels are of a kind that is not decoded here.
        ImageError: damaged, or too large.
    """
    codec = undecoded_codec(directory)
    if codec is not None:
        raise UnsupportedImageError(
            f"The TIFF's pixels are compressed with {codec}, which is not decoded here; save it "
            "with LZW, Deflate, JPEG or fax compression."
        )
    if data[:4] == b"MM\0+":
        raise UnsupportedImageError(
            "This is a BigTIFF in big-endian order, which Pillow does not read; save it again."
        )
    with decoding("TIFF"):
        try:
            image: ImageFile = tiff_decoder()(OneDirectory(data, directory.offset, *shared), "")
        except SyntaxError as error:  # Pillow's word for a mode that it has no name for
            if not {256, 257} <= directory.tags.keys():
                raise
            raise UnsupportedImageError(
                f"The TIFF's pixels are of a kind that is not decoded here "
                f"({pixel_kind(directory)}); save it as grey or RGB of 8 bits."
            ) from error
        check_size(image.size, policy)
        return image


def load_directory(image: ImageFile, directory: Directory) -> PILImage.Image:
    """The pixels of an image of a TIFF, upright, as a PIL image in mode RGB.

    Raises:
        UnsupportedImageError: it cannot be decoded, and not every libtiff can.
        ImageError: damaged.
    """
    try:
        with decoding("TIFF"):
            return to_rgb(image)
    except ImageDecodeError as error:
        codec = doubtful_codec(directory)
        if codec is None or "decoder error" not in str(error):
            raise
        raise UnsupportedImageError(
            f"The TIFF's pixels are compressed with {codec} and cannot be decoded: this Pillow "
            "does not know it, or they are damaged; save it with LZW, Deflate, JPEG or fax "
            "compression."
        ) from error
