"""The edges of HTTP: framing that is not clear, HEAD, and slashes at the end of a path.

ASGI, in front of all routes, also of those that there are not.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llavakit.serving.errors import Refusal


class Edges:
    """Refuses requests whose end is not clear, and lets equal paths be equal.

    - ``Content-Length`` with ``Transfer-Encoding``, or the latter in HTTP/1.0: two servers in a
      row may read different requests out of it (RFC 9112, section 6.1). The connection ends.
    - ``HEAD`` is answered where ``GET`` is, without a body (RFC 9110, section 9.3.2).
    - A path may end with slashes.

    Args:
        app: what answers the rest.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _unclear(scope):
            refused = Refusal(
                400,
                "The request has Transfer-Encoding beside Content-Length, or in HTTP/1.0; send "
                "one of them, in HTTP/1.1.",
                code="unclear_framing",
                headers={"Connection": "close"},
            )
            await refused.response()(scope, receive, send)
            return
        path = scope["path"].rstrip("/") or "/"
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET", "path": path}
            await self._app(scope, receive, _without_body(send))
        else:
            await self._app({**scope, "path": path}, receive, send)


def _unclear(scope: Scope) -> bool:
    names = [name for name, _ in scope["headers"]]
    if b"transfer-encoding" not in names:
        return False
    return b"content-length" in names or scope.get("http_version") == "1.0"


def _without_body(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return sending
