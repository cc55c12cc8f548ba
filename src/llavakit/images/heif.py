"""HEIC and HEIF images, by the optional package pillow-heif (libheif).

Phones write them, bursts of several images among them; each is a page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llavakit.errors import MissingDependencyError

if TYPE_CHECKING:
    from PIL import Image as PILImage


def open_heif(data: bytes) -> list[tuple[tuple[int, int], Callable[[], PILImage.Image]]]:
    """The images of a file: the size of each, and what decodes it, upright.

    Raises:
        MissingDependencyError: pillow-heif is not installed.
    """
    try:
        import pillow_heif
    except ImportError as error:
        raise MissingDependencyError(
            'HEIC and HEIF images need pillow-heif; pip install "llavakit[heif]", or convert them '
            "to JPEG or PNG."
        ) from error
    images: Any = pillow_heif.open_heif(data, convert_hdr_to_8bit=True)
    # The primary image first: it is what the file shows.
    order = sorted(range(len(images)), key=lambda at: at != images.primary_index)
    return [(images[at].size, images[at].to_pillow) for at in order]
