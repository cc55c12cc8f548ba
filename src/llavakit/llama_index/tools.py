"""Tools of LlamaIndex -> OpenAI's notation -> llavakit tools; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llavakit.arguments import from_openai
from llavakit.errors import UnsupportedContentError
from llavakit.values import Tool


def to_openai_tools(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Convert the framework's tools, or dicts in OpenAI's notation, to OpenAI's notation.

    Raises:
        UnsupportedContentError: neither a tool with ``metadata`` nor a dict of a function.
    """
    return [_openai_tool(tool) for tool in tools]


def to_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Convert the framework's tools, or dicts, to llavakit's tools."""
    return from_openai(to_openai_tools(tools))


def _openai_tool(tool: Any) -> dict[str, Any]:
    if isinstance(tool, Mapping):
        if tool.get("type") == "function" and isinstance(tool.get("function"), Mapping):
            return dict(tool)
        raise UnsupportedContentError(
            f"A tool is a dict of type {tool.get('type')!r}; give a FunctionTool, or a dict "
            '{"type": "function", "function": {...}}.'
        )
    metadata = getattr(tool, "metadata", None)
    if metadata is None or not callable(getattr(metadata, "to_openai_tool", None)):
        raise UnsupportedContentError(
            f"A tool cannot be made from {type(tool).__name__}; use FunctionTool.from_defaults."
        )
    return dict(metadata.to_openai_tool(skip_length_check=True))
