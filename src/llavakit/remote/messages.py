"""A conversation as servers read it: OpenAI's messages, images as data URIs.

Servers hand messages to a chat template, and most templates know only one system text, turns
that alternate, and images of a user. What is put together here is what the local model's
prompt puts together, so that both read the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llavakit.errors import MessageError
from llavakit.prompts.conversation import Turn, to_turns
from llavakit.prompts.tools import compact_json
from llavakit.remote.dialects import Dialect
from llavakit.remote.text_tools import speaks_of_tools
from llavakit.values import Image, Message, Part, Request, Text, ToolCall, Video

ToUri = Callable[[Image | Video], str]
Wire = dict[str, Any]


def to_wire(
    request: Request, dialect: Dialect, uri: ToUri, *, answerable: bool = True
) -> list[Wire]:
    """The messages of a request.

    Args:
        request: the conversation, with its tools and schema.
        dialect: whether tools and schemas are written into the prompt, and which side puts turns
            together.
        uri: opens an image or a video.
        answerable: whether it must end with something to answer; False for counting.

    Raises:
        MessageError: there is nothing to answer, or a tool's result answers no call.
    """
    turns = to_turns(request, answerable=answerable)  # also reports what makes no conversation
    if not dialect.enforces or (dialect.speaks and speaks_of_tools(request)):
        return [_from_turn(turn, uri) for turn in turns]
    messages = _identified(request.messages, strict=answerable, short=dialect.short_ids)
    if not dialect.keeps_turns:
        messages = _merged(_with_pictures_of_users(_with_one_system(messages)))
    return [_from_message(message, uri) for message in messages]


def _from_turn(turn: Turn, uri: ToUri) -> Wire:
    return {"role": turn.role, "content": _content(turn.parts, uri)}


def _from_message(message: Message, uri: ToUri) -> Wire:
    wire: Wire = {"role": message.role, "content": _content(message.content, uri)}
    if message.role == "tool":
        wire["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        wire["content"] = wire["content"] or None
        wire["tool_calls"] = [_from_call(call) for call in message.tool_calls]
    return wire


def _from_call(call: ToolCall) -> Wire:
    function = {"name": call.name, "arguments": compact_json(dict(call.arguments))}
    return {"id": call.id, "type": "function", "function": function}


def _content(parts: Sequence[Part], uri: ToUri) -> str | list[Wire]:
    if all(isinstance(part, Text) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, Text))
    return [_part(part, uri) for part in parts]


def _part(part: Part, uri: ToUri) -> Wire:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Video):
        return {"type": "video_url", "video_url": {"url": uri(part)}}
    return {"type": "image_url", "image_url": {"url": uri(part)}}


def _short(identity: str) -> str:
    """Nine letters and digits, the same for the same id; those of the form already stay."""
    if len(identity) == 9 and identity.isascii() and identity.isalnum():
        return identity
    return hashlib.sha256(identity.encode()).hexdigest()[:9]


def _identified(messages: Iterable[Message], *, strict: bool, short: bool) -> list[Message]:
    """The messages with an id at every call and every result; servers demand both."""
    form = _short if short else str
    result: list[Message] = []
    open_calls: list[str] = []
    count = 0
    for message in messages:
        if message.tool_calls:
            calls = []
            for call in message.tool_calls:
                count += 1
                identity = form(call.id or f"call_{count}")
                calls.append(ToolCall(identity, call.name, call.arguments))
            open_calls = [call.id for call in calls]
            message = _changed(message, tool_calls=calls)
        elif message.role == "tool":
            given = message.tool_call_id
            answers = form(given) if given else (open_calls[0] if open_calls else "")
            if strict and not answers:
                raise MessageError(
                    "A tool's result answers no call: give it tool_call_id, or put the "
                    "assistant's message with the call before it."
                )
            open_calls = [one for one in open_calls if one != answers]
            message = _changed(message, tool_call_id=answers)
        result.append(message)
    return result


def _with_one_system(messages: Sequence[Message]) -> list[Message]:
    """All system texts in one message at the beginning; images and videos go to the user."""
    said = [message.content for message in messages if message.role == "system"]
    rest = [message for message in messages if message.role != "system"]
    if not said:
        return rest
    parts = _joined(said)
    pictures = [part for part in parts if not isinstance(part, Text)]
    texts = [part for part in parts if isinstance(part, Text)]
    if pictures:
        first = next((i for i, message in enumerate(rest) if message.role == "user"), None)
        if first is None:
            rest.insert(0, Message("user", pictures))
        else:
            rest[first] = _changed(rest[first], content=[*pictures, *rest[first].content])
    return [Message("system", texts), *rest] if texts or not pictures else rest


def _with_pictures_of_users(messages: Sequence[Message]) -> list[Message]:
    """Images and videos of tools' results follow in a user's message behind all of the results."""
    result: list[Message] = []
    held: list[Part] = []
    for message in messages:
        if message.role != "tool" and held:
            result.append(Message("user", held))
            held = []
        if message.role == "tool" and (message.images or message.videos):
            held.extend(part for part in message.content if not isinstance(part, Text))
            texts = [part for part in message.content if isinstance(part, Text)]
            what = "video" if message.videos else "image"
            message = _changed(message, content=texts or f"The {what} follows.")
        result.append(message)
    return [*result, Message("user", held)] if held else result


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role as one message; calls and results stay by themselves."""
    result: list[Message] = []
    for message in messages:
        before = result[-1] if result else None
        if (
            before is not None
            and before.role == message.role
            and message.role != "tool"
            and not before.tool_calls
        ):
            parts = _joined([before.content, message.content])
            result[-1] = _changed(message, content=parts)
        else:
            result.append(message)
    return result


def _joined(groups: Iterable[Sequence[Part]]) -> list[Part]:
    parts: list[Part] = []
    for index, group in enumerate(groups):
        parts.extend([Text("\n"), *group] if index else group)
    return parts


def _changed(message: Message, **changes: Any) -> Message:
    fields = {
        "content": message.content,
        "tool_calls": message.tool_calls,
        "tool_call_id": message.tool_call_id,
        "name": message.name,
    }
    return Message(message.role, **(fields | changes))
