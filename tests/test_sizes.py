"""How large an image at an address is: of its beginning, guarded as the whole, and remembered."""

import io
import threading

import pytest
from PIL import Image as PILImage

from llavakit.errors import (
    ImageTooLargeError,
    SourceFetchError,
    SourceNotAllowedError,
    SourceNotFoundError,
    UnsupportedImageError,
)
from llavakit.images import open_picture, picture_size
from llavakit.images import sizes as _sizes
from llavakit.sources import SourcePolicy
from tests.loopback import IMPATIENT, LOCAL, endless, head, reply

pytestmark = [pytest.mark.enable_socket, pytest.mark.timeout(60)]


@pytest.fixture(autouse=True)
def _nothing_is_known():
    _sizes._known.clear()


def encoded(kind, size=(64, 48), **options):
    """A noisy image, so that its file is not tiny."""
    noise = PILImage.effect_noise(size, 100).convert("RGB")
    out = io.BytesIO()
    noise.save(out, kind, **options)
    return out.getvalue()


def turned(kind, value):
    exif = PILImage.Exif()
    exif[0x0112] = value
    return encoded(kind, exif=exif)


FILES = {
    **{kind: encoded(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")},
    **{
        f"{kind} turned {v}": turned(kind, v) for kind in ("PNG", "JPEG", "WEBP") for v in (3, 6, 8)
    },
    "JPEG with a long comment": encoded("JPEG", comment=b"x" * 60_000),
    "progressive JPEG": encoded("JPEG", progressive=True),
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_it_is_the_size_of_what_is_opened(server, data):
    server.answer = reply(data)
    assert picture_size(server.url(), LOCAL) == open_picture(data).size


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_of_a_large_file_only_the_beginning_is_fetched(server, kind):
    data = encoded(kind, (2000, 1500))
    assert len(data) > 1_000_000
    sent = [0]

    def slowly(connection):
        connection.sendall(head(Content_Length=len(data)))
        for start in range(0, len(data), 4096):
            try:
                connection.sendall(data[start : start + 4096])
            except OSError:  # it has seen enough
                return
            sent[0] += 4096
            threading.Event().wait(0.002)

    server.answer = slowly
    assert picture_size(server.url(), LOCAL) == (2000, 1500)
    assert sent[0] < len(data) / 2


def test_it_is_asked_once_and_anew_when_it_is_old(server, monkeypatch):
    server.answer = reply(encoded("PNG"))
    for _ in range(3):
        picture_size(server.url(), LOCAL)
    assert server.connections == 1
    monkeypatch.setattr(_sizes, "KEPT_SECONDS", 0.0)
    server.answer = reply(encoded("PNG", (10, 20)))
    assert picture_size(server.url(), LOCAL) == (10, 20)


def test_what_one_policy_may_know_another_may_not(server):
    server.answer = reply(encoded("PNG"))
    picture_size(server.url(), LOCAL)
    for stranger in (SourcePolicy(), SourcePolicy(allow_urls=False)):
        with pytest.raises(SourceNotAllowedError):
            picture_size(server.url(), stranger)
    assert server.connections == 1


def test_the_caps_are_those_of_opening(server):
    server.answer = reply(encoded("PNG", (300, 200)))
    small = SourcePolicy(allow_private_hosts=True, max_pixels=1000)
    with pytest.raises(ImageTooLargeError):
        picture_size(server.url(), small)
    server.answer = endless(head(Connection="close"), b"x" * 65536)
    capped = SourcePolicy(allow_private_hosts=True, max_bytes=100_000)
    with pytest.raises(ImageTooLargeError):
        picture_size(server.url("/endless"), capped)


def test_errors_are_those_of_opening(server):
    server.answer = reply(b"", "404 Not Found")
    with pytest.raises(SourceNotFoundError):
        picture_size(server.url(), LOCAL)
    server.answer = reply(b"<!doctype html><p>Log in</p>")
    with pytest.raises(UnsupportedImageError, match="web page"):
        picture_size(server.url(), LOCAL)
    server.answer = lambda connection: threading.Event().wait(3)
    with pytest.raises(SourceFetchError):
        picture_size(server.url(), IMPATIENT)


def test_everything_else_is_measured_as_it_is_opened(tmp_path):
    data = encoded("PNG")
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, tmp_path / "a.png", PILImage.open(io.BytesIO(data))):
        assert picture_size(source) == (64, 48)
