"""Exchanges with real servers: recorded on their way through a proxy, and answered again later.

A recorded exchange is what the client asked (method, path, JSON) and what the server answered
(status, type, the fragments of the body as they came). Images stand for themselves as digests of
what a model would see, so that another version of an encoder changes nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import io
import json
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from PIL import Image as PILImage

Exchange = dict[str, Any]
_PATIENCE = 600


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    answer: Callable[[_Handler, bytes], None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients leave as they like


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self.server.answer(self, b"")

    def do_POST(self) -> None:
        self.server.answer(self, self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, *arguments: Any) -> None:
        pass

    def begin(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send(self, data: bytes) -> None:
        """One fragment of the body; an empty one is its end."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def is_left(self, seconds: float) -> bool:
        """Whether the client closes the connection within so many seconds."""
        self.connection.settimeout(seconds)
        try:
            return self.connection.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True


@contextmanager
def _serving(answer: Callable[[_Handler, bytes], None]) -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.answer = answer
    thread = threading.Thread(target=lambda: server.serve_forever(0.02))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@contextmanager
def recording(url: str, shown: Callable[[str], str]) -> Iterator[tuple[str, list[Exchange]]]:
    """A proxy before a server; gives its address and the list that exchanges are written to.

    Args:
        url: of the server.
        shown: what is written of a text, without what is private or differs from day to day.
    """
    exchanges: list[Exchange] = []
    place = urlsplit(url).netloc

    def answer(handler: _Handler, body: bytes) -> None:
        exchange = _asked(handler, body)
        exchanges.append(exchange)
        upstream = http.client.HTTPConnection(place, timeout=_PATIENCE)
        names = ("Content-Type", "Authorization")
        headers = {name: handler.headers[name] for name in names if name in handler.headers}
        upstream.request(handler.command, handler.path, body or None, headers)
        response = upstream.getresponse()
        kind = response.headers.get("Content-Type", "")
        exchange |= {"status": response.status, "type": kind, "fragments": []}
        try:
            handler.begin(response.status, kind)
            while fragment := response.read1(1 << 16):
                handler.send(fragment)
                exchange["fragments"].append(shown(fragment.decode("utf-8", "surrogateescape")))
            handler.send(b"")
        except OSError:
            exchange["left"] = True
        finally:
            upstream.close()

    with _serving(answer) as server:
        yield server.url, exchanges


class Replay:
    """A server that answers as another one once did.

    Args:
        exchanges: what was recorded.

    Attributes:
        faults: requests that were never recorded, each beside the recorded one most like it, and
            clients that stayed where they had left.
    """

    def __init__(self, exchanges: list[Exchange]) -> None:
        self.faults: list[str] = []
        self._left = list(exchanges)
        self._lock = threading.Lock()

    def check(self) -> None:
        """Fail where requests came that were not recorded, or recorded ones did not come."""
        missing = [f"{one['method']} {one['path']} did not come" for one in self._left]
        assert not self.faults + missing, "\n\n".join(self.faults + missing)

    def answer(self, handler: _Handler, body: bytes) -> None:
        asked = _asked(handler, body)
        with self._lock:
            recorded = next((one for one in self._left if _same(one, asked)), None)
            if recorded is not None:
                self._left.remove(recorded)
            else:
                self.faults.append(self._difference(asked))
        if recorded is None:
            handler.begin(418, "application/json")
            handler.send(b'{"error": {"message": "This request was not recorded."}}')
            handler.send(b"")
            return
        handler.begin(recorded["status"], recorded["type"])
        for fragment in recorded["fragments"]:
            handler.send(fragment.encode("utf-8", "surrogateescape"))
        if not recorded.get("left"):
            handler.send(b"")
        elif not handler.is_left(10):
            with self._lock:
                self.faults.append(f"{asked['path']}: the client did not leave")
        handler.close_connection = bool(recorded.get("left"))

    def _difference(self, asked: Exchange) -> str:
        alike = [one for one in self._left if one["path"] == asked["path"]]
        new = _text(asked)
        old = max((_text(one) for one in alike), key=lambda text: _likeness(text, new), default="")
        lines = difflib.unified_diff(
            old.splitlines(), new.splitlines(), "recorded", "asked", lineterm="", n=1
        )
        return f"{asked['method']} {asked['path']} was not recorded:\n" + "\n".join(lines)


@contextmanager
def replaying(exchanges: list[Exchange]) -> Iterator[str]:
    """Serve recorded exchanges; at the end, all of them must have come, and no others."""
    replay = Replay(exchanges)
    with _serving(replay.answer) as server:
        yield server.url
    replay.check()


def _asked(handler: _Handler, body: bytes) -> Exchange:
    key = handler.headers.get("Authorization")
    return {
        "method": handler.command,
        "path": handler.path,
        **({"authorization": key} if key else {}),
        **({"body": _without_images(json.loads(body))} if body else {}),
    }


def _same(one: Exchange, other: Exchange) -> bool:
    names = ("method", "path", "authorization", "body")
    return all(one.get(name) == other.get(name) for name in names)


def _without_images(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_images(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_images(one) for one in value]
    if isinstance(value, str) and value.startswith("data:image/"):
        return _digest(value)
    return value


def _digest(uri: str) -> str:
    """A JPEG by its bytes, which are the caller's; anything else by its pixels."""
    head, data = uri.split(",", 1)
    content = b64decode(data, validate=True)
    if head != "data:image/jpeg;base64":
        with PILImage.open(io.BytesIO(content)) as image:
            head += f" {image.width}x{image.height}"
            content = image.convert("RGB").tobytes()
    return f"{head} sha256 {hashlib.sha256(content).hexdigest()[:16]}"


def _text(exchange: Exchange) -> str:
    return json.dumps(exchange.get("body"), indent=1, sort_keys=True)


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other, autojunk=False).quick_ratio()
