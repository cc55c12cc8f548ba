"""Pixels of any kind to upright 8-bit RGB: PIL modes, arrays, EXIF orientation, alpha."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from llavakit.errors import UnsupportedImageError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image as PILImage

_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def to_rgb(image: PILImage.Image) -> PILImage.Image:
    """A new PIL image in mode RGB with no metadata; ``image`` keeps its pixels.

    16-bit and float images are scaled, not clipped: 16-bit grey by 257; ``I`` and ``F``
    count as 8-bit when all values lie in 0..255, as 16-bit when in 0..65535 (``F`` as a
    share of white when in 0..1), and otherwise their range is stretched over black to
    white. Not-a-number becomes black. Transparency is laid on white.
    """
    image.load()
    turn = orientation(image.info)
    rgb = _to_rgb(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    elif rgb is image:
        rgb = image.copy()
    rgb.info = {}
    return rgb


def _to_rgb(image: PILImage.Image) -> PILImage.Image:
    mode = image.mode
    if mode.startswith("I;16"):
        return _from_16_bit(image)
    if mode in ("I", "F"):
        return _from_wide(image)
    if mode == "LAB":
        return _from_lab(image)
    if mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    palette_alpha = image.palette is not None and image.palette.mode == "RGBA"
    keyed = "transparency" in image.info and mode in ("1", "L", "P", "RGB")
    if image.mode in ("LA", "PA", "RGBA") or palette_alpha or keyed:
        return _on_white(image.convert("RGBA"))
    if mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        return image.convert("RGB")
    raise UnsupportedImageError(
        f"PIL images of mode {mode!r} are not understood; convert it to RGB first."
    )


def _on_white(rgba: PILImage.Image) -> PILImage.Image:
    from PIL import Image as PILImage

    white = PILImage.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba)
    return white


def _from_16_bit(image: PILImage.Image) -> PILImage.Image:
    import numpy as np
    from PIL import Image as PILImage

    values = np.asarray(image)
    grey = _eight_bits(values)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return PILImage.fromarray(grey).convert("RGB")


def _from_wide(image: PILImage.Image) -> PILImage.Image:
    import numpy as np
    from PIL import Image as PILImage

    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        low, high = 0.0, 65535.0  # Pillow scales these formats to 16 bits itself
    elif low >= 0 and high <= 1 and image.mode == "F":
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    if high == low:
        high = low + max(1.0, abs(low))  # one value, all over, and negative or huge: black
    # Divided before subtracted, so that the span of the widest floats stays finite.
    scaled = (values / 2 - low / 2) / (high / 2 - low / 2) * 255
    return PILImage.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


def _from_lab(image: PILImage.Image) -> PILImage.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.applyTransform(
        image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"), inPlace=False
    )
    assert converted is not None  # only in place gives None
    return converted


def _eight_bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """uint16 to the nearest uint8, 65535 to 255."""
    import numpy as np

    nearest: np.ndarray[Any, Any] = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return nearest


def array_to_rgb(array: np.ndarray[Any, Any], *, channels_first: bool = False) -> PILImage.Image:
    """A PIL image in mode RGB from pixels in memory.

    Args:
        array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4: RGBA) of uint8, uint16, bool, or
            floats from 0 to 1. (C, H, W) is understood where it cannot be anything else:
            1, 3 or 4 come first and not last.
        channels_first: (C, H, W) is the custom of the caller, and wins where both fit.
    """
    import numpy as np
    from PIL import Image as PILImage

    array = np.asarray(array)
    shape = array.shape
    if array.ndim == 3:
        first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
        if first and (channels_first or not last):
            array = np.moveaxis(array, 0, 2)
        elif not last:
            raise UnsupportedImageError(
                f"An array of shape {shape} is no image; pass (H, W), (H, W, 3) or (H, W, 4)."
            )
    elif array.ndim != 2:
        hint = " one image at a time, such as array[0]," if array.ndim == 4 else ""
        raise UnsupportedImageError(
            f"An array of shape {shape} is no image; pass{hint} as (H, W), (H, W, 3) or (H, W, 4)."
        )
    if 0 in shape:
        raise UnsupportedImageError(f"An array of shape {shape} holds no pixels.")
    pixels = _array_bytes(array)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return to_rgb(PILImage.fromarray(np.ascontiguousarray(pixels)))


def _array_bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    kind = array.dtype
    if kind == np.uint8:
        return array
    if kind == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if kind.kind == "u" and kind.itemsize == 2:
        return _eight_bits(array)
    if kind.kind == "f":
        # A hair's breadth outside is what resampling leaves behind; more is another scale.
        if not (np.isfinite(array).all() and array.min() >= -0.01 and array.max() <= 1.01):
            raise UnsupportedImageError(
                "A float array holds pixels from 0 to 1; divide by 255, or convert with "
                "array.astype('uint8')."
            )
        scaled: np.ndarray[Any, Any] = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
        return scaled
    raise UnsupportedImageError(
        f"Arrays of {kind} are not understood; convert with array.astype('uint8')."
    )


def turns_aside(turn: PILImage.Transpose | None) -> bool:
    """Whether a turn exchanges width and height."""
    from PIL.Image import Transpose

    return turn in (
        Transpose.TRANSPOSE,
        Transpose.TRANSVERSE,
        Transpose.ROTATE_90,
        Transpose.ROTATE_270,
    )


def orientation(info: dict[Any, Any]) -> PILImage.Transpose | None:
    """The turn that makes an image upright, from Pillow's ``info``; None when it is.

    Reads the one tag that matters (EXIF 2.32, tag 0x0112; or XMP ``tiff:Orientation``, as
    Pillow does) and treats damaged metadata as none: the pixels are still good.
    """
    from PIL.Image import Transpose

    exif = info.get("exif")
    if exif is None and "Raw profile type exif" in info:  # ImageMagick's PNG
        try:
            lines = str(info["Raw profile type exif"]).split("\n")[3:]
            exif = bytes.fromhex("".join(lines))
        except ValueError:
            exif = None
    value = _exif_orientation(exif) if isinstance(exif, bytes) else None
    if value is None:
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
        match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else bytes(xmp))
        value = int(match[1]) if match else 1
    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(value)


def _exif_orientation(exif: bytes) -> int | None:
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order: Any = {b"II": "little", b"MM": "big"}.get(exif[:2])
    if order is None:
        return None
    start = int.from_bytes(exif[4:8], order)
    count = int.from_bytes(exif[start : start + 2], order)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        if int.from_bytes(exif[entry : entry + 2], order) == 0x0112:
            kind = int.from_bytes(exif[entry + 2 : entry + 4], order)
            width = {1: 1, 3: 2, 4: 4}.get(kind, 2)
            return int.from_bytes(exif[entry + 8 : entry + 8 + width], order)
    return None
