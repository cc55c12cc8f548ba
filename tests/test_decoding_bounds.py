"""Small files that Pillow would read in Python for seconds or minutes, with everybody waiting."""

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from llavakit.errors import ImageDecodeError, ImageTooLargeError, UnsupportedImageError
from llavakit.images import open_picture, peek_size
from llavakit.images.convert import to_rgb


@pytest.mark.parametrize("kind", [b"P1", b"P2", b"P3"])
@pytest.mark.parametrize("after", [b"\n", b" ", b"#c\n"])
def test_numbers_as_text_are_not_opened(kind, after):
    data = kind + after + b"2 2\n255\n" + b"0 " * 12
    with pytest.raises(UnsupportedImageError, match="save it as PNG, or as binary PNM"):
        open_picture(data)


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (b"P6 40 30 100\n", 3),
        (b"P6 40 30 1000\n", 6),
        (b"P6 40 30 65535\n", 6),
        (b"P5 40 30 7\n", 1),
        (b"P5 40 30 1000\n", 2),
        (b"P5 40 30 65535\n", 2),
        (b"P5 40 30 255\n", 1),
        (b"P6 40 30 255\n", 3),
    ],
)
def test_binary_pnm_of_any_depth_has_pillows_pixels(head, size):
    numbers = np.random.default_rng(0).integers(0, 256, 40 * 30 * size, dtype=np.uint8)
    data = head + numbers.tobytes()
    expected = to_rgb(Image.open(io.BytesIO(data)))
    assert open_picture(data).rgb.tobytes() == expected.tobytes()
    assert peek_size(data) == (40, 30)
    with pytest.raises(ImageDecodeError):
        open_picture(data[:-1])


def test_binary_pnm_of_unusual_depth_takes_no_loop_over_pixels():
    begun = time.process_time()
    assert open_picture(b"P6 2000 2000 100\n" + bytes(12_000_000)).size == (2000, 2000)
    assert time.process_time() - begun < 2  # Pillow took 5 s


def tiff(width, height, offsets, tag):
    """A grey TIFF whose strips or tiles all lie at one place."""
    fields = [(256, 3, [width]), (257, 3, [height]), (258, 3, [8]), (259, 3, [1]), (262, 3, [1])]
    fields += [(tag, 4, offsets), (277, 3, [1])]
    fields += [(322, 3, [1]), (323, 3, [1])] if tag == 324 else []
    start = 8 + 2 + 12 * len(fields) + 4
    entries, values = b"", b""
    for number, kind, numbers in sorted(fields):
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            place = struct.pack("<I", start + len(values))
            values += packed
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack("<HHI", number, kind, len(numbers)) + place
    head = b"II*\0" + struct.pack("<IH", 8, len(fields))
    return head + entries + bytes(4) + values


@pytest.mark.parametrize("tag", [273, 324])
def test_a_tiff_of_very_many_parts_is_refused_at_once(tag):
    begun = time.process_time()
    with pytest.raises(ImageTooLargeError, match="parts"):
        open_picture(tiff(1000, 300, [8] * 300_000, tag))
    assert time.process_time() - begun < 1.5


def test_a_tiff_with_a_strip_for_each_row_is_opened():
    image = Image.effect_noise((30, 3000), 50)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", tiffinfo={278: 1})
    assert open_picture(buffer.getvalue()).size == (30, 3000)
