"""Images on the wire: the same pixels, opened here, and nothing else of their files."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image as PILImage

from llavakit import Image, SourcePolicy
from llavakit.errors import ImageDecodeError, SourceNotAllowedError
from llavakit.images import open_picture
from llavakit.remote.pictures import bare_jpeg, data_uri

POLICY = SourcePolicy(allow_urls=False)


def photo() -> PILImage.Image:
    noise = [PILImage.effect_noise((60, 40), 90) for _ in range(3)]
    return PILImage.merge("RGB", noise)


def saved(image: PILImage.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int = 1) -> PILImage.Exif:
    tags = PILImage.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = "SECRET PLACE"
    return tags


def bytes_of(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


JPEGS = {
    "plain": saved(photo(), quality=90),
    "progressive": saved(photo(), progressive=True),
    "restarts": saved(photo(), restart_marker_rows=1),
    "grey": saved(photo().convert("L")),
    "with a place": saved(photo(), exif=exif(), comment=b"SECRET", icc_profile=b"SECRET" * 20),
}


@pytest.mark.parametrize("name", list(JPEGS))
def test_a_jpeg_travels_as_it_was_compressed_and_without_what_is_beside_the_pixels(name):
    uri = data_uri(Image(JPEGS[name]), POLICY)
    sent = bytes_of(uri)
    assert uri.startswith("data:image/jpeg;")
    assert open_picture(sent) == open_picture(JPEGS[name])
    assert len(sent) <= len(JPEGS[name]) and b"SECRET" not in sent
    with PILImage.open(io.BytesIO(sent)) as read:  # as a server's reader sees it
        assert read.convert("RGB").tobytes() == open_picture(JPEGS[name]).rgb.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        saved(photo(), exif=exif(6)),
        saved(photo().convert("CMYK")),
        saved(photo(), "PNG"),
        saved(photo(), "WEBP", lossless=True),
        saved(photo().convert("RGBA"), "PNG"),
        saved(photo().convert("P"), "GIF"),
    ],
    ids=["turned", "cmyk", "png", "webp", "rgba", "gif"],
)
def test_everything_else_is_a_png_of_the_pixels_that_the_model_sees_here(data):
    uri = data_uri(Image(data), POLICY)
    assert uri.startswith("data:image/png;")
    with PILImage.open(io.BytesIO(bytes_of(uri))) as read:
        assert read.convert("RGB").tobytes() == open_picture(data).rgb.tobytes()


def test_every_carrier_is_opened_here(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(JPEGS["plain"])
    encoded = base64.b64encode(JPEGS["plain"]).decode()
    carriers = [path, str(path), JPEGS["plain"], f"data:image/jpeg;base64,{encoded}", encoded]
    assert len({data_uri(Image(carrier), POLICY) for carrier in carriers}) == 1
    drawn = photo()
    assert open_picture(bytes_of(data_uri(Image(drawn), POLICY))) == open_picture(drawn)


def test_the_policy_holds_before_anything_is_sent(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(JPEGS["plain"])
    fenced = SourcePolicy(roots=(tmp_path / "inside",), allow_urls=False)
    for carrier in (path, "https://example.org/x.png"):
        with pytest.raises(SourceNotAllowedError):
            data_uri(Image(carrier), fenced)
    with pytest.raises(ImageDecodeError):
        data_uri(Image(JPEGS["plain"][:200]), POLICY)


@pytest.mark.parametrize("cut", [3, 20, 100])
def test_segments_that_cannot_be_followed_are_refused(cut):
    with pytest.raises(ImageDecodeError):
        bare_jpeg(JPEGS["with a place"][:cut])
