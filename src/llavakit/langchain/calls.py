"""The arguments of one call: constructor settings and call-time arguments, merged and checked.

Pure functions over dictionaries; an unknown argument is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from llavakit.arguments import Call, merged, to_options, to_params
from llavakit.documents.message import OpenAttachment
from llavakit.errors import ParameterError
from llavakit.langchain.messages import check_order, not_opened, to_messages
from llavakit.langchain.tools import to_tools
from llavakit.prompts.conversation import check_answerable

_FRAMEWORK = ("stream",)  # LangChain's own; it has already used it when the arguments arrive here


def to_call(
    messages: Sequence[BaseMessage],
    settings: Mapping[str, Any],
    arguments: Mapping[str, Any],
    open_document: OpenAttachment = not_opened,
) -> Call:
    """Resolve the arguments of one call of the model.

    Args:
        messages: the conversation.
        settings: sampling settings and timeout of the model object; None means "not set".
        arguments: arguments of the call, which win; None means "not set" here too.
        open_document: returns the pages of documents that are not opened yet.

    Raises:
        ParameterError: an unknown argument, or a value out of range.
        InputError: messages that cannot be translated.
    """
    given = merged(settings, arguments, _FRAMEWORK)
    offered = given.get("tools") or ()
    if not all(isinstance(tool, Mapping) for tool in offered):
        # A function would enter LangChain's cache key by its memory address.
        raise ParameterError("Tools of a call are dicts; give functions and classes to bind_tools.")
    tools = to_tools(offered)
    options = to_options(given, tools)
    conversation = to_messages(messages, open_document)
    check_order(conversation)
    check_answerable(conversation, continues=options["continue_final_message"])
    return Call(conversation, to_params(given), options)
