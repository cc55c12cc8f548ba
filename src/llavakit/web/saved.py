"""One address of the page: its conversation to save, and a saved one to open again.

The page's own script calls it. Who asks is shown by the tab's token and the browser's cookie;
neither stands in an address, so that no link leads to a conversation.
"""

from __future__ import annotations

import asyncio
import json
from urllib.parse import parse_qs

from llavakit.errors import InputError
from llavakit.web.answering import sentence
from llavakit.web.controller import Controller
from llavakit.web.replies import Receive, Scope, Send, plain_text, reply, token_of
from llavakit.web.transcript import from_json, to_json, to_markdown
from llavakit.web.visitors import Visit

PATH = "/llavakit/chat"
_BODY_SECONDS = 60.0
_TYPES = {"json": "application/json", "md": "text/markdown; charset=utf-8"}


class SavedChats:
    """Gives a tab its conversation (GET), and replaces it by a saved one (POST).

    One conversation is read at a time: it may be large, and is in memory as a whole.

    Args:
        controller: knows the visitors and the limits.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._reading = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send, owner: str) -> None:
        """Answer one request of the browser that the cookie names."""
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        visit = self._controller.visitors.with_token(token_of(scope), owner)
        if visit is None:
            await reply(send, 404, plain_text("This chat is not here; load the page again."))
        elif scope["method"] == "POST":
            await self._post(visit, headers.get("content-length", b""), receive, send)
        else:
            known = headers.get("x-llavakit-known", b"").decode("latin-1").split(",")
            form = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("form", ["json"])
            await self._get(visit, form[0], frozenset(known), send)

    async def _get(self, visit: Visit, form: str, known: frozenset[str], send: Send) -> None:
        if form not in _TYPES:
            await reply(send, 400, plain_text("A chat is saved as json or as md."))
            return
        conversation = visit.conversation
        if form == "md":
            text = await asyncio.to_thread(to_markdown, conversation)
        else:
            text = await asyncio.to_thread(to_json, conversation, known)
        await reply(send, 200, (_TYPES[form], text.encode("utf-8", "replace")))

    async def _post(self, visit: Visit, length: bytes, receive: Receive, send: Send) -> None:
        most = self._controller.settings.max_saved_bytes
        if not length.isdigit():
            await reply(send, 411, plain_text("A saved chat must declare its length."))
        elif int(length) > most:
            await reply(send, 413, plain_text(f"A saved chat has at most {most >> 20} MiB."))
        elif self._reading:
            await reply(
                send, 503, plain_text("Another chat is being opened; try again in a moment.")
            )
        else:
            self._reading = True
            try:
                status, content = await self._opened(visit, int(length), receive)
            finally:
                self._reading = False
            await reply(send, status, content)

    async def _opened(
        self, visit: Visit, length: int, receive: Receive
    ) -> tuple[int, tuple[str, bytes]]:
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await _body(receive, length)
        except TimeoutError:
            return 408, plain_text("The saved chat came too slowly.")
        try:
            visit.free()
            turns = await asyncio.to_thread(from_json, body, self._controller.settings)
            self._controller.restore(visit, turns)
        except InputError as error:
            return 400, plain_text(sentence(error))
        return 200, (_TYPES["json"], json.dumps({"id": visit.conversation.name}).encode())


async def _body(receive: Receive, length: int) -> bytearray:
    body = bytearray()
    while len(body) <= length:
        event = await receive()
        body.extend(event.get("body", b""))
        if event["type"] != "http.request" or not event.get("more_body", False):
            break
    return body
