"""Tools for servers that find no calls by themselves: written into the prompt, read from the text.

vLLM and SGLang find calls where they were started with a parser of them, ``llama-server`` and
Ollama where the model's chat template knows tools; templates of LLaVA know none. There the tools
are described in the prompt, as they are for a model here, and what the server has holds the answer
to calls:

- vLLM: a Lark grammar of our own notation, free text included.
- llama.cpp and Ollama: the schema of one call, where one is demanded; its answer is bare JSON,
  without the marks of our notation. Where the model may choose, nothing holds it, and its answer
  is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llavakit.engine.grammar_text import grammar_of
from llavakit.remote.dialects import Dialect, schema_field
from llavakit.values import Request, Tool


def speaks_of_tools(request: Request) -> bool:
    """Return whether a model must know tools to read a request: it offers some, or some were
    called before.
    """
    said = request.messages
    return bool(request.tools) or any(one.tool_calls or one.role == "tool" for one in said)


def offers_text_tools(dialect: Dialect, request: Request) -> bool:
    """Return whether calls are read out of the answer's text."""
    return bool(request.tools) and request.tool_choice != "none" and not dialect.takes_tools


def answers_bare_call(dialect: Dialect, request: Request) -> bool:
    """Return whether the answer is the JSON of one call, without the marks around it."""
    demanded = request.tool_choice not in ("auto", "none")
    return offers_text_tools(dialect, request) and dialect.speaks == "schema" and demanded


def constraint_of_calls(dialect: Dialect, request: Request) -> dict[str, Any]:
    """Return the fields that hold an answer to calls of the tools.

    Raises:
        SchemaError: the parameters of a tool are not JSON.
    """
    if dialect.speaks == "grammar":
        return {"structured_outputs": {"grammar": grammar_of(request)}}
    if answers_bare_call(dialect, request):
        chosen = [tool for tool in request.tools if request.tool_choice in ("required", tool.name)]
        return schema_field("call", call_schema(chosen))
    return {}


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """Return the JSON schema of a call of one of several tools."""
    return {
        "anyOf": [_call(tool, f"#/$defs/tool{number}") for number, tool in enumerate(tools)],
        "$defs": {
            f"tool{number}": _moved(_parameters(tool), f"#/$defs/tool{number}")
            for number, tool in enumerate(tools)
        },
    }


def _call(tool: Tool, place: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": {"$ref": place}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _parameters(tool: Tool) -> dict[str, Any]:
    return {"type": "object", "properties": {}, "additionalProperties": False, **tool.parameters}


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references into itself are right where it is a part of another one."""
    if isinstance(schema, Mapping):
        return {
            key: place + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, place)
            for key, value in schema.items()
        }
    return [_moved(one, place) for one in schema] if isinstance(schema, (list, tuple)) else schema
