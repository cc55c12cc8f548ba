"""A server on loopback that says exactly what a test tells it to say."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[["Handler"], None]
CHAT = "/v1/chat/completions"
CHATS = (CHAT, "/api/chat")


class Handler(BaseHTTPRequestHandler):
    """One connection; ``tell`` and its sisters are for scripts."""

    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: Any) -> None:
        try:
            self.server.script_for(self, body)(self)
        except OSError:
            self.server.gone.set()
            self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass

    def json(self, body: Any, status: int = 200, **headers: str) -> None:
        """A whole answer; a string goes as it is."""
        text = body if isinstance(body, str) else json.dumps(body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", headers.get("content_type", "application/json"))
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def begin(self, kind: str = "text/event-stream", status: int = 200) -> None:
        """The head of a stream."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()

    def raw(self, data: bytes) -> None:
        """A piece of a stream, as one chunk."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def event(self, event: Any) -> None:
        """One event; a string goes as it is."""
        text = event if isinstance(event, str) else json.dumps(event)
        self.raw(f"data: {text}\n\n".encode())

    def end(self) -> None:
        """The regular end of a stream."""
        self.raw(b"")

    def cut(self) -> None:
        """The connection breaks."""
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


class ScriptedServer(ThreadingHTTPServer):
    """Answers chats by a list of scripts, the last one again and again.

    Attributes:
        asked: the bodies of chats, in their order.
        seen: method, path and headers of every request.
        routes: scripts of other paths; what is missing there is 404.
        gone: set when a client left while a script was writing.
    """

    daemon_threads = True
    block_on_close = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.chats: list[Script] = []
        self.routes: dict[str, Script] = {}
        self.asked: list[Any] = []
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.gone = threading.Event()
        self.release = threading.Event()
        self._turn = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # clients leave as they like
            super().handle_error(request, client_address)

    def script_for(self, handler: Handler, body: Any) -> Script:
        with self._lock:
            self.seen.append((handler.command, handler.path, dict(handler.headers)))
            if handler.path in self.routes:
                return self.routes[handler.path]
            if handler.path not in CHATS:
                return lambda handler: handler.json({"detail": "Not Found"}, 404)
            self.asked.append(body)
            script = self.chats[min(self._turn, len(self.chats) - 1)]
            self._turn += 1
            return script

    def says(self, *scripts: Script) -> ScriptedServer:
        self.chats, self._turn = list(scripts), 0
        return self


@contextmanager
def scripted() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    thread = threading.Thread(target=lambda: server.serve_forever(0.02))
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def piece(
    text: str | None = None, finish: str | None = None, usage: Any = None, **delta: Any
) -> dict[str, Any]:
    """An event of a chat completion."""
    said = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": {**said, **delta}, "finish_reason": finish}
    event: dict[str, Any] = {"object": "chat.completion.chunk", "choices": [choice]}
    return event if usage is None else {**event, "usage": usage}


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def words(*texts: str, finish: str = "stop", done: bool = True, usage: Any = USAGE) -> Script:
    """A stream as vLLM sends it: pieces, a finish, usage of its own, ``[DONE]``."""
    total = {"choices": [], "usage": usage}
    pieces = [piece(text) for text in texts]
    return events(*pieces, piece(finish=finish), total, *(["[DONE]"] if done else []))


def events(*told: Any) -> Script:
    def script(handler: Handler) -> None:
        handler.begin()
        for one in told:
            handler.event(one)
        handler.end()

    return script


def endless(
    first: bytes, more: bytes, kind: str = "text/event-stream", status: int = 200
) -> Script:
    """A body that goes on and on: for 64 MiB, so that a test that fails has an end."""

    def script(handler: Handler) -> None:
        handler.begin(kind, status)
        handler.raw(first)
        piece = more * (65536 // len(more))
        for _ in range(1024):
            handler.raw(piece)
        handler.end()

    return script


def called(*calls: tuple[str, str], finish: str = "tool_calls") -> Script:
    """A stream of whole tool calls: names, and arguments as JSON text."""
    told = [
        {
            "index": number,
            "id": f"id{number}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for number, (name, arguments) in enumerate(calls)
    ]
    return events(
        *(piece(tool_calls=[call]) for call in told),
        piece(finish=finish),
        {"choices": [], "usage": USAGE},
        "[DONE]",
    )


def lines(*told: Any) -> Script:
    """A stream of Ollama: an event a line."""

    def script(handler: Handler) -> None:
        handler.begin("application/x-ndjson")
        for one in told:
            handler.raw(json.dumps(one).encode() + b"\n")
        handler.end()

    return script


OLLAMA_END = {"done": True, "done_reason": "stop", "prompt_eval_count": 7, "eval_count": 3}


def says_ollama(*texts: str, **end: Any) -> Script:
    """An answer in the notation of Ollama's ``/api/chat``."""
    model = {"model": "llava:7b", "created_at": "2026-08-21T18:48:22.4Z"}
    pieces = [
        {**model, "message": {"role": "assistant", "content": text}, "done": False}
        for text in texts
    ]
    last = {**model, "message": {"role": "assistant", "content": ""}, **OLLAMA_END, **end}
    return lines(*pieces, last)


def refuses(status: int, body: Any = "no", **headers: str) -> Script:
    return lambda handler: handler.json(body, status, **headers)


def models(*entries: dict[str, Any]) -> Script:
    return lambda handler: handler.json({"object": "list", "data": list(entries)})
