"""What one call asks for: constructor settings and call-time arguments, merged and checked.

Pure functions over dictionaries; an argument that nobody knows is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage

from llavakit.arguments import check_known, to_params, to_tool_choice, unaliased
from llavakit.errors import ParameterError
from llavakit.langchain.messages import OpenDocument, check_order, not_opened, to_messages
from llavakit.langchain.tools import to_tools
from llavakit.values import Message, SamplingParams

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
