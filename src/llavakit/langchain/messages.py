"""LangChain messages -> llavakit messages; pure functions that open nothing by themselves.

The order of text and images is kept, in every kind of message. Nothing is dropped but
reasoning blocks of earlier answers (see :data:`llavakit.langchain.content_blocks.REASONING_TYPES`);
what cannot be translated raises an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, cast

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolMessage,
)

from llavakit.documents.message import Attachment, OpenAttachment
from llavakit.errors import MessageError, UnsupportedContentError
from llavakit.langchain.chunks import written
from llavakit.langchain.content_blocks import INVALID_CALL, ContentPart, ToolResult, read_block
from llavakit.values import Message, Part, Text, ToolCall

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
}


def not_opened(document: Attachment) -> NoReturn:
    """Refuse a document where nothing may be opened."""
    raise UnsupportedContentError(
        "Counting tokens does not fetch documents; open the pages first "
        "(llavakit.documents.open_pages) and count with those."
    )


def to_messages(
    messages: Iterable[BaseMessage], open_document: OpenAttachment = not_opened
) -> tuple[Message, ...]:
    """Convert LangChain messages to llavakit's, in their order; any stretch of a conversation.

    Args:
        messages: the conversation.
        open_document: returns the pages of a document.

    Raises:
        MessageError: an unknown role, or a block that its message must not have.
        UnsupportedContentError: a content block that LLaVA cannot take.
        ImageError: an object that cannot be read as an image.
    """
    turns: list[Message] = []
    broken: set[str | None] = set()
    for message in messages:
        broken.update(call["id"] for call in _invalid_calls(message))
        if isinstance(message, ToolMessage) and message.tool_call_id in broken:
            # LangChain's agents answer invalid calls, to say what was wrong with them. The model
            # reads such a call as text, and so the answer to it as a user's message.
            message = HumanMessage(message.content, name=message.name)
        turns += _turns(message, open_document)
    return tuple(turns)


def content_parts(content: Any) -> list[ContentPart]:
    """Split a message's content, which is a string, or a list of strings and blocks."""
    if isinstance(content, str):
        return [Text(content)] if content else []
    if isinstance(content, Mapping):
        return read_block(content)
    parts: list[ContentPart] = []
    for block in content:
        if isinstance(block, str):
            parts.append(Text(block))
        elif isinstance(block, Mapping):
            parts.extend(read_block(block))
        else:
            raise UnsupportedContentError(
                f"A message's content holds strings and blocks (dicts), not {type(block).__name__}"
                '; write {"type": "text", "text": ...} or {"type": "image", ...}.'
            )
    return parts


def _turns(message: BaseMessage, open_document: OpenAttachment) -> list[Message]:
    role = role_of(message)
    parts: list[Part] = []
    calls = {call.id: call for call in _calls(message)}
    results: list[Message] = []
    for part in content_parts(message.content):
        if isinstance(part, ToolCall):
            _only_in(role, "assistant", "a tool call")
            calls.setdefault(part.id, part)
        elif isinstance(part, ToolResult):
            _only_in(role, "user", "a tool result")
            content = _parts(content_parts(part.content), open_document)
            results.append(Message("tool", content, tool_call_id=part.call_id))
        else:
            parts += _parts([part], open_document)
    parts.extend(Text(text) for text in _broken_calls(message))
    turn = Message(
        role,
        parts,
        tool_calls=tuple(calls.values()),
        tool_call_id=message.tool_call_id if isinstance(message, ToolMessage) else None,
        name=message.name,
    )
    return [*results, turn] if parts or not results else results


def role_of(message: BaseMessage) -> str:
    """Return the llavakit role of a message.

    Raises:
        MessageError: an unknown role, or an unknown class of message.
    """
    if isinstance(message, ChatMessage):
        role = _ROLES.get(message.role.lower())
        if role is None:
            raise MessageError(
                f"A ChatMessage has the role {message.role!r}; use user, assistant, system or tool."
            )
        return role
    kinds: Sequence[tuple[type[BaseMessage], str]] = (
        (HumanMessage, "user"),
        (AIMessage, "assistant"),
        (SystemMessage, "system"),
        (ToolMessage, "tool"),
        (FunctionMessage, "tool"),
    )
    for kind, role in kinds:
        if isinstance(message, kind):
            return role
    raise MessageError(f"A {type(message).__name__} is not a message of a conversation; remove it.")


def _calls(message: BaseMessage) -> list[ToolCall]:
    if not isinstance(message, AIMessage):
        return []
    return [
        ToolCall(call["id"] or f"{call['name']}-{index}", call["name"], call["args"])
        for index, call in enumerate(message.tool_calls)
    ]


def _invalid_calls(message: BaseMessage) -> list[InvalidToolCall]:
    """The invalid calls of a message, also those of its content alone (v1)."""
    if not isinstance(message, AIMessage):
        return []
    found = list(message.invalid_tool_calls)
    known = {call["id"] for call in found}
    blocks = message.content if isinstance(message.content, list) else []
    for block in blocks:
        if (
            isinstance(block, Mapping)
            and block.get("type") == INVALID_CALL
            and block.get("id") not in known
        ):
            found.append(cast("InvalidToolCall", block))
    return found


def _broken_calls(message: BaseMessage) -> list[str]:
    # Calls whose arguments are not JSON: the model wrote them, so it sees them, as text.
    return [f"{call['name'] or ''}({written(call['args'])[0]})" for call in _invalid_calls(message)]


def _parts(parts: list[ContentPart], open_document: OpenAttachment) -> list[Part]:
    opened: list[Part] = []
    for part in parts:
        if isinstance(part, Attachment):
            opened += open_document(part)
            continue
        if isinstance(part, (ToolCall, ToolResult)):
            raise MessageError(
                "A tool result holds text and images, not calls or results; take those out of it."
            )
        opened.append(part)
    return opened


def _only_in(role: str, allowed: str, what: str) -> None:
    if role != allowed:
        raise MessageError(f"A message of the {role} holds {what}; only the {allowed} has those.")


def to_conversation(
    messages: Iterable[BaseMessage], open_document: OpenAttachment = not_opened
) -> tuple[Message, ...]:
    """Convert all messages of a conversation, which must have the call of every tool's result.

    Raises:
        MessageError: as :func:`to_messages`; or a result has no call.
    """
    conversation = to_messages(messages, open_document)
    _check_order(conversation)
    return conversation


def _check_order(messages: Sequence[Message]) -> None:
    """Refuse a tool's result without its call.

    Raises:
        MessageError: there is one.
    """
    asked: set[str] = set()
    for message in messages:
        asked.update(call.id for call in message.tool_calls)
        if message.tool_call_id is not None and message.tool_call_id not in asked:
            raise MessageError(
                f"A tool message answers the call {message.tool_call_id!r}, but no AI message "
                "before it made that call; keep both messages, or leave both out."
            )
