"""What one call asks for: constructor settings and call-time arguments, merged and checked.

Pure functions over dictionaries; an argument that nobody knows is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from langchain_core.messages import BaseMessage

from llavakit.errors import ParameterError
from llavakit.langchain.messages import OpenDocument, check_order, not_opened, to_messages
from llavakit.langchain.tools import to_schema, to_tool_choice, to_tools
from llavakit.values import Message, SamplingParams

ALIASES = {
    "model_name": "model",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "stop_sequences": "stop",
    "repeat_penalty": "repetition_penalty",
    "request_timeout": "timeout",
    "num_ctx": "context_length",
}
"""Names that other chat models use for the same settings."""

_REQUEST = ("tools", "tool_choice", "parallel_tool_calls", "timeout", "response_format")
_FRAMEWORK = ("stream",)  # LangChain's own; it has done its work when the arguments come here
CALL_ARGUMENTS = (*SamplingParams.names(), "top_logprobs", *_REQUEST)


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of ``Backend.generate`` and its sisters."""

    messages: tuple[Message, ...]
    params: SamplingParams
    options: dict[str, Any]


def to_call(
    messages: Sequence[BaseMessage],
    settings: Mapping[str, Any],
    arguments: Mapping[str, Any],
    open_document: OpenDocument = not_opened,
) -> Call:
    """One call of the model.

    Args:
        messages: the conversation.
        settings: sampling settings and timeout of the model object; None is "not set".
        arguments: what the call itself says, which wins; None is "not set" here too.
        open_document: gives the pages of documents that are still closed.

    Raises:
        ParameterError: an unknown argument, or a value out of range.
        InputError: messages that cannot be honoured.
    """
    given = unaliased(arguments)
    check_known(given, (*CALL_ARGUMENTS, *_FRAMEWORK), "This call")
    merged = {**settings, **{name: value for name, value in given.items() if value is not None}}
    offered = merged.get("tools") or ()
    if not all(isinstance(tool, Mapping) for tool in offered):
        # A function would enter LangChain's cache key by its memory address.
        raise ParameterError("Tools of a call are dicts; give functions and classes to bind_tools.")
    tools = to_tools(offered)
    options = {
        "tools": tools,
        "tool_choice": to_tool_choice(merged.get("tool_choice"), tools),
        "parallel_tool_calls": merged.get("parallel_tool_calls", True),
        "timeout": merged.get("timeout"),
    }
    conversation = to_messages(messages, open_document)
    check_order(conversation)
    return Call(conversation, to_params(merged), options)


def to_params(settings: Mapping[str, Any]) -> SamplingParams:
    """The sampling parameters among ``settings``; what is missing or None takes its default.

    Raises:
        ParameterError: a value out of range, or two that contradict each other.
    """
    values = {
        name: settings[name]
        for name in SamplingParams.names()
        if name != "logprobs" and settings.get(name) is not None
    }
    values["logprobs"] = _logprobs(settings.get("logprobs"), settings.get("top_logprobs"))
    schema = to_schema(settings.get("response_format"))
    if schema is not None:
        if values.get("json_schema") is not None:
            raise ParameterError("Give response_format or json_schema, not both.")
        values["json_schema"] = schema
    return SamplingParams(**values)


def unaliased(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by their own names (see :data:`ALIASES`).

    Raises:
        ParameterError: one setting given twice, under two names.
    """
    result: dict[str, Any] = {}
    for name, value in arguments.items():
        real = ALIASES.get(name, name)
        if real in result and result[real] != value:
            raise ParameterError(f"{real} is given twice, once as {name}; give it once.")
        result[real] = value
    return result


def check_known(arguments: Mapping[str, Any], known: Sequence[str], who: str) -> None:
    """Refuses an argument that is not among ``known``, with the nearest name as advice."""
    unknown = sorted(set(arguments) - set(known))
    if not unknown:
        return
    near = get_close_matches(unknown[0], [*known, *ALIASES], n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(known)}."
    raise ParameterError(f"{who} does not know the argument {unknown[0]!r}; {advice}")


def _logprobs(logprobs: bool | int | None, top: int | None) -> int | None:
    # OpenAI's pair is (True, n); llavakit's own is one number, of alternatives.
    if logprobs is False or logprobs is None:
        if top:
            raise ParameterError("top_logprobs needs logprobs=True.")
        return None
    return (top or 0) if logprobs is True else logprobs
