"""Lengths of prompts and of contexts, in tokens, as servers report them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llavakit.errors import LlavaKitError, RemoteError
from llavakit.remote import ollama
from llavakit.remote.transport import Transport


async def context_of_llamacpp(transport: Transport) -> int | None:
    """The context of the model that ``llama-server`` has loaded; None if it does not say it."""
    try:
        settings = (await properties(transport)).get("default_generation_settings")
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


async def properties(transport: Transport) -> Mapping[str, Any]:
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
