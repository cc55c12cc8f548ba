"""LlamaIndex messages -> llavakit messages; pure functions that open nothing by themselves.

The order of text and images is kept, in every kind of message. What cannot be translated
raises an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)

from llavakit.documents.message import Attachment, OpenAttachment
from llavakit.errors import MessageError, UnsupportedContentError
from llavakit.llama_index.content_blocks import (
    ContentPart,
    read_block,
    source_of,
    to_image_block,
    tool_call_of,
)
from llavakit.values import Image, Message, Part, Text, ToolCall

_ROLES: Mapping[MessageRole, str] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
    MessageRole.TOOL: "tool",
}


def not_opened(document: Attachment) -> NoReturn:
    """Refuse a document where nothing may be opened."""
    raise UnsupportedContentError(
        "Counting tokens does not open documents; open the pages first "
        "(llavakit.documents.open_pages) and count with those."
    )


def to_messages(
    messages: Iterable[ChatMessage], open_document: OpenAttachment = not_opened
) -> tuple[Message, ...]:
    """Convert LlamaIndex messages to llavakit's, in their order; any stretch of a conversation.

    Args:
        messages: the conversation.
        open_document: returns the pages of a document.

    Raises:
        MessageError: a tool call in a message that is not the assistant's.
        UnsupportedContentError: a block that LLaVA cannot take.
        ImageError: an object that cannot be read as an image.
    """
    return tuple(_message(message, open_document) for message in messages)


def has_media(messages: Iterable[ChatMessage]) -> bool:
    """Return whether there is more than text, so that converting may take a while."""
    return any(
        not isinstance(block, (TextBlock, ToolCallBlock))
        for message in messages
        for block in _all_blocks(message)
    )


def _message(message: ChatMessage, open_document: OpenAttachment) -> Message:
    role = _ROLES[MessageRole(message.role)]
    parts: list[Part] = []
    calls: list[ToolCall] = []
    for part in _content_parts(message):
        if isinstance(part, Attachment):
            parts += open_document(part)
        elif isinstance(part, ToolCall):
            calls.append(part)
        else:
            parts.append(part)
    if calls and role != "assistant":
        raise MessageError(f"A message of the {role} holds a tool call; only the assistant's do.")
    extra = message.additional_kwargs
    answered = extra.get("tool_call_id") if role == "tool" else None
    return Message(
        role,
        parts,
        tool_calls=calls,
        tool_call_id=None if answered is None else str(answered),
        name=extra.get("name"),
    )


def _content_parts(message: ChatMessage) -> Iterable[ContentPart]:
    found: set[str] = set()
    previous: Any = None
    for block in _all_blocks(message):
        if isinstance(block, TextBlock) and isinstance(previous, TextBlock):
            yield Text("\n")  # as the framework's own `content` joins them
        for part in read_block(block):
            if isinstance(part, ToolCall):
                found.add(part.id)
            yield part
        previous = block
    if not found:  # blocks have the same calls as the older notation
        yield from _legacy_calls(message)


def _all_blocks(message: ChatMessage) -> Sequence[Any]:
    """The blocks, with the images of ``additional_kwargs["images"]`` behind them, once.

    The framework appends those to the blocks when a message is made, and once more whenever
    an event about it is made; when they are set later it does not, and would drop them.
    """
    documents = message.additional_kwargs.get("images") or []
    count = len(documents)
    if not count:
        return message.blocks
    blocks, last = list(message.blocks[:-count]), list(message.blocks[-count:])
    if len(last) < count or not all(map(_holds, last, documents)):
        return [*message.blocks, *map(to_image_block, documents)]
    while [_data(block) for block in blocks[-count:]] == [_data(block) for block in last]:
        del blocks[-count:]
    return [*blocks, *last]


def _data(block: Any) -> Any:
    return block.image if isinstance(block, ImageBlock) else block


def _holds(block: Any, document: Any) -> bool:
    if not isinstance(block, ImageBlock) or not isinstance(block.image, bytes):
        return False
    source = source_of(document)
    if source is None or not isinstance(source.source, bytes):
        return True  # the framework has read the file or the address by itself
    held = read_block(block)[0]
    return isinstance(held, Image) and held.source == source.source


def _legacy_calls(message: ChatMessage) -> Iterable[ToolCall | Text]:
    """Calls in OpenAI's notation, as older programs keep them."""
    for call in message.additional_kwargs.get("tool_calls") or []:
        function = _field(call, "function")
        if function is None:
            raise UnsupportedContentError(
                "additional_kwargs['tool_calls'] holds something other than function calls in "
                "OpenAI's notation; use a ToolCallBlock."
            )
        name, arguments = _field(function, "name"), _field(function, "arguments")
        yield tool_call_of(_field(call, "id"), str(name), {} if arguments is None else arguments)


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
