"""How tools and schemas are described to a model whose template knows neither.

The calls are written as ``<tool_call>{"name":...,"arguments":{...}}</tool_call>``, the
notation that the Hermes and Qwen families were trained on; models that were not (Vicuna)
are held to it by constrained decoding. JSON is compact everywhere: white space costs
tokens, and a weak model that may emit it emits little else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llavakit.errors import InputError
from llavakit.values import Tool

CALL_START = "<tool_call>"
CALL_END = "</tool_call>"
RESULT_START = "<tool_response>"
RESULT_END = "</tool_response>"


def compact_json(value: Any) -> str:
    """Serialise JSON without white space, non-ASCII characters as they are.

    Raises:
        InputError: the value holds something that JSON cannot.
    """
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"A tool, a schema or a call's arguments cannot be written as JSON ({error}); use "
            "dicts with strings as keys, lists, strings, numbers, booleans and None."
        ) from error


def prompt_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a JSON schema that a model should read: no generated titles.

    pydantic gives every object and property a ``title`` that repeats its name. A property
    that is itself *named* ``title`` is kept.
    """
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "title" and isinstance(value, str):
            continue
        if key in ("properties", "$defs", "definitions") and isinstance(value, Mapping):
            result[key] = {name: _reduced(part) for name, part in value.items()}
        else:
            result[key] = _reduced(value)
    return result


def _reduced(value: Any) -> Any:
    if isinstance(value, Mapping):
        return prompt_schema(value)
    if isinstance(value, list):
        return [_reduced(item) for item in value]
    return value


def tools_prompt(tools: Sequence[Tool]) -> str:
    """Return the passage of the system text that offers the tools; one line of JSON for each."""
    lines = [
        compact_json(
            {
                "name": tool.name,
                "description": tool.description,
                "parameters": prompt_schema(tool.parameters),
            }
        )
        for tool in tools
    ]
    return "\n".join(
        [
            "You can call these tools:",
            *lines,
            f'To call one, answer {CALL_START}{{"name":...,"arguments":{{...}}}}{CALL_END}.',
        ]
    )


def format_tool_call(name: str, arguments: Mapping[str, Any]) -> str:
    """Format one call as the model writes it, for the history of a conversation."""
    return f"{CALL_START}{compact_json({'name': name, 'arguments': arguments})}{CALL_END}"


def format_tool_result(content: str) -> str:
    """Format a tool's result as the model reads it, in a turn of the user."""
    return f"{RESULT_START}{content}{RESULT_END}"


def schema_prompt(schema: Mapping[str, Any]) -> str:
    """Return the passage of the system text that asks for JSON of a given schema."""
    return f"Answer with JSON of this schema: {compact_json(prompt_schema(schema))}"
