"""Tools, tool choices and schemas of LangChain -> llavakit values; pure functions."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from typing_extensions import is_typeddict

from llavakit.answer_types import AnswerType
from llavakit.arguments import from_openai
from llavakit.errors import LlavaKitError, ParameterError, SchemaError, UnsupportedContentError
from llavakit.values import Tool


def to_openai_tools(tools: Sequence[Any], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """Convert functions, pydantic classes, LangChain tools and dicts to OpenAI's notation.

    Raises:
        UnsupportedContentError: a tool that only another provider's servers can run.
        ParameterError: ``tools`` is not a list, or holds something that is not a tool.
    """
    if not isinstance(tools, Iterable) or isinstance(tools, (str, Mapping)):
        raise ParameterError(
            f"Tools are given in a list, not as {type(tools).__name__}; write [tool]."
        )
    try:
        converted = [_converted(tool, strict) for tool in tools]
    except LlavaKitError:
        raise
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ParameterError(
            "tools holds something that is not a tool; give functions, pydantic classes, LangChain "
            f"tools or dicts in OpenAI's notation ({reason})."
        ) from error
    for tool in converted:
        if tool.get("type") != "function":
            raise UnsupportedContentError(
                f"The built-in tool {tool.get('type')!r} of another provider is not known here; "
                "give a function, a pydantic class or a LangChain tool."
            )
    return converted


def _converted(tool: Any, strict: bool | None) -> dict[str, Any]:
    """A tool in OpenAI's notation. LangChain takes every key of a TypedDict for required, and fails
    on ``NotRequired``: where some are not, the schema is our own.
    """
    if not is_typeddict(tool):
        return convert_to_openai_tool(tool, strict=strict)
    if not tool.__optional_keys__:
        try:
            return convert_to_openai_tool(tool, strict=strict)
        except TypeError:  # a TypedDict inside has some
            pass
    described = "" if tool.__doc__ == dict.__doc__ else inspect.getdoc(tool)
    known = {**AnswerType(tool).schema, "title": tool.__name__, "description": described or ""}
    return convert_to_openai_tool(known, strict=strict)


def to_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Convert whatever LangChain takes for a tool to llavakit's tools."""
    return from_openai(to_openai_tools(tools))


def tools_of_call(offered: Sequence[Any]) -> tuple[Tool, ...]:
    """Convert the tools of one call, which are dicts.

    Raises:
        ParameterError: one is a function or a class.
    """
    if not all(isinstance(tool, Mapping) for tool in offered):
        # A function would enter LangChain's cache key by its memory address.
        raise ParameterError("Tools of a call are dicts; give functions and classes to bind_tools.")
    return to_tools(offered)


def json_schema_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema in a dict: itself, or that of a tool of OpenAI's or Anthropic's.

    Raises:
        SchemaError: the dict is neither.
    """
    if _is_plain_schema(schema):
        return dict(schema)
    try:
        return convert_to_json_schema(dict(schema))
    except (ValueError, TypeError, LookupError) as error:
        raise SchemaError(
            "This dict is neither a JSON schema nor a tool in OpenAI's notation; a schema has a "
            f"type, properties, an enum or a $ref ({' '.join(str(error).split())[:120]})."
        ) from error


def _is_plain_schema(schema: Mapping[str, Any]) -> bool:
    # {"name": ..., "parameters": ...} and {"type": "function", ...} are tools, not schemas.
    if "function" in schema or ("name" in schema and "properties" not in schema):
        return False
    return any(
        key in schema for key in ("properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "const")
    ) or (isinstance(schema.get("type"), str) and "parameters" not in schema)
