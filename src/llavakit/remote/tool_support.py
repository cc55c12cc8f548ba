"""Whether a server shows tools, calls and results to the model, which its chat template decides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llavakit.errors import RemoteError
from llavakit.remote.dialects import Dialect
from llavakit.remote.lengths import counted, properties
from llavakit.remote.transport import Transport

_PROBE = {
    "type": "function",
    "function": {"name": "probe", "description": "A tool.", "parameters": {"type": "object"}},
}
_OF_TOOLS = ("supports_tools", "supports_tool_calls")
"""What ``llama-server`` reports of its template."""


async def settled(dialect: Dialect, transport: Transport) -> Dialect:
    """Return how this one server is told of tools, calls and results: llama.cpp, vLLM and Ollama
    drop some of them silently where the model's template has no place for them.

    Raises:
        LlavaKitError: the server cannot say it for now.
    """
    if dialect.can_speak and not dialect.speaks and await _drops_tools(dialect, transport):
        return dialect.with_tools_in_prompt()
    return dialect


async def _drops_tools(dialect: Dialect, transport: Transport) -> bool:
    try:
        if dialect.name == "llamacpp":
            can = (await properties(transport)).get("chat_template_caps")
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
