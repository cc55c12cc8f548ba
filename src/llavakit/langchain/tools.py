"""Tools, tool choices and schemas of LangChain -> llavakit values; pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from llavakit.arguments import from_openai
from llavakit.errors import ParameterError, SchemaError, UnsupportedContentError
from llavakit.values import Tool


def to_openai_tools(tools: Sequence[Any], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """Functions, pydantic classes, LangChain tools and dicts in OpenAI's notation.

    Raises:
        UnsupportedContentError: a tool that only another provider's servers can run.
        ParameterError: no list of tools.
    """
    if not isinstance(tools, Iterable) or isinstance(tools, (str, Mapping)):
        raise ParameterError(f"Tools are given in a list, not as {type(tools).__name__}.")
    converted = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
    for tool in converted:
        if tool.get("type") != "function":
            raise UnsupportedContentError(
                f"The built-in tool {tool.get('type')!r} of another provider is not known here; "
                "give a function, a pydantic class or a LangChain tool."
            )
    return converted


def to_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Tools of llavakit from whatever LangChain takes for a tool."""
    return from_openai(to_openai_tools(tools))


def json_schema_of(schema: Any, *, strict: bool | None = None) -> dict[str, Any]:
    """The JSON schema of a pydantic class, a TypedDict, a function or a dict.

    Raises:
        SchemaError: nothing that has a schema.
    """
    if isinstance(schema, type) and is_basemodel_subclass(schema) and not strict:
        # As pydantic writes it: LangChain's converter would inline what $ref points to,
        # which loses recursive models.
        kind: Any = schema
        write = getattr(kind, "model_json_schema", None) or kind.schema
        return dict(write())
    if isinstance(schema, Mapping) and _is_plain_schema(schema):
        return dict(schema)
    try:
        return convert_to_json_schema(schema, strict=strict)
    except (ValueError, TypeError) as error:
        raise SchemaError(
            "A JSON schema cannot be made from this; give a pydantic class, a TypedDict or a "
            f"JSON schema ({' '.join(str(error).split())[:120]})."
        ) from error


def _is_plain_schema(schema: Mapping[str, Any]) -> bool:
    # {"name": ..., "parameters": ...} and {"type": "function", ...} are tools, not schemas.
    if "function" in schema or ("name" in schema and "properties" not in schema):
        return False
    return any(
        key in schema for key in ("properties", "$ref", "anyOf", "oneOf", "allOf", "enum")
    ) or (isinstance(schema.get("type"), str) and "parameters" not in schema)
