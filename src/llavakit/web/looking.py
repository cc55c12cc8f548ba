"""The route by which the page asks where a model looked; the page's own script calls it."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import asdict
from urllib.parse import parse_qs

from llavakit.errors import InputError, LlavaKitError, ParameterError, QueueFullError
from llavakit.web.answering import sentence
from llavakit.web.controller import Controller
from llavakit.web.maps import ShownMap
from llavakit.web.replies import Receive, Scope, Send, plain_text, reply, token_of

logger = logging.getLogger(__name__)

PATH = "/llavakit/map"


class MapRoute:
    """Answers with a map as JSON (GET); the request that is given up frees the model.

    Args:
        controller: knows the visitors and computes the maps.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def __call__(self, scope: Scope, receive: Receive, send: Send, owner: str) -> None:
        """Answer one request of the browser that the cookie names."""
        visit = self._controller.visitors.with_token(token_of(scope), owner)
        if visit is None:
            await reply(send, 404, plain_text("This chat is not here; load the page again."))
            return
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        given = {name: values[0] for name, values in query.items()}
        turn, image = given.get("turn", ""), given.get("image", "")
        if not turn.isdecimal() or not (image == "" or image.isdecimal()):
            await reply(send, 400, plain_text("turn and image are numbers, from 0."))
            return
        looking = asyncio.get_running_loop().create_task(
            self._controller.look(
                visit,
                given.get("chat", ""),
                int(turn),
                int(image) if image else None,
                given.get("word", ""),
            )
        )
        visit.look(looking)
        gone = asyncio.get_running_loop().create_task(_disconnected(receive))
        try:
            await asyncio.wait([looking, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not looking.done():
                looking.cancel()
        await asyncio.wait([looking])
        await reply(send, *_answer(looking))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _answer(looking: asyncio.Task[ShownMap]) -> tuple[int, tuple[str, bytes]]:
    if looking.cancelled():  # nobody reads this, or another map is asked for already
        return 409, plain_text("Another map was asked for.")
    error = looking.exception()
    if error is None:
        return 200, ("application/json", json.dumps(asdict(looking.result())).encode())
    if not isinstance(error, LlavaKitError):
        logger.error("A map failed", exc_info=error)
    if isinstance(error, QueueFullError):
        return 503, plain_text(sentence(error))
    return 400 if isinstance(error, (InputError, ParameterError)) else 500, plain_text(
        sentence(error)
    )
