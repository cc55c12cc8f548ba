"""The one entry point for pixels: whatever a caller calls an image becomes a :class:`Picture`.

Where bytes come from is :mod:`llavakit.sources`' concern. What a model does with the pixels
is not known here.
"""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.errors import UnsupportedImageError
from llavakit.sources import (
    DEFAULT_POLICY,
    SourcePolicy,
    is_address,
    read_file_object,
    read_source,
)

if TYPE_CHECKING:
    from PIL import Image as PILImage


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Picture:
    """Canonical pixels, 8-bit RGB, with their digest.

    Equal pixels of equal size are an equal image, however they were delivered. Pickles
    and copies; a copy is the image itself.

    Attributes:
        rgb: a PIL image in mode RGB. It must not be changed: the digest, caches and other
            requests rely on its pixels. Copy it first to draw on it.
        digest: sha256 in hex over mode, size and pixels.
    """

    rgb: PILImage.Image
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if getattr(self.rgb, "mode", None) != "RGB":
            raise UnsupportedImageError(
                "A Picture holds a PIL image of mode RGB; use open_picture."
            )
        width, height = self.rgb.size
        digest = sha256(f"RGB {width}x{height}\n".encode())
        digest.update(self.rgb.tobytes())
        object.__setattr__(self, "digest", digest.hexdigest())

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.size

    def data_uri(self) -> str:
        """The image as a ``data:image/png;base64,`` URI: the same pixels, losslessly."""
        from base64 import b64encode

        png = io.BytesIO()
        # Level 1 is three times as fast as the default for about a tenth more bytes.
        self.rgb.save(png, "PNG", compress_level=1)
        return "data:image/png;base64," + b64encode(png.getvalue()).decode("ascii")

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Picture) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        width, height = self.size
        return f"<Picture {width}x{height} {self.digest[:12]}>"

    def __copy__(self) -> Picture:
        return self

    def __deepcopy__(self, memo: object) -> Picture:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_pixels, (self.size, self.rgb.tobytes())


def _from_pixels(size: tuple[int, int], pixels: bytes) -> Picture:
    from PIL import Image as PILImage

    return Picture(PILImage.frombytes("RGB", size, pixels))


def open_picture(
    source: Any, policy: SourcePolicy = DEFAULT_POLICY, *, from_url_field: bool = False
) -> Picture:
    """Opens one image.

    Args:
        source: a path (``str`` or ``Path``); an http(s), ``file:`` or ``data:`` URL; bare
            base64; bytes; a binary file object (read from its beginning where it can be
            rewound); a PIL image of any mode (its current frame); a numpy array (see
            below); a torch tensor; a :class:`Picture`.
        policy: what may be opened, and the caps on bytes and pixels.
        from_url_field: the source stood in a URL field of a message, where strings are
            never read as paths (see :func:`llavakit.sources.read_source`).

    Returns:
        The first frame, upright (EXIF orientation applied), transparency laid on white,
        deeper than 8 bits scaled. ICC profiles are ignored, as LLaVA's own preprocessing
        ignores them.

    Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4: RGBA), of uint8, uint16, bool or
    floats from 0 to 1; (C, H, W) is understood where it cannot be anything else. Tensors
    are (C, H, W) where both fit, as torch's custom is.

    Raises:
        ImageError: it is no image that can be used (damaged, too large, unsupported).
        SourceError: it cannot be reached, or the policy forbids it.
    """
    from llavakit.images.decode import decode
    from llavakit.images.guards import check_size

    source = hold(source, policy.max_bytes)
    if isinstance(source, Picture):
        check_size(source.size, policy)
        return source
    return Picture(decode(read_source(source, policy, from_url_field=from_url_field), policy))


def picture_size(
    source: Any, policy: SourcePolicy = DEFAULT_POLICY, *, from_url_field: bool = False
) -> tuple[int, int]:
    """Return the width and height in pixels of what :func:`open_picture` would open.

    Of an image at an http(s) URL only the beginning is fetched where that suffices, guarded and
    bounded as the whole would be; its size is kept for five minutes.

    Raises:
        ImageError, SourceError: as :func:`open_picture`.
    """
    source = hold(source, policy.max_bytes)
    if isinstance(source, str) and is_address(source):
        from llavakit.images.sizes import remote_size

        return remote_size(source.strip(), policy)
    return open_picture(source, policy, from_url_field=from_url_field).size


def peek_size(data: bytes, policy: SourcePolicy = DEFAULT_POLICY) -> tuple[int, int]:
    """Width and height of a file's image, read from its header; not yet turned upright.

    Raises:
        ImageError: as :func:`open_picture`, as far as the header shows it.
    """
    from llavakit.images.decode import peek_size

    return peek_size(data, policy)


def peek_cost(data: bytes, policy: SourcePolicy = DEFAULT_POLICY) -> int:
    """Return what decoding a file will cost: its pixels, times more for slow formats.

    Raises:
        ImageError: as :func:`open_picture`, as far as the header shows it.
    """
    from llavakit.images.decode import peek_cost

    return peek_cost(data, policy)


def hold(source: Any, max_bytes: int = DEFAULT_POLICY.max_bytes) -> str | Path | bytes | Picture:
    """What :class:`llavakit.Image` keeps of a source: something that cannot change later.

    Strings and paths stay as they are (nothing is opened), file objects and buffers become
    bytes, PIL images, arrays and tensors become images at once.

    Raises:
        UnsupportedImageError: nothing that an image can be made from.
        SourceFetchError: a file object that cannot be read.
        ImageTooLargeError: a file object of more than ``max_bytes``.
    """
    if isinstance(source, (str, bytes, Picture, Path)):
        return source
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, os.PathLike):
        return Path(os.fsdecode(source))
    if _is_a(source, "PIL.Image", "Image"):
        return _held_pil(source)
    if _is_a(source, "numpy", "ndarray"):
        from llavakit.images.convert import array_to_rgb

        return Picture(array_to_rgb(source))
    if _is_a(source, "torch", "Tensor"):
        from llavakit.images.convert import array_to_rgb

        return Picture(array_to_rgb(_tensor_array(source), channels_first=True))
    if callable(getattr(source, "read", None)):
        return read_file_object(source, max_bytes)
    hint = "; pass one image at a time" if isinstance(source, (list, tuple)) else ""
    raise UnsupportedImageError(
        f"An image cannot be made from {type(source).__name__}{hint}; pass a path, a URL, "
        "bytes, a PIL image or an array."
    )


def _is_a(value: object, module: str, name: str) -> bool:
    """``isinstance`` without an import: who holds such an object has imported its module."""
    loaded = sys.modules.get(module)
    kind = getattr(loaded, name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _held_pil(image: PILImage.Image) -> Picture:
    from llavakit.images.convert import to_rgb
    from llavakit.images.guards import decoding

    with decoding("PIL image"):
        return Picture(to_rgb(image))


def _tensor_array(tensor: Any) -> Any:
    tensor = tensor.detach().cpu()
    try:
        return tensor.numpy()
    except TypeError:  # bfloat16 and float8 have no counterpart in numpy
        return tensor.float().numpy()
