"""A server on loopback that plays every kind of liar, and remembers what it was sent."""

import io
import socket
import ssl
import threading
import time
from collections.abc import Callable

from PIL import Image

from llavakit.sources import SourcePolicy

LOCAL = SourcePolicy(allow_private_hosts=True, timeout=10)
IMPATIENT = SourcePolicy(allow_private_hosts=True, timeout=0.6)


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(out, "PNG")
    return out.getvalue()


PNG = png()


class Server:
    """Answers every connection by ``answer(connection)`` once it has read a request."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self.requests: list[str] = []
        self.answer: Callable[[socket.socket], None] = reply(PNG)
        self.tls: ssl.SSLContext | None = None
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def url(self, path: str = "/x.png", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self._stopped.is_set():
                connection.close()
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(5)
            try:
                if self.tls is not None:
                    connection = self.tls.wrap_socket(connection, server_side=True)
                request = b""
                while b"\r\n\r\n" not in request:
                    piece = connection.recv(4096)
                    if not piece:
                        return
                    request += piece
                self.requests.append(request.decode("latin-1"))
                self.answer(connection)
            except OSError:
                pass
            finally:
                connection.close()

    def close(self) -> None:
        self._stopped.set()
        with socket.socket(self._listener.family) as waker:  # accept() does not see a close
            waker.connect(self._listener.getsockname()[:2])
        self._listener.close()
        for thread in self._threads:
            thread.join(6)


def head(status: str = "200 OK", **fields: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{k.replace('_', '-')}: {v}" for k, v in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def reply(body: bytes, status: str = "200 OK", **fields: object) -> Callable[..., None]:
    fields = {"Content-Length": len(body), **fields}
    return lambda connection: connection.sendall(head(status, **fields) + body)


def redirect(*targets: str) -> Callable[[socket.socket], None]:
    rest = iter(targets)

    def answer(connection: socket.socket) -> None:
        target = next(rest, None)
        found = reply(b"", "302 Found", Location=target) if target is not None else reply(PNG)
        found(connection)

    return answer


def endless(start: bytes, piece: bytes, pause: float = 0.0) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            connection.sendall(piece)
            time.sleep(pause)

    return answer
