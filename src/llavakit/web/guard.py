"""What stands between the network and the page: who comes and goes, and what may pass.

ASGI, and no framework. The page's framework offers more than the page needs; only what the page
uses gets through.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias

from llavakit._guesses import WrongGuesses
from llavakit.web.controller import Controller
from llavakit.web.looking import PATH as MAPS
from llavakit.web.looking import MapRoute
from llavakit.web.preview import previewing
from llavakit.web.saved import PATH as SAVED_CHATS
from llavakit.web.saved import SavedChats

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "llavakit-visitor"
MAX_EVENT = 4 << 20
"""Most bytes of what a click sends; images are no part of it."""
BODY_SECONDS = 120.0
"""Seconds in which a body must have come, uploads included."""

_POSTS = re.compile(r".*/(?:queue/join|upload|cancel|reset|login|llavakit/chat)/?")
_CLOSED = re.compile(r".*/(?:proxy=|monitoring|component_server|deep_link|call/|run/|api/).*")
_HEARTBEAT = re.compile(r".*/heartbeat/([^/]+)/?")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; frame-src 'none'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
"""A browser that obeys it connects to this page alone, whatever a model's answer holds."""


class Guard:
    """Lets through what the page needs.

    - Only the routes that the page uses, for hosts that it knows.
    - Nothing that another site's page sends; browsers say where a request comes from.
    - No event that names a file outside the uploads, or an address: the framework would fetch it.
    - Uploads of a known length under the caps, and in bounded time; whose they are is noted by a
      cookie.
    - An open heartbeat is a visitor; when it closes, the visitor is gone, at once.

    Args:
        app: the page.
        controller: receives visitors and uploads.
        folder: where uploads lie.
        hosts: names that the ``Host`` header may have, without ports; empty takes any.
    """

    def __init__(
        self, app: App, controller: Controller, folder: Path, hosts: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._controller = controller
        self._folder = folder.resolve()
        self._hosts = frozenset(hosts)
        self._saved = SavedChats(controller)
        self._maps = MapRoute(controller)
        self._guesses = WrongGuesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is not None:
            await _answer(send, *refused)
            return
        path, owner = scope["path"], _cookie(scope)
        if scope["method"] == "POST":
            receive = _in_time(receive)
        send = _with_headers(send, None if owner else scope)
        if match := _HEARTBEAT.fullmatch(path):
            await self._heartbeat(match[1], owner, scope, receive, send)
        elif path.rstrip("/").endswith("/login") and scope["method"] == "POST":
            await self._login(scope, receive, send)
        elif path.endswith(SAVED_CHATS):
            await self._saved(scope, receive, send, owner)
        elif path.endswith(MAPS):
            await self._maps(scope, receive, send, owner)
        elif path.rstrip("/").endswith("/upload"):
            await self._app(scope, receive, self._noting_uploads(owner, send))
        elif path.rstrip("/").endswith("/queue/join"):
            await self._event(scope, receive, send)
        elif scope["method"] == "GET" and not path.rstrip("/").rpartition("/")[2]:
            await self._app(scope, receive, previewing(send))
        else:
            await self._app(scope, receive, send)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        path, method = scope["path"], scope["method"]
        host = _header(scope, b"host")
        if _unclear(scope):
            return 400, "A request has a length or chunks, not both."
        if _foreign(scope, host):
            return 403, "Only the page itself may send this."
        if self._hosts and _hostname(host) not in self._hosts:
            return 421, "This page answers on its own address only."
        if _CLOSED.fullmatch(path) or (
            method not in ("GET", "HEAD") and not _POSTS.fullmatch(path)
        ):
            return 404, "There is no such page."
        if path.rstrip("/").endswith("/upload") and method == "POST":
            return self._refused_upload(_header(scope, b"content-length"))
        return None

    def _refused_upload(self, length: str) -> tuple[int, str] | None:
        settings = self._controller.settings
        if not length.isdecimal():
            return 411, "An upload must tell its length."
        if int(length) > settings.max_images * (settings.max_file_bytes + 4096):
            return 413, "These files are too large together; send fewer at once."
        self._controller.sweep()
        if self._controller.uploads.full:
            return 507, "There is no room for uploads now; try again later."
        return None

    async def _heartbeat(
        self, tab: str, owner: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        # The framework notices a closed tab when it writes next, which takes 15 seconds.
        events: asyncio.Queue[Event] = asyncio.Queue()

        async def watch() -> None:
            while True:
                event = await receive()
                events.put_nowait(event)
                if event["type"] == "http.disconnect":
                    self._controller.left(tab)
                    return

        self._controller.visitors.came(tab, owner)
        watching = asyncio.get_running_loop().create_task(watch())
        try:
            await self._app(scope, events.get, send)
        finally:
            if not watching.done():
                watching.cancel()
                self._controller.left(tab)

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = str((scope.get("client") or ("",))[0])
        wait = ceil(self._guesses.wait(address))
        if wait:
            text = f"Too many wrong passwords came from this address; try again in {wait} s."
            await _answer(send, 429, text, {"retry-after": str(wait)})
            return
        # Counted before it is judged: many at once are many guesses.
        self._guesses.wrong(address)

        async def noting(event: Event) -> None:
            if event["type"] == "http.response.start" and event["status"] < 400:
                self._guesses.undo(address)
            await send(event)

        await self._app(scope, receive, noting)

    def _noting_uploads(self, owner: str, send: Send) -> Send:
        body = bytearray()
        status = 0

        async def noting(event: Event) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
            elif event["type"] == "http.response.body":
                body.extend(event.get("body", b""))
                if status == 200 and not event.get("more_body", False):
                    self._controller.uploads.came(owner, _paths(body))
            await send(event)

        return noting

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()
        while True:
            event = await receive()
            if event["type"] != "http.request":
                return
            body.extend(event.get("body", b""))
            if len(body) > MAX_EVENT:
                await _answer(send, 413, "That is too long.")
                return
            if not event.get("more_body", False):
                break
        if not self._harmless(body):
            await _answer(send, 400, "Only files that were uploaded here can be named.")
            return
        given = False

        async def again() -> Event:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, again, send)

    def _harmless(self, body: bytearray) -> bool:
        try:
            event = json.loads(body)
        except (ValueError, RecursionError):
            return False
        return all(self._uploaded(path) for path in _named_files(event))

    def _uploaded(self, path: Any) -> bool:
        try:
            return Path(path).is_absolute() and Path(path).resolve().is_relative_to(self._folder)
        except (OSError, TypeError, ValueError):
            return False


def _in_time(receive: Receive) -> Receive:
    """A ``receive`` of a body that comes in bounded time: a client that drips has left."""
    end = asyncio.get_running_loop().time() + BODY_SECONDS
    more = True

    async def bounded() -> Event:
        nonlocal more
        if not more:
            return await receive()
        try:
            async with asyncio.timeout_at(end):
                event = await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        more = event["type"] == "http.request" and event.get("more_body", False)
        return event

    return bounded


def _named_files(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            if "path" in found:
                yield found["path"]
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)


def _paths(body: bytearray) -> list[str]:
    try:
        found = json.loads(body)
    except ValueError:
        return []
    return [path for path in found if isinstance(path, str)] if isinstance(found, list) else []


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _hostname(host: str) -> str:
    return host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]


def _foreign(scope: Scope, host: str) -> bool:
    """Return whether a page of another site made a browser send this.

    A form or a script of any site can post here without asking first. Opening the page by a link
    is what a link is for. https://www.w3.org/TR/fetch-metadata/
    """
    reads = scope["method"] in ("GET", "HEAD")
    site = _header(scope, b"sec-fetch-site")
    if site:
        opens = reads and _header(scope, b"sec-fetch-mode") == "navigate"
        return site not in ("same-origin", "none") and not opens
    origin = _header(scope, b"origin")
    return bool(origin) and origin.partition("://")[2].lower() != host.lower()


def _unclear(scope: Scope) -> bool:
    """Return whether it is unclear where a request ends (RFC 9112, section 6.1)."""
    names = [name for name, _ in scope["headers"]]
    if b"transfer-encoding" not in names:
        return False
    return b"content-length" in names or scope.get("http_version") == "1.0"


def _cookie(scope: Scope) -> str:
    try:
        morsel = SimpleCookie(_header(scope, b"cookie")).get(COOKIE)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value


def _with_headers(send: Send, stranger: Scope | None) -> Send:
    """Add the security headers, and a cookie where a browser opens the page without one."""

    async def sending(event: Event) -> None:
        if event["type"] == "http.response.start":
            headers = list(event.get("headers", []))
            names = {name.lower() for name, _ in headers}
            for name, value in (
                (b"content-security-policy", _POLICY.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"referrer-policy", b"no-referrer"),
            ):
                if name not in names:
                    headers.append((name, value))
            if stranger is not None and stranger["path"] == "/":
                cookie = f"{COOKIE}={secrets.token_urlsafe(16)}; Path=/; HttpOnly; SameSite=Strict"
                headers.append((b"set-cookie", cookie.encode()))
            event = {**event, "headers": headers}
        await send(event)

    return sending


async def _answer(
    send: Send, status: int, text: str, more: Mapping[str, str] | None = None
) -> None:
    body = text.encode()
    headers = [
        (b"connection", b"close"),  # the body may not have been read
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in (more or {}).items()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
