"""What a server says of itself: which kind it is, and which models it has."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
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


async def settled(dialect: Dialect, transport: Transport) -> Dialect:
    """Return how this one server is told of tools, calls and results: llama.cpp, vLLM and Ollama
    drop some of them silently where the model's template has no place for them.

    Raises:
        LlavaKitError: the server cannot say it for now.
    """
    if dialect.can_speak and not dialect.speaks and await _drops_tools(dialect, transport):
        return dialect.with_tools_in_prompt()
    return dialect


_PROBE = {
    "type": "function",
    "function": {"name": "probe", "description": "A tool.", "parameters": {"type": "object"}},
}


_OF_TOOLS = ("supports_tools", "supports_tool_calls")


async def _drops_tools(dialect: Dialect, transport: Transport) -> bool:
    try:
        if dialect.name == "llamacpp":
            can = (await _properties(transport)).get("chat_template_caps")
            return isinstance(can, Mapping) and any(can.get(name) is False for name in _OF_TOOLS)
        if dialect.name == "ollama":
            shown = await transport.json("POST", "/api/show", {"model": transport.config.model})
            can = shown.get("capabilities") if isinstance(shown, Mapping) else None
            return isinstance(can, list) and "tools" not in can
        return await _prompt_drops_tools(transport)
    except RemoteError as error:
        if error.status is None or (error.status >= 500 and error.status != 501):
            raise
        return False  # it has no such route, or a gateway keeps it


async def _prompt_drops_tools(transport: Transport) -> bool:
    """Whether a tool, a call's arguments or its result make the prompt of a vLLM no longer: it does
    not report what its template has a place for.
    """

    async def length(*messages: Mapping[str, Any], tools: Sequence[Any] = ()) -> int:
        asked = [{"role": "user", "content": "Hi"}, *messages]
        return await counted(transport, asked, list(tools), {})

    def called(words: str, result: str) -> list[Mapping[str, Any]]:
        function = {"name": "probe", "arguments": json.dumps({"words": words})}
        call = {"id": "probe0001", "type": "function", "function": function}
        told = {"role": "tool", "tool_call_id": call["id"], "content": result}
        return [{"role": "assistant", "content": None, "tool_calls": [call]}, told]

    if await length(tools=[_PROBE]) == await length():
        return True
    short = await length(*called("a", "a"), tools=[_PROBE])
    longer = called("a " * 9, "a"), called("a", "a " * 9)
    return short in [await length(*one, tools=[_PROBE]) for one in longer]


async def context_of_llamacpp(transport: Transport) -> int | None:
    """The context of the model that ``llama-server`` has loaded; None if it does not say it."""
    try:
        settings = (await _properties(transport)).get("default_generation_settings")
    except LlavaKitError:
        return None
    length = settings.get("n_ctx") if isinstance(settings, Mapping) else None
    return length if isinstance(length, int) and length > 0 else None


async def context_of_ollama(transport: Transport) -> int | None:
    """The context that Ollama has given to the model, which is loaded for it; None where it does
    not say it.
    """
    found = await _running_in_ollama(transport)
    if found is None:
        body = {"model": transport.config.model, "messages": [], "stream": False}
        await transport.json("POST", ollama.PATH, body)
        found = await _running_in_ollama(transport)
    length = None if found is None else found.get("context_length")
    return length if isinstance(length, int) and length > 0 else None


async def _running_in_ollama(transport: Transport) -> Mapping[str, Any] | None:
    try:
        reply = await transport.json("GET", "/api/ps", patient=False)
    except LlavaKitError:
        return None
    models = reply.get("models") if isinstance(reply, Mapping) else None
    names = (transport.config.model, f"{transport.config.model}:latest")
    running = (one for one in models or () if isinstance(one, Mapping))
    return next((one for one in running if one.get("name") in names), None)


async def _properties(transport: Transport) -> Mapping[str, Any]:
    """The properties of a ``llama-server``."""
    reply = await transport.json("GET", "/props")
    return reply if isinstance(reply, Mapping) else {}


async def counted_by_template(
    transport: Transport, messages: list[Any], tools: list[Any], more: Mapping[str, Any]
) -> int:
    """Tokens of the text that ``llama-server`` makes of messages; ``more`` are further fields.

    Raises:
        LlavaKitError: the server reports none.
    """
    body = {"messages": messages, **({"tools": tools} if tools else {}), **more}
    reply = await transport.json("POST", "/apply-template", body)
    prompt = reply.get("prompt") if isinstance(reply, Mapping) else None
    text = {"content": prompt, "add_special": True, "parse_special": True}
    found = await transport.json("POST", "/tokenize", text) if isinstance(prompt, str) else None
    tokens = found.get("tokens") if isinstance(found, Mapping) else None
    if not isinstance(tokens, list):
        raise RemoteError(f"The server at {transport.config.address} gave no count of tokens.")
    return len(tokens)


async def counted(
    transport: Transport, messages: list[Any], tools: list[Any], more: Mapping[str, Any]
) -> int:
    """Tokens of a prompt, by the server's own tokenizer; ``more`` are further fields.

    Raises:
        LlavaKitError: the server reports none.
    """
    body: dict[str, Any] = {"model": transport.config.model, "messages": messages, **more}
    if tools:
        body["tools"] = tools
    reply = await transport.json("POST", "/tokenize", body)
    count = reply.get("count") if isinstance(reply, Mapping) else None
    if not isinstance(count, int):
        raise RemoteError(f"The server at {transport.config.address} gave no count of tokens.")
    return count
