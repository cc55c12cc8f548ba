"""What a server says of itself: which kind it is, and which models it has."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llavakit.errors import LlavaKitError, RemoteError
from llavakit.remote import ollama
from llavakit.remote.dialects import DIALECTS, Dialect
from llavakit.remote.transport import Transport

log = logging.getLogger(__name__)

_BY_OWNER = {
    "llavakit": "llavakit",
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llamacpp",
    "organization_owner": "lmstudio",
}
"""What servers call themselves in their list of models."""
_BY_ROUTE = (("/load_model", "transformers"), ("/get_server_info", "sglang"))
"""Routes of servers whose list of models does not say what they are."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model on a server.

    Attributes:
        id: its name there.
        root: what it was loaded from, where reported.
        context_length: tokens of prompt and answer; None where not reported.
        owner: who offers it; servers name themselves here.
    """

    id: str
    root: str = ""
    context_length: int | None = None
    owner: str = ""


async def served(transport: Transport) -> list[ServedModel]:
    """The models of a server.

    Raises:
        LlavaKitError: the server reports none.
    """
    reply = await transport.json("GET", "/v1/models", patient=False)
    models = reply.get("data") if isinstance(reply, Mapping) else None
    if not isinstance(models, list):
        raise RemoteError(
            f"The server at {transport.config.address} lists no models; is base_url right?"
        )
    return [_served(one) for one in models if isinstance(one, Mapping)]


def _served(model: Mapping[str, Any]) -> ServedModel:
    limit = model.get("max_model_len")
    return ServedModel(
        str(model.get("id")),
        str(model.get("root") or ""),
        limit if isinstance(limit, int) and limit > 0 else None,
        str(model.get("owned_by") or ""),
    )


async def detect(transport: Transport) -> Dialect:
    """Which kind of server this is: as it was named, else by its models' owner or its routes.

    Raises:
        LlavaKitError: it cannot be reached, or refuses the key.
    """
    named = transport.config.dialect
    if named is None:
        return await _found(transport)
    if named == "ollama":
        _warn_of_old(transport, await _asked(transport, "/api/version"))
    return DIALECTS[named]


async def _found(transport: Transport) -> Dialect:
    try:
        owners = {model.owner for model in await served(transport)}
    except RemoteError as error:
        if error.status is None or error.status in (401, 403) or 300 <= error.status < 400:
            raise
        owners = set()  # transformers serve fails here when it is offline
    for owner, name in _BY_OWNER.items():
        if owner in owners:
            return DIALECTS[name]
    # Ollama's models are owned by their publishers, mostly by its "library".
    version = await _asked(transport, "/api/version")
    if isinstance(version, str):
        _warn_of_old(transport, version)
        return DIALECTS["ollama"]
    try:
        document = await transport.json("GET", "/openapi.json", patient=False)
        routes = document["paths"] if isinstance(document, Mapping) else {}
    except (LlavaKitError, KeyError):
        routes = {}
    found = (name for route, name in _BY_ROUTE if route in routes)
    return DIALECTS[next(found, "generic")]


async def _asked(transport: Transport, path: str) -> Any:
    """The version that a path answers; None if it does not."""
    try:
        reply = await transport.json("GET", path, patient=False)
    except LlavaKitError:
        return None
    return reply.get("version") if isinstance(reply, Mapping) else None


def _warn_of_old(transport: Transport, version: Any) -> None:
    """Warn of an Ollama that takes parts of a prompt away and cannot be told not to."""
    if not isinstance(version, str):
        return  # it answers nothing, and will not answer the chat either
    if tuple(map(int, re.findall(r"\d+", version)[:3])) >= ollama.OLDEST:
        return
    log.warning(
        "the Ollama at %s (version %s) takes the beginning of a prompt away where it does not "
        "fit, and says nothing; from version %s on such a prompt is an error here",
        transport.config.address,
        version,
        ".".join(map(str, ollama.OLDEST)),
    )
