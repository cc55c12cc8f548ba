"""Bad bytes: the right error with a helpful sentence, quickly, and never anything else."""

import base64
import contextlib
import io
import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from llavakit.errors import (
    ImageDecodeError,
    ImageError,
    ImageTooLargeError,
    LlavaKitError,
    SourceNotFoundError,
    UnsupportedImageError,
)
from llavakit.images import open_picture
from llavakit.sources import SourcePolicy

pytestmark = pytest.mark.timeout(30)


def encoded(kind: str, size=(40, 30), mode="RGB", **options) -> bytes:
    out = io.BytesIO()
    image = Image.effect_noise(size, 60).convert(mode)
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *extra: bytes, pixels: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *extra,
            chunk(b"IDAT", zlib.compress(pixels)),
            chunk(b"IEND", b""),
        )
    )


def bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def tiff(*tags: tuple[int, int, int, int]) -> bytes:
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + struct.pack("<I", 0)


def gif(width: int, height: int) -> bytes:
    image = struct.pack("<HHHHB", 0, 0, width, height, 0)
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0x80, 0, 0)
        + bytes(6)
        + b","
        + image
        + b"\x02\x02\x4c\x01\0;"
    )


def jpeg_with_size(width: int, height: int) -> bytes:
    data = encoded("JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def webp(width: int, height: int) -> bytes:
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def progressive_of_many_scans() -> bytes:
    data = encoded("JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    return data[:scan] + (data[scan:-2] + b"rubbish") * 600 + data[-2:]


PNG = encoded("PNG")
SVG = b'<?xml version="1.0"?>\n<!-- c -->\n<svg xmlns="http://www.w3.org/2000/svg"/>'

KINDS_NOT_OPENED = {
    "svg": (SVG, "SVG"),
    "svg-with-a-prefix": (b"<x:svg xmlns:x='http://www.w3.org/2000/svg'><svg/>", "SVG"),
    "svg-in-utf-16": (b"\xff\xfe" + SVG.decode().encode("utf-16-le"), "SVG"),
    "pdf": (b"%PDF-1.7\n", "llavakit.documents"),
    "pdf-after-junk": (b"\n\njunk%PDF-1.4\n", "llavakit.documents"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
    "dos-eps": (b"\xc5\xd0\xd3\xc6" + bytes(40), "PostScript"),
    "mp4": (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "video"),
    "webm": (b"\x1aE\xdf\xa3" + bytes(40), "video"),
    "avi": (b"RIFF\0\0\0\0AVI LIST", "video"),
    "wav": (b"RIFF\0\0\0\0WAVEfmt ", "sound"),
    "mp3": (b"ID3\4" + bytes(40), "sound"),
    "html-error-page": (b"\n<!DOCTYPE html><html><body>403</body></html>", "web page"),
    "json-error": (b'{"error": "no such key"}', "JSON"),
    "git-lfs-pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "lfs pull"),
    "psd": (b"8BPS\0\1" + bytes(40), "Photoshop"),
    "ico": (b"\0\0\1\0\1\0" + bytes(40), "Icon"),
    "fits": (b"SIMPLE  =                    T", "FITS"),
    "jpeg-xl": (b"\xff\x0a\0\0", "JPEG XL"),
    "zip": (b"PK\3\4" + bytes(40), "ZIP"),
    "gzip": (zlib.compress(PNG, wbits=31), "decompress"),
    "tiff-of-unknown-compression": (
        tiff((256, 3, 1, 9), (257, 3, 1, 9), (259, 3, 1, 999)),
        "code 999",
    ),
}


@pytest.mark.parametrize("data, words", KINDS_NOT_OPENED.values(), ids=KINDS_NOT_OPENED)
def test_other_kinds_of_files_get_a_clear_sentence(data, words):
    with pytest.raises(UnsupportedImageError, match=words) as caught:
        open_picture(data)
    assert str(caught.value)[0].isupper() and str(caught.value).endswith(".")
    with pytest.raises(UnsupportedImageError, match=words):  # a declared type changes nothing
        open_picture("data:image/png;base64," + base64.b64encode(data).decode())


DAMAGED = {
    "empty": b"",
    "one-byte": b"\x89",
    "zeros": bytes(1000),
    "plain-text": b"Dear Sir or Madam,\n" * 20,
    "only-the-png-signature": PNG[:8],
    "half-a-png": PNG[: len(PNG) // 2],
    "png-with-a-wrong-checksum": PNG[:29] + b"\0\0\0\0" + PNG[33:],
    "png-of-no-width": png(0, 10),
    "png-without-pixels": png(10, 10),
    "half-a-jpeg": encoded("JPEG")[:300],
    "jpeg-header-only": encoded("JPEG")[:20],
    "half-a-webp": encoded("WEBP")[:100],
    "half-a-gif": encoded("GIF")[:900],
    "half-a-tiff": encoded("TIFF")[:100],
    "half-a-bmp": encoded("BMP")[:200],
    "half-an-avif": encoded("AVIF")[:200],
    "half-a-ppm": encoded("PPM")[:200],
    "ppm-of-no-height": b"P6 4 0 255\n",
    "ppm-that-is-words": b"P6 photo of a cat\n",
    "tiff-without-tags": tiff(),
    "heic-of-a-header": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "jpeg-2000-of-a-header": b"\0\0\0\x0cjP  \r\n\x87\n",
    "tiff-that-points-at-itself": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "gif-of-no-size": gif(0, 0),
    "jpeg-of-600-scans": progressive_of_many_scans(),
    "data-url-without-comma": "data:image/png;base64",
    "data-url-of-nothing": "data:image/png;base64,",
    "data-url-of-broken-base64": "data:image/png;base64,iVBORw0KGgo*AAA",
    "data-url-of-a-cut-quartet": "data:image/png;base64,iVBORw0KG",
    "data-url-of-non-ascii": "data:image/png;base64,Ünïcödé",
    "data-url-of-text": "data:,hello%20world",
    "base64-of-half-a-png": base64.b64encode(PNG[:300]).decode(),
    "base64-broken-in-the-middle": base64.b64encode(PNG).decode() * 9 + "!",
}


@pytest.mark.parametrize("source", DAMAGED.values(), ids=DAMAGED)
def test_damaged_pictures_are_decode_errors(source):
    with pytest.raises(ImageDecodeError) as caught:
        open_picture(source)
    message = str(caught.value)
    assert len(message) < 300 and message.endswith(".") and "iVBOR" not in message


TOO_LARGE = {
    "png": png(100_000, 100_000),
    "png-strip": png(100_000, 1),
    "png-largest": png(2**31 - 1, 2**31 - 1),
    "bmp": bmp(60_000, 60_000),
    "bmp-of-negative-width": bmp(-5, 5),
    "gif": gif(65_535, 65_535),
    "jpeg": jpeg_with_size(65_000, 65_000),
    "webp": webp(16_000, 16_000),
    "webp-largest": webp(2**24, 2**8),
    "ppm": b"P6 99999 99999 255\n",
    "tiff": tiff(
        *((256, 4, 1, 99_999), (257, 4, 1, 99_999), (258, 3, 1, 8), (262, 3, 1, 1)),
        *((273, 4, 1, 8), (278, 4, 1, 99_999), (279, 4, 1, 8)),
    ),
}


@pytest.mark.parametrize("data", TOO_LARGE.values(), ids=TOO_LARGE)
def test_bombs_are_refused_by_their_header(data):
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLargeError, match="pixels"):
            open_picture(data)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_pictures_between_pillows_warning_and_our_cap_open_without_a_warning():
    policy = SourcePolicy(max_pixels=10**9, max_side=10**6)
    data = png(100_000, 1000, pixels=b"")
    with pytest.raises(ImageDecodeError):  # no pixels follow; what matters: it tried
        open_picture(data, policy)
    with pytest.raises(ImageTooLargeError):
        open_picture(data)
    with Image.open(io.BytesIO(PNG)) as image:
        assert open_picture(image, policy).size == (40, 30)


def test_caps_of_the_policy_hold_for_every_kind_of_source():
    small = SourcePolicy(max_pixels=1199)
    for source in (PNG, Image.open(io.BytesIO(PNG)), open_picture(PNG)):
        with pytest.raises(ImageTooLargeError, match="max_pixels"):
            open_picture(source, small)
    assert open_picture(PNG, SourcePolicy(max_pixels=1200)).size == (40, 30)
    few = SourcePolicy(max_bytes=len(PNG) - 1)
    text = base64.b64encode(PNG).decode()
    for source in (PNG, io.BytesIO(PNG), text, f"data:;base64,{text}", "data:," + "%00" * 9999):
        with pytest.raises(ImageTooLargeError, match="max_bytes"):
            open_picture(source, few)
    assert open_picture(text, SourcePolicy(max_bytes=len(PNG))).size == (40, 30)


def inflated(n: int) -> bytes:
    return zlib.compress(bytes(n))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"k\0\0" + inflated(200_000_000)),
        chunk(b"iCCP", b"k\0\0" + inflated(200_000_000)),
        chunk(b"iTXt", b"k\0\1\0\0\0" + inflated(200_000_000)),
        *[chunk(b"tEXt", b"k%d\0" % i + b"x" * 10**6) for i in range(1)],
        chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\1" * 30_000),
        chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
        chunk(b"acTL", bytes(8)),
    ],
    ids=["zTXt", "iCCP", "iTXt", "tEXt", "eXIf", "endless-animation", "no-animation"],
)
def test_metadata_bombs_in_png_cost_little_and_end_in_pixels_or_our_error(extra):
    tracemalloc.start()
    try:
        open_picture(png(1, 1, extra, pixels=b"\0\1\2\3"))
    except ImageError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 80e6


def test_a_tiff_whose_many_tags_share_the_whole_file_costs_little():
    size = 4_000_000
    tags = [(256, 3, 1, 4), (257, 3, 1, 4), *((1000 + i, 1, size, 8) for i in range(5000))]
    data = tiff(*tags)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError):
            open_picture(data + bytes(size))  # read whole, it would be 20 GB
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


def gif_start(label: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"!" + bytes([label])


def flood(name: str) -> bytes | str:
    """Megabytes of tiny parts, each of which costs a decoder's Python loop a turn."""
    jpeg = encoded("JPEG")
    exif = b"\xff\xe1" + struct.pack(">H", 65_000) + b"Exif\0\0"
    many = 1_000_000
    floods: dict[str, Callable[[], bytes | str]] = {
        "png-chunks": lambda: png(1, 1, chunk(b"tEXt", b"k\0v") * many, pixels=b"\0\1\2\3"),
        "jpeg-fill-bytes": lambda: b"\xff\xd8" + b"\xff" * many * 5,
        "jpeg-rubbish": lambda: b"\xff\xd8\xff\xe0\0\4ab" + b"j" * many * 5,
        "jpeg-comments": lambda: jpeg[:2] + b"\xff\xfe\0\2" * many + jpeg[2:],
        "jpeg-exif": lambda: jpeg[:2] + exif.ljust(65_002, b"x") * 900 + jpeg[2:],
        "gif-comment": lambda: gif_start(0xFE) + b"\1x" * many + b"\0\0;",
        "ppm-comment": lambda: b"P6\n#" + b"x" * many * 5,
        "big-tiff-tags": lambda: b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, many) + b"x" * 10**7,
        "comments-of-markup": lambda: b"<!--" * many,
        "percent-signs": lambda: "data:," + "%" * many * 5,
        "percent-signs-in-base64": lambda: "data:;base64," + "%4" * many * 3,
        "slashes": lambda: "a/" * many * 10,
    }  # fmt: skip
    return floods[name]()


@pytest.mark.parametrize(
    "name",
    ["png-chunks", "jpeg-fill-bytes", "jpeg-rubbish", "jpeg-comments", "jpeg-exif", "gif-comment",
     "ppm-comment", "big-tiff-tags", "comments-of-markup", "percent-signs",
     "percent-signs-in-base64", "slashes"],
)  # fmt: skip
def test_floods_of_tiny_parts_end_quickly(name):
    source = flood(name)
    started = time.process_time()
    with pytest.raises((ImageError, SourceNotFoundError)):
        open_picture(source)
    assert time.process_time() - started < 5


def test_a_large_jpeg_of_many_scans_is_refused_and_a_small_one_opens():
    data = encoded("JPEG", progressive=True)
    assert open_picture(data).size == (40, 30)
    scan, size = data.rindex(b"\xff\xda"), data.index(b"\xff\xc2") + 5
    many = data[:scan] + data[scan:-2] * 40 + data[-2:]
    assert open_picture(many).size == (40, 30)
    huge = many[:size] + struct.pack(">HH", 9000, 9000) + many[size + 4 :]
    with pytest.raises(ImageTooLargeError, match="scans"):
        open_picture(huge)


FORMATS = {
    "png": encoded("PNG"),
    "png-16": encoded("PNG", mode="I;16"),
    "png-palette": encoded("PNG", mode="P"),
    "jpeg": encoded("JPEG"),
    "jpeg-progressive": encoded("JPEG", progressive=True),
    "jpeg-cmyk": encoded("JPEG", mode="CMYK"),
    "webp": encoded("WEBP"),
    "webp-alpha": encoded("WEBP", mode="RGBA", lossless=True),
    "gif": encoded("GIF"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "tiff-lzw": encoded("TIFF", compression="tiff_lzw"),
    "tiff-jpeg": encoded("TIFF", compression="jpeg"),
    "tiff-fax": encoded("TIFF", mode="1", compression="group4"),
    "ppm": encoded("PPM"),
    "avif": encoded("AVIF"),
}
QUICKLY = settings(
    max_examples=25, deadline=3000, suppress_health_check=[HealthCheck.too_slow], database=None
)


@pytest.mark.parametrize("kind", FORMATS)
@QUICKLY
@given(data=st.data())
def test_cut_and_flipped_files_open_or_raise_image_errors(kind, data):
    whole = FORMATS[kind]
    cut = data.draw(st.integers(0, len(whole)))
    damaged = bytearray(whole[:cut] if data.draw(st.booleans()) else whole)
    seed = data.draw(st.integers(0, 2**32))
    for _ in range(min(len(damaged), data.draw(st.integers(0, 8)))):
        at = random.Random(seed).randrange(min(len(damaged), 400))
        damaged[at] ^= 1 << seed % 8
        seed = seed * 31 + 7
    try:
        picture = open_picture(bytes(damaged), SourcePolicy(max_pixels=4_000_000))
    except ImageError as error:
        assert len(str(error)) < 400
    else:
        assert picture.rgb.mode == "RGB"


@settings(QUICKLY, max_examples=150)
@given(st.binary(max_size=300), st.sampled_from([b"", *(d[:40] for d in FORMATS.values())]))
def test_arbitrary_bytes_raise_nothing_but_our_errors(data, start):
    with contextlib.suppress(ImageError):
        open_picture(start + data, SourcePolicy(max_pixels=4_000_000))


@settings(QUICKLY, max_examples=150)
@given(st.text(max_size=200), st.sampled_from(["", "data:", "data:;base64,", "file://", "x://"]))
def test_arbitrary_text_raises_nothing_but_our_errors(text, start):
    policy = SourcePolicy(allow_urls=False)
    for from_url_field in (False, True):
        try:
            open_picture(start + text, policy, from_url_field=from_url_field)
        except LlavaKitError as error:
            assert len(str(error)) < 400
