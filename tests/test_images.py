"""The image door: every way of giving an image ends in the right pixels."""

import base64
import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, ImageCms

from llavakit import Image as ImagePart
from llavakit.errors import (
    ImageDecodeError,
    ImageTooLargeError,
    SourceFetchError,
    UnsupportedImageError,
)
from llavakit.images import Picture, hold, open_picture
from llavakit.sources import SourcePolicy

pytestmark = pytest.mark.timeout(30)

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3, (0,) * 3
YELLOW = (255, 255, 0)


def corners_image() -> Image.Image:
    """24 x 16: red, green above; blue, yellow below, in blocks that JPEG keeps apart."""
    image = Image.new("RGB", (48, 32))
    for colour, box in ((RED, (0, 0)), (GREEN, (24, 0)), (BLUE, (0, 16)), (YELLOW, (24, 16))):
        image.paste(colour, (*box, box[0] + 24, box[1] + 16))
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixel(picture: Picture, x: int = 0, y: int = 0) -> tuple[int, ...]:
    return picture.rgb.getpixel((x, y))


def corners(picture: Picture) -> list[tuple[int, ...]]:
    w, h = picture.size
    spots = [(2, 2), (w - 3, 2), (2, h - 3), (w - 3, h - 3)]
    # Rounded to full or none, so that lossy formats may differ a little.
    return [tuple(255 * (v > 127) for v in pixel(picture, *spot)) for spot in spots]


PNG = encoded(corners_image())
UPRIGHT = [RED, GREEN, BLUE, YELLOW]


def test_same_pixels_have_one_digest_however_they_are_delivered(tmp_path: Path):
    path = tmp_path / "corners of a page ü.png"
    path.write_bytes(PNG)
    text = base64.b64encode(PNG).decode()
    lines = "\n".join(text[i : i + 60] for i in range(0, len(text), 60))
    with path.open("rb") as file:
        routes = {
            "path string": str(path),
            "Path": path,
            "file url": path.as_uri(),
            "file url with localhost": path.as_uri().replace("file://", "file://localhost"),
            "data url": f"data:image/png;base64,{text}",
            "data url, wrong type declared": f"data:image/jpeg;base64,{text}",
            "data url, no type": f"data:;base64,{text}",
            "data url, no type nor semicolon": f"DATA:;charset=x;BASE64,{text}",
            "data url, percent-encoded base64": f"data:image/png;base64,{quote(text, safe='')}",
            "data url, percent-encoded bytes": f"data:image/png,{quote(PNG)}",
            "data url, with white space": f"  data:image/png;base64, {lines}\n",
            "base64": text,
            "base64 in lines": lines + "\n",
            "base64, unpadded": text.rstrip("="),
            "base64, urlsafe": base64.urlsafe_b64encode(PNG).decode().rstrip("="),
            "bytes": PNG,
            "bytearray": bytearray(PNG),
            "memoryview": memoryview(PNG),
            "memoryview with steps": memoryview(b"".join(bytes([b, 0]) for b in PNG))[::2],
            "file": file,
            "BytesIO": io.BytesIO(PNG),
            "PIL image": corners_image(),
            "lazy PIL image": Image.open(path),
            "array": np.asarray(corners_image()),
            "float array": np.asarray(corners_image()) / 255,
            "channels first": np.moveaxis(np.asarray(corners_image()), 2, 0),
            "lossless WebP": encoded(corners_image(), "WEBP", lossless=True),
            "TIFF": encoded(corners_image(), "TIFF", compression="tiff_lzw"),
            "big TIFF": encoded(corners_image(), "TIFF", big_tiff=True),
            "BMP": encoded(corners_image(), "BMP"),
            "PPM": encoded(corners_image(), "PPM"),
            "GIF": encoded(corners_image(), "GIF"),
            "PNG with an ICC profile": encoded(
                corners_image(), icc_profile=ImageCms.ImageCmsProfile(
                    ImageCms.createProfile("sRGB")).tobytes()
            ),
        }  # fmt: skip
        digests = {name: open_picture(source).digest for name, source in routes.items()}
        routes["lazy PIL image"].close()
    expected = Picture(corners_image())
    assert {name for name, digest in digests.items() if digest != expected.digest} == set()
    assert open_picture(expected) is expected
    assert open_picture(expected.data_uri()) == expected


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "WEBP", "MPO"])
def test_lossy_formats_keep_their_corners(kind):
    assert corners(open_picture(encoded(corners_image(), kind, quality=95))) == UPRIGHT


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_applied(kind, turn):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transpose that stores it so
    stored = corners_image()
    if turn != 1:
        stored = stored.transpose(Image.Transpose(undo[turn]))
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = open_picture(encoded(stored, kind, exif=exif))
    assert picture.size == (48, 32)
    assert corners(picture) == UPRIGHT


def test_orientation_is_applied_to_pil_images_and_from_xmp():
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = corners_image().transpose(Image.Transpose.ROTATE_180)
    with Image.open(io.BytesIO(encoded(turned, exif=exif))) as image:
        assert corners(open_picture(image)) == UPRIGHT
    xmp = b'<x xmlns:tiff="t"><d tiff:Orientation="3"/></x>'
    assert corners(open_picture(encoded(turned, "JPEG", xmp=xmp, quality=95))) == UPRIGHT


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
        b"Exif\0\0nonsense",
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",
        b"Exif\0\0II*\0\x08\0\0\0" + b"\x64\0" + bytes([0x1A, 1, 5, 0, 255, 255, 255, 255]) * 90,
    ],
    ids=["offset-outside", "cut-off", "no-tiff", "empty", "orientation-99", "impossible-counts"],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_leaves_the_pixels_usable(kind, exif):
    assert corners(open_picture(encoded(corners_image(), kind, exif=exif))) == UPRIGHT


def half_transparent(mode: str) -> Image.Image:
    """2 x 1: opaque black beside fully transparent black."""
    if mode in ("La", "RGBa"):
        return half_transparent({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    if mode == "PA":
        image = Image.new("P", (2, 1))
        image.putalpha(half_transparent("LA").getchannel("A"))
        return image
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), (*([0] * (len(mode) - 1)), 255))
    return image


@pytest.mark.parametrize("mode", ["LA", "RGBA", "La", "RGBa", "PA"])
def test_transparency_is_laid_on_white(mode):
    picture = open_picture(half_transparent(mode))
    assert (pixel(picture, 0), pixel(picture, 1)) == (BLACK, WHITE)


def test_half_transparent_red_becomes_pink():
    assert pixel(open_picture(Image.new("RGBA", (1, 1), (255, 0, 0, 128)))) == (255, 127, 127)


def test_palette_transparency_is_laid_on_white_by_index_and_by_bytes():
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    for x in range(3):
        image.putpixel((x, 0), x)
    by_index = open_picture(encoded(image, transparency=0))
    by_bytes = open_picture(encoded(image, transparency=bytes([0, 255, 0])))
    gif = open_picture(encoded(image, "GIF", transparency=0))
    assert [pixel(by_index, x) for x in range(3)] == [WHITE, RED, BLUE]
    assert [pixel(by_bytes, x) for x in range(3)] == [WHITE, RED, WHITE]
    assert [pixel(gif, x) for x in range(3)] == [WHITE, RED, BLUE]


def test_palette_with_alpha_entries_is_laid_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 255, 0, 0, 255], "RGBA")
    image.putpixel((1, 0), 1)
    assert [pixel(open_picture(image), x) for x in range(2)] == [WHITE, RED]


@pytest.mark.parametrize("mode, key", [("L", 7), ("RGB", (7, 7, 7)), ("1", 0), ("I;16", 7)])
def test_a_transparent_colour_is_laid_on_white(mode, key):
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), key)
    image.putpixel((1, 0), 255 if mode in ("L", "1") else 65535 if mode == "I;16" else WHITE)
    picture = open_picture(encoded(image, transparency=key))
    assert pixel(picture, 0) == WHITE


def sixteen_bit(mode: str) -> Image.Image:
    image = Image.new("I;16", (3, 1))
    for x, value in enumerate((0, 32896, 65535)):
        image.putpixel((x, 0), value)
    if mode == "I;16B":
        return Image.frombytes("I;16B", (3, 1), np.asarray(image).astype(">u2").tobytes())
    return image if mode == "I;16" else image.convert(mode)


@pytest.mark.parametrize(
    "mode, kind",
    [
        *((mode, kind) for mode in ("I;16", "I;16B", "I", "F") for kind in (None, "TIFF")),
        ("I;16", "PNG"),
        ("I;16B", "PNG"),
        ("I;16", "PPM"),
    ],
)
def test_sixteen_bit_grey_is_scaled_not_clipped(mode, kind):
    image = sixteen_bit(mode)
    picture = open_picture(encoded(image, kind) if kind else image)
    assert [pixel(picture, x)[0] for x in range(3)] == [0, 128, 255]


def test_dark_sixteen_bit_png_stays_dark_and_colour_keeps_its_value():
    image = Image.new("I;16", (1, 1), 200)
    assert pixel(open_picture(encoded(image))) == (1, 1, 1)
    pgm = b"P5 1 1 65535\n\x80\x80"
    assert pixel(open_picture(pgm)) == (128, 128, 128)


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([float("nan"), float("inf"), 1.0], [0, 0, 255]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
        ([-2.0, -2.0, -2.0], [0, 0, 0]),
    ],
    ids=["share-of-white", "8-bit", "signed", "not-a-number", "widest", "constant"],
)
def test_float_pictures_are_scaled(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert [pixel(open_picture(image), x)[0] for x in range(3)] == expected


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", None])
def test_cmyk_red_is_red(kind):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    picture = open_picture(encoded(image, kind) if kind else image)  # PIL writes Adobe's inverse
    red, green, blue = pixel(picture, 8, 8)
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "P", "RGBX"])
def test_other_colour_spaces_keep_red_red(mode):
    image = Image.new("RGB", (8, 8), RED)
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.applyTransform(image, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    else:
        image = image.convert(mode)
    red, green, blue = pixel(open_picture(image))
    assert red > 245 and green < 10 and blue < 10


def test_one_bit_pictures_are_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    for source in (image, encoded(image), encoded(image, "TIFF"), b"P4 2 1\n\x80"):
        assert [pixel(open_picture(source), x) for x in range(2)] == [BLACK, WHITE]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_frame_counts(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, green, blue = pixel(open_picture(data), 8, 8)
    assert red > 245 and green < 10 and blue < 10


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.full((2, 3), 128, np.uint8), (128,) * 3),
        (np.full((2, 3, 1), 128, np.uint8), (128,) * 3),
        (np.full((2, 3, 3), 128, np.uint8), (128,) * 3),
        (np.zeros((2, 3, 4), np.uint8), WHITE),
        (np.full((2, 3), 32896, np.uint16), (128,) * 3),
        (np.full((2, 3, 3), 32896, ">u2"), (128,) * 3),
        (np.full((2, 3), 0.5, np.float16), (128,) * 3),
        (np.ones((2, 3), bool), WHITE),
        (np.full((3, 2, 5), 9, np.uint8), (9,) * 3),
        (np.full((2, 6, 3), 9, np.uint8)[:, ::2], (9,) * 3),
    ],
    ids=["HW", "HW1", "HW3", "HW4", "uint16", "big-endian", "float", "bool", "CHW", "strided"],
)
def test_arrays_become_pictures(array, expected):
    assert pixel(open_picture(array)) == expected


@pytest.mark.parametrize(
    "array, words",
    [
        (np.zeros((2, 2, 2), np.uint8), "no image"),
        (np.zeros((1, 4, 4, 3), np.uint8), "one image at a time"),
        (np.zeros(4, np.uint8), "no image"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4), complex), "complex"),
        (np.full((4, 4), 200.0), "from 0 to 1"),
        (np.full((4, 4), np.nan), "from 0 to 1"),
        (np.array([["a"]]), "not understood"),
    ],
    ids=["two-channels", "batch", "1-d", "empty", "int64", "complex", "0..255", "nan", "text"],
)
def test_odd_arrays_are_refused_with_advice(array, words):
    with pytest.raises(UnsupportedImageError, match=words):
        open_picture(array)


def test_shape_counts_towards_the_digest():
    pixels = np.arange(48, dtype=np.uint8)
    wide, high = (open_picture(pixels.reshape(shape)) for shape in ((2, 8, 3), (8, 2, 3)))
    assert wide.rgb.tobytes() == high.rgb.tobytes()
    assert wide != high and wide.digest != high.digest


def test_a_picture_is_a_value():
    picture = open_picture(PNG)
    again = pickle.loads(pickle.dumps(picture))
    assert again == picture and hash(again) == hash(picture) and again is not picture
    assert copy.copy(picture) is picture and copy.deepcopy([picture])[0] is picture
    assert len({picture, again}) == 1 and picture != "something else"
    assert repr(picture) == f"<Picture 48x32 {picture.digest[:12]}>"
    with pytest.raises(AttributeError):
        picture.digest = ""
    with pytest.raises(UnsupportedImageError, match="mode RGB"):
        Picture(Image.new("L", (1, 1)))


def test_no_metadata_travels_with_the_pixels():
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    picture = open_picture(encoded(corners_image(), exif=exif))
    assert picture.rgb.info == {} and type(picture.rgb) is Image.Image
    assert b"secret" not in base64.b64decode(picture.data_uri().partition(",")[2])


def test_values_never_change_behind_the_callers_back():
    image, array, buffer = Image.new("RGB", (2, 2)), np.zeros((2, 2), np.uint8), bytearray(PNG)
    parts = [ImagePart(source) for source in (image, array, buffer)]
    before = [open_picture(part.source).digest for part in parts]
    image.putpixel((0, 0), RED)
    array[:] = 9
    buffer[:] = b""
    assert [open_picture(part.source).digest for part in parts] == before
    assert ImagePart(PNG) == ImagePart(io.BytesIO(PNG))
    assert ImagePart(corners_image()) == ImagePart(np.asarray(corners_image()))


def test_the_callers_image_is_left_as_it_was():
    image = half_transparent("RGBA")
    image.info["note"] = "mine"
    open_picture(image)
    assert image.mode == "RGBA" and image.info == {"note": "mine"}
    rgb = Image.new("RGB", (1, 1))
    assert open_picture(rgb).rgb is not rgb


@pytest.mark.parametrize(
    "source, words",
    [
        (None, "NoneType"),
        (7, "int"),
        ([PNG], "list; pass one image at a time"),
        ({"url": "x"}, "dict"),
        (io.StringIO("text"), "'rb'"),
    ],
    ids=["none", "number", "list", "dict", "text-file"],
)
def test_other_objects_are_refused_by_name(source, words):
    with pytest.raises(UnsupportedImageError, match=words):
        hold(source)


class Unreadable(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        raise RuntimeError("the cable is out")


class Endless(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        return b"\0" * size


def test_file_objects_that_fail_or_never_end_are_refused():
    with pytest.raises(SourceFetchError, match="cable"):
        open_picture(Unreadable())
    with pytest.raises(ImageTooLargeError):
        open_picture(Endless(), SourcePolicy(max_bytes=10**6))
    closed = io.BytesIO(PNG)
    closed.close()
    with pytest.raises(SourceFetchError, match="closed"):
        open_picture(closed)


def test_a_buffer_just_written_is_read_from_its_beginning():
    buffer = io.BytesIO()
    corners_image().save(buffer, "PNG")
    assert corners(open_picture(buffer)) == UPRIGHT


def test_a_closed_pil_image_is_an_error_of_ours(tmp_path):
    (tmp_path / "x.png").write_bytes(PNG)
    image = Image.open(tmp_path / "x.png")
    image.close()
    with pytest.raises(ImageDecodeError):
        open_picture(image)


def test_importing_the_door_imports_no_decoder():
    code = (
        "import sys, llavakit.images, llavakit.documents\n"
        "print(sorted({'PIL', 'numpy', 'httpx', 'httpcore', 'pypdfium2', 'torch'}"
        " & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
