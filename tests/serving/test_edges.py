"""The edges of HTTP: framing, HEAD, slashes, a byte order mark, and what strangers are told."""

import asyncio
import base64
import io
import json
import socket
import threading
import time

import pytest
from PIL import Image

from llavakit.testing import FakeBackend
from tests.serving.asgi import Call
from tests.serving.conftest import CHAT, Neighbourly, data_uri, draw, running, saying

FRAMINGS = {
    "a length and chunks": "HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
    "chunks and a length": "HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4",
    "chunks in HTTP/1.0": "HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked",
}


@pytest.mark.enable_socket
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("line", ["POST /v1/chat/completions", "GET /health", "POST /nowhere"])
def test_an_unclear_end_of_a_request_ends_the_connection(framing, line):
    smuggled = b"0\r\n\r\nGET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = (
        f"{line} {FRAMINGS[framing]}\r\nHost: localhost\r\nContent-Type: application/json\r\n\r\n"
    )
    with (
        running(FakeBackend()) as server,
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 10) as client,
    ):
        client.sendall(head.encode() + smuggled)
        sent = b""
        while part := client.recv(4096):
            sent += part
    assert sent.count(b"HTTP/1.1 ") == 1 and sent.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("path", ["/health", "/version", "/v1/models", "/v1/models/fake"])
async def test_head_is_answered_as_get_without_a_body(client, path):
    app = client()
    got, head = await app.get(path), await app.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"") and got.content
    assert head.headers["content-length"] == got.headers["content-length"]


async def test_head_of_what_takes_no_get_is_refused(client):
    assert (await client().head(CHAT)).status_code == 405


@pytest.mark.parametrize("path", ["/health/", "/v1/models/", "/v1/models/fake/", "/version//"])
async def test_a_path_may_end_with_slashes(client, path):
    app = client()
    assert (await app.get(path)).json() == (await app.get(path.rstrip("/"))).json()
    assert (await app.post(CHAT + "/", json=saying())).status_code == 200


async def test_a_byte_order_mark_is_passed_over(client):
    app = client()
    body = b"\xef\xbb\xbf" + json.dumps(saying()).encode()
    headers = {"Content-Type": "application/json"}
    assert (await app.post(CHAT, content=body, headers=headers)).status_code == 200
    bad = b"\xef\xbb\xbf" + json.dumps(saying(temperature=-1)).encode()
    answer = await app.post(CHAT, content=bad, headers=headers)
    assert answer.json()["error"]["param"] == "temperature"


def about(url):
    block = {"type": "image_url", "image_url": {"url": url}}
    return saying() | {"messages": [{"role": "user", "content": [block]}]}


async def refusal_of(app, url):
    answer = await app.post(CHAT, json=about(url))
    assert answer.status_code in (400, 413), answer.text
    return answer.json()["error"]


@pytest.mark.enable_socket
async def test_no_stranger_learns_where_a_name_leads(client, monkeypatch):
    from llavakit.sources import fetch

    places = {
        "inside.test": ["10.1.2.3"],
        "metadata.test": ["169.254.169.254"],
        "loop.test": ["127.0.0.1"],
        "six.test": ["::1"],
        "both.test": ["93.184.216.34", "10.0.0.1"],
    }

    def resolve(host, port):
        if host not in places:
            raise socket.gaierror(-2, "Name or service not known")
        return places[host]

    monkeypatch.setattr(fetch, "_resolve", resolve)
    app = client(allow_urls=True)
    told = [
        await refusal_of(app, f"http://{host}/a.png")
        for host in (*places, "no-such-name.test", "127.0.0.1:1", "[::1]", "169.254.169.254")
    ]
    assert all(one == told[0] for one in told), told
    assert told[0]["code"] == "source_unreachable"


@pytest.mark.enable_socket
async def test_a_closed_port_a_silent_one_and_a_redirect_inside_look_alike(client, server):
    app = client(kind=Neighbourly, allow_urls=True)
    closed = await refusal_of(app, "http://127.0.0.1:1/a.png")

    server.answer = lambda connection: connection.close()
    assert await refusal_of(app, server.url()) == closed
    headers = "Location: http://no-such-name.invalid/a.png\r\n"
    server.answer = lambda connection: connection.sendall(
        f"HTTP/1.1 302 Found\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
    )
    assert await refusal_of(app, server.url()) == closed


def bad_images():
    plain = b"P3 1 1 255 0 0 0"
    wide = io.BytesIO()
    Image.new("1", (40_000, 1)).save(wide, "PNG")
    large = io.BytesIO()
    Image.new("1", (7000, 7000)).save(large, "PNG")
    yield from (
        ("", b""),
        ("plain", plain),
        ("wide", wide.getvalue()),
        ("large", large.getvalue()),
        ("heavy", bytes(21 << 20)),
        ("pdf", b"%PDF-1.7\n"),
        ("lfs", b"version https://git-lfs.github.com/spec/v1\n"),
        ("svg", b"<svg/>"),
        ("cut", b"\x89PNG\r\n\x1a\n\0\0"),
        ("jpeg", b"\xff\xd8\xff"),
        ("zip", b"PK\3\4"),
        ("noise", b"\x01\x02" * 40),
    )


@pytest.mark.parametrize("allow_urls", [False, True])
async def test_no_refusal_names_what_only_the_programs_author_can_change(client, allow_urls):
    app = client(allow_urls=allow_urls)
    urls = ["data:;base64," + base64.b64encode(data).decode() for _, data in bad_images()]
    urls += ["data:", "data:;base64,%", "/etc/passwd", "file:///etc/passwd", "ftp://x.test/a", "x"]
    urls += ["http://user:word@x.test/", "http://", "http://x.test:99999/", "https://?"]
    for url in urls:
        message = (await refusal_of(app, url))["message"]
        for inner in ("SourcePolicy", "llavakit", "max_", "pass its bytes", "as a path", "Pillow"):
            assert inner not in message, (url[:40], message)


@pytest.mark.enable_socket
async def test_a_server_that_fetches_does_not_begin_with_what_it_does_not_read(client):
    from_urls = await refusal_of(client(allow_urls=True), "http://127.0.0.1/a.png")
    assert not from_urls["message"].startswith("This server reads no paths")
    path = await refusal_of(client(allow_urls=True), "/etc/passwd")
    assert path["message"].startswith("This server reads no paths: send")


async def test_plain_text_pnm_is_refused_with_advice(client):
    for kind in (b"P1", b"P2", b"P3"):
        uri = "data:;base64," + base64.b64encode(kind + b"\n2 2\n255\n" + b"0 " * 12).decode()
        message = (await refusal_of(client(), uri))["message"]
        assert "save it as PNG" in message


@pytest.mark.enable_socket
async def test_an_image_by_value_does_not_wait_for_slow_addresses(client, server):
    go = threading.Event()
    server.answer = lambda connection: go.wait(20)
    app = client(kind=Neighbourly, allow_urls=True)
    slow = [Call(app.app, CHAT, about(server.url())) for _ in range(40)]
    try:
        await asyncio.sleep(0.5)
        begun = time.monotonic()
        answer = await app.post(CHAT, json=about(data_uri(draw(size=64))))
        assert answer.status_code == 200 and time.monotonic() - begun < 5
        assert not any(call.over for call in slow)
    finally:
        for call in slow:
            call.leave()
        go.set()
    for call in slow:
        await call.end()
    assert (app.service.gate.open, app.service.gate.bytes) == (0, 0)
