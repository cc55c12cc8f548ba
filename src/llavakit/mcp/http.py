"""The server over streamable HTTP, for clients that come over a network.

Every client has a session of its own; the model is one. Who may come in is decided before a
byte of the body is read: by a bearer key, and on loopback by the name under which the server is
called, so that no page in a browser reaches it (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import anyio
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llavakit._checks import check_integer, check_number, checked, strings
from llavakit.serving.auth import Keys, check_host
from llavakit.serving.errors import Refusal
from llavakit.serving.limits import linger
from llavakit.serving.runner import ObeyingServer, uvicorn_config

PATH = "/mcp"
_GRACE_SECONDS = 5


@checked
@dataclass(frozen=True, slots=True)
class HTTPSettings:
    """Who may come in, and how much they may send.

    Attributes:
        api_keys: bearer keys, one of which a client must show; none lets everybody in.
        allowed_hosts: names under which the server may be called; none allows all.
        max_body_bytes: most bytes of one request.
        body_timeout: seconds in which they must have come.
        max_sessions: most clients at a time.
        idle_seconds: after how long a session without requests ends.
    """

    api_keys: Sequence[str] = field(default=(), repr=False)
    allowed_hosts: Sequence[str] = ()
    max_body_bytes: int = 64 * 2**20
    body_timeout: float = 120.0
    max_sessions: int = 1000
    idle_seconds: float = 1800.0

    def __post_init__(self) -> None:
        check_integer("max_body_bytes", self.max_body_bytes, least=1)
        check_integer("max_sessions", self.max_sessions, least=1)
        check_number("idle_seconds", self.idle_seconds, above=0)
        check_number("body_timeout", self.body_timeout, above=0)
        for name in ("api_keys", "allowed_hosts"):
            given = strings(name, getattr(self, name), secret=name == "api_keys")
            object.__setattr__(self, name, given)


@checked
def create_http_app(server: Server, settings: HTTPSettings | None = None) -> Starlette:
    """Make the ASGI application of a server; clients connect to ``/mcp``.

    Args:
        server: made by :func:`~llavakit.mcp.create_server`.
        settings: keys and limits.
    """
    settings = settings or HTTPSettings()
    manager = StreamableHTTPSessionManager(
        server,
        session_idle_timeout=settings.idle_seconds,
        max_request_body_size=settings.max_body_bytes,
        max_sessions=settings.max_sessions,
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with manager.run():
            yield

    endpoint = _Guarded(manager.handle_request, settings)
    routes = [Route(PATH, endpoint), Route("/health", _health, methods=["GET"])]
    return Starlette(routes=routes, lifespan=lifespan)


class _Guarded:
    """Lets in who may come in. A class: Starlette would call a function with a request.

    The body is read here, because the SDK waits for it without end.
    """

    def __init__(self, app: ASGIApp, settings: HTTPSettings) -> None:
        self._app = app
        self._keys = Keys(settings.api_keys)
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        try:
            check_host(request, self._settings.allowed_hosts)
            _check_origin(request)
            self._keys.check(request)
            body = await _body(request, receive, self._settings)
        except ClientDisconnect:
            return
        except Refusal as refusal:
            if refusal.unread:
                await linger(Request(scope, receive))
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), send)


async def _body(request: Request, receive: Receive, settings: HTTPSettings) -> bytes:
    """The body of a request, of bounded length and within a bounded time.

    Raises:
        Refusal: 413 too long, 408 too slow.
        ClientDisconnect: the client left while sending.
    """
    most = settings.max_body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise _too_long(most)
    body = bytearray()
    more = request.method == "POST"
    try:
        async with asyncio.timeout(settings.body_timeout):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > most:
                    raise _too_long(most, unread=more)
    except TimeoutError:
        raise Refusal(
            408,
            f"The body did not come within {settings.body_timeout:g} seconds; send it again.",
            code="body_timeout",
            headers={"Connection": "close"},
        ) from None
    return bytes(body)


def _too_long(most: int, *, unread: bool = True) -> Refusal:
    return Refusal(
        413,
        f"The body has more than {most:,} bytes; send smaller images.",
        code="request_too_large",
        unread=unread,
    )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body at once, and then what comes behind it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _check_origin(request: Request) -> None:
    """Refuse pages of other sites, as the protocol wants it (streamable HTTP, security warning).

    Raises:
        Refusal: 403.
    """
    origin = request.headers.get("origin")
    if origin is None:  # not a browser
        return
    if urlsplit(origin).netloc.lower() != request.headers.get("host", "").strip().lower():
        raise Refusal(
            403,
            "Pages of other sites may not use this server.",
            code="origin_not_allowed",
            unread=True,
        )


async def _health(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


@checked
def serve_http(app: Starlette, listener: socket.socket, *, access_log: bool = False) -> None:
    """Serve an application until SIGINT or SIGTERM; running calls have a few seconds then.

    Args:
        app: made by :func:`create_http_app`.
        listener: a listening socket.
        access_log: whether to log each request.
    """
    logging.getLogger("mcp.server.streamable_http").addFilter(_is_no_leaver)
    server_of(app, access_log=access_log).run(sockets=[listener])


def server_of(app: Starlette, *, access_log: bool = False) -> uvicorn.Server:
    """Return uvicorn's server of an application, to be run with sockets."""
    return ObeyingServer(
        uvicorn_config(app, access_log=access_log, timeout_graceful_shutdown=_GRACE_SECONDS)
    )


def _is_no_leaver(record: logging.LogRecord) -> bool:
    """Leave out what the SDK logs, with a traceback, of each client that ends its session."""
    return not (record.exc_info and isinstance(record.exc_info[1], anyio.ClosedResourceError))
