"""What one call asks for: constructor settings and call-time arguments, merged and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from llavakit.arguments import check_known, to_params, to_tool_choice, unaliased
from llavakit.errors import MessageError
from llavakit.llama_index.messages import OpenDocument, not_opened, to_messages
from llavakit.llama_index.tools import to_tools
from llavakit.values import Message, SamplingParams

_REQUEST = ("tools", "tool_choice", "parallel_tool_calls", "timeout", "response_format")
CALL_ARGUMENTS = (*SamplingParams.names(), "top_logprobs", *_REQUEST)


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of ``Backend.generate`` and its sisters."""

    messages: tuple[Message, ...]
    params: SamplingParams
    options: dict[str, Any]


def to_call(
    messages: Sequence[ChatMessage],
    settings: Mapping[str, Any],
    arguments: Mapping[str, Any],
    open_document: OpenDocument = not_opened,
) -> Call:
    """One call of the model.

    Args:
        messages: the conversation.
        settings: sampling settings and timeout of the model object; None is "not set".
        arguments: what the call itself says, which wins; None is "not set" here too.
        open_document: gives the pages of documents.

    Raises:
        ParameterError: an unknown argument, or a value out of range.
        InputError: messages that cannot be honoured.
    """
    given = unaliased(arguments)
    check_known(given, CALL_ARGUMENTS, "This call")
    merged = {**settings, **{name: value for name, value in given.items() if value is not None}}
    tools = to_tools(merged.get("tools") or ())
    parallel = merged.get("parallel_tool_calls")
    options = {
        "tools": tools,
        "tool_choice": to_tool_choice(merged.get("tool_choice"), tools),
        "parallel_tool_calls": True if parallel is None else parallel,
        "timeout": merged.get("timeout"),
    }
    conversation = to_messages(messages, open_document)
    if not any(message.role != "system" for message in conversation):
        raise MessageError("The conversation is empty; give at least one user message.")
    return Call(conversation, to_params(merged), options)
