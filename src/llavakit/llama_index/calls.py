"""The arguments of one call: constructor settings and call-time arguments, merged and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from llavakit.arguments import Call, merged, to_options, to_params
from llavakit.documents.message import OpenAttachment
from llavakit.llama_index.messages import not_opened, to_messages
from llavakit.llama_index.tools import to_tools
from llavakit.prompts.conversation import check_answerable


def to_call(
    messages: Sequence[ChatMessage],
    settings: Mapping[str, Any],
    arguments: Mapping[str, Any],
    open_document: OpenAttachment = not_opened,
) -> Call:
    """Resolve the arguments of one call of the model.

    Args:
        messages: the conversation.
        settings: sampling settings and timeout of the model object; None means "not set".
        arguments: arguments of the call, which win; None means "not set" here too.
        open_document: returns the pages of a document.

    Raises:
        ParameterError: an unknown argument, or a value out of range.
        InputError: messages that cannot be translated.
    """
    given = merged(settings, arguments)
    tools = to_tools(given.get("tools") or ())
    options = to_options(given, tools)
    conversation = to_messages(messages, open_document)
    check_answerable(conversation, continues=options["continue_final_message"])
    return Call(conversation, to_params(given), options)
