"""Fetching from servers that lie, drip, or never end."""

import gzip
import socket
import time
import zlib

import pytest

from llavakit.errors import (
    ImageTooLargeError,
    SourceFetchError,
    SourceNotFoundError,
    UnsupportedImageError,
)
from llavakit.images import open_picture
from llavakit.sources import SourcePolicy, fetch_url
from llavakit.sources import fetch as _fetch
from tests.loopback import IMPATIENT, LOCAL, PNG, endless, head, reply

pytestmark = [pytest.mark.enable_socket, pytest.mark.timeout(30)]


@pytest.mark.parametrize(
    "status, error",
    [
        ("404 Not Found", SourceNotFoundError),
        ("410 Gone", SourceNotFoundError),
        ("403 Forbidden", SourceFetchError),
        ("500 Oops", SourceFetchError),
        ("204 No Content", SourceFetchError),
        ("302 Found", SourceFetchError),
        ("206 Partial Content", SourceFetchError),
        ("999 What", SourceFetchError),
    ],
)
def test_other_answers_are_errors_that_name_the_status(server, status, error):
    server.answer = reply(PNG, status)
    with pytest.raises(error, match=status[:3]):
        fetch_url(server.url(), LOCAL)


def test_an_error_page_with_status_200_is_told_from_a_picture(server):
    server.answer = reply(b"<!doctype html><p>Log in</p>", Content_Type="image/png")
    with pytest.raises(UnsupportedImageError, match="web page"):
        open_picture(server.url(), LOCAL)


CAP = SourcePolicy(allow_private_hosts=True, max_bytes=100_000, timeout=5)
TOO_MUCH = {
    "declared": lambda c: c.sendall(head(Content_Length=10**12)),
    "undeclared": endless(head(Connection="close"), b"x" * 65536),
    "chunked": endless(head(Transfer_Encoding="chunked"), b"1000\r\n" + b"x" * 4096 + b"\r\n"),
    "gzip": reply(gzip.compress(bytes(50_000_000)), Content_Encoding="gzip"),
    "deflate": reply(zlib.compress(bytes(50_000_000)), Content_Encoding="deflate"),
}


@pytest.mark.parametrize("answer", TOO_MUCH.values(), ids=TOO_MUCH)
def test_bodies_over_the_cap_are_refused_early(server, answer):
    server.answer = answer
    with pytest.raises(ImageTooLargeError, match="max_bytes"):
        fetch_url(server.url(), CAP)


def test_a_gzip_body_within_the_cap_is_decompressed(server):
    server.answer = reply(gzip.compress(PNG), Content_Encoding="gzip")
    assert fetch_url(server.url(), LOCAL) == PNG


BROKEN = {
    "cut short": reply(PNG[:40], Content_Length=len(PNG)),
    "closed at once": lambda c: None,
    "not http": lambda c: c.sendall(b"SSH-2.0-OpenSSH\r\n"),
    "endless headers": endless(b"HTTP/1.1 200 OK\r\n", b"X-Y: " + b"z" * 1000 + b"\r\n"),
    "bad chunk": lambda c: c.sendall(head(Transfer_Encoding="chunked") + b"zz\r\n"),
    "gzip cut short": reply(gzip.compress(PNG)[:40], Content_Encoding="gzip"),
    "no gzip": reply(PNG, Content_Encoding="gzip"),
    "brotli": reply(PNG, Content_Encoding="br"),
    "lying length": lambda c: c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"),
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
def test_broken_answers_are_fetch_errors(server, answer):
    server.answer = answer
    with pytest.raises(SourceFetchError) as caught:
        fetch_url(server.url(), LOCAL)
    assert str(caught.value).endswith(".")


DRIPS = {
    "silence": lambda c: time.sleep(1.2),
    "header": endless(b"HTTP/1.1 200 OK\r\nX: ", b"y", 0.05),
    "informational": endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.05),
    "body": endless(head(Content_Length=10**6), b"y", 0.05),
    "chunks": endless(head(Transfer_Encoding="chunked"), b"1\r\ny\r\n", 0.05),
    "gzip of nothing": endless(
        head(Content_Encoding="gzip") + gzip.compress(b"")[:10], b"\0\0\0\xff\xff", 0.05
    ),
}


@pytest.mark.parametrize("answer", DRIPS.values(), ids=DRIPS)
def test_the_deadline_holds_against_drips(server, answer):
    server.answer = answer
    started = time.monotonic()
    with pytest.raises(SourceFetchError, match=r"within 0\.6 seconds"):
        fetch_url(server.url(), IMPATIENT)
    assert time.monotonic() - started < 2.5


def test_the_deadline_covers_all_redirects_and_a_slow_resolver(server, monkeypatch):
    def slowly(connection: socket.socket) -> None:
        time.sleep(0.4)
        reply(b"", "302 Found", Location="/again")(connection)

    server.answer = slowly
    with pytest.raises(SourceFetchError, match="seconds"):
        fetch_url(server.url(), IMPATIENT)
    monkeypatch.setattr(_fetch, "_resolve", lambda host, port: time.sleep(4) or [])
    started = time.monotonic()
    with pytest.raises(SourceFetchError, match="seconds"):
        fetch_url(server.url(), IMPATIENT)
    assert time.monotonic() - started < 3
