"""From messages to the turns that a template knows: system, then user and assistant by turns.

LLaVA was trained on turns that alternate and on no tool role. Here system texts are put
together, tools and schemas are described in the system text, results of tools come back in the
user's turn, and neighbours of one role become one turn. Nothing is dropped: what cannot be
put into this form raises :class:`~llavakit.errors.MessageError`.

The answer is a new turn of the assistant, whatever the last turn is; a conversation may also end
with words of the assistant that the answer shall go on with (``continue_final_message``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llavakit.errors import MessageError
from llavakit.prompts.tools import (
    RESULT_END,
    RESULT_START,
    format_tool_call,
    schema_prompt,
    tools_prompt,
)
from llavakit.values import Message, Part, Request, Text

TurnRole = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says at once; neighbouring texts are joined.

    Attributes:
        role: the side that says it.
        parts: text, images and videos in their order.
        adds: for a system turn: it only adds to the template's own system text. The caller's
            system messages replace that text; llavakit's own passages about tools and schemas do
            not, where the caller gave no system message.
        open: for the assistant's turn at the end: the answer continues it.
    """

    role: TurnRole
    parts: tuple[Part, ...]
    adds: bool = False
    open: bool = False

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))


def to_turns(request: Request, *, answerable: bool = True) -> list[Turn]:
    """Convert a request's conversation to turns that alternate, behind a system turn if any.

    Args:
        request: the conversation, with its tools and schema.
        answerable: whether an answer must be able to follow; False, for counting, takes any
            stretch of a conversation.

    Raises:
        MessageError: the conversation is empty, or ends with a call of a tool that has
            no result, or there is no text to continue.
    """
    if answerable:
        check_answerable(request.messages, continues=request.continue_final_message)
    system = [message.content for message in request.messages if message.role == "system"]
    # Images alone do not replace the template's text; an empty text does: so it is removed.
    adds = all(said and not any(isinstance(part, Text) for part in said) for said in system)
    instructions = _joined(_between([*system, *_instructions(request)], Text("\n")))
    pictures = tuple(part for part in instructions if not isinstance(part, Text))
    turns = _with_pictures(_alternating(request.messages), pictures)
    if request.continue_final_message and turns and turns[-1].role == "assistant":
        # An answer without a word is the same as a new one.
        turns[-1:] = [replace(turns[-1], open=True)] if turns[-1].parts else []
    if not (turns or instructions):
        turns.append(Turn("user", ()))
    texts = tuple(part for part in instructions if isinstance(part, Text))
    if not (system or texts):
        return turns
    return [Turn("system", texts, adds), *turns]


def check_answerable(messages: Sequence[Message], *, continues: bool = False) -> None:
    """Refuse a conversation that no answer can follow; its last message may have any role.

    Args:
        messages: the whole conversation.
        continues: whether the answer goes on with the last message.

    Raises:
        MessageError: as :func:`to_turns` raises it.
    """
    dialogue = [message for message in messages if message.role != "system"]
    if not (
        dialogue or any(message.text or message.images or message.videos for message in messages)
    ):
        raise MessageError("The conversation is empty; give at least one message with content.")
    last = dialogue[-1] if dialogue else None
    if last is not None and last.tool_calls:
        raise MessageError(
            f"The conversation ends with a call of the tool {last.tool_calls[-1].name!r} that has "
            "no result; add the result as a tool message, or leave the call out."
        )
    if continues and messages[-1].role != "assistant":
        raise MessageError(
            "continue_final_message goes on with an answer that was begun, but the last message is "
            f"of the {messages[-1].role}; end with an assistant message."
        )


def _alternating(messages: Iterable[Message]) -> list[Turn]:
    turns: list[Turn] = []
    for message in messages:
        if message.role == "system":
            continue
        role: TurnRole = "assistant" if message.role == "assistant" else "user"
        parts = _joined(_content(message))
        if turns and turns[-1].role == role:
            said = [one for one in (turns[-1].parts, parts) if one]
            turns[-1] = Turn(role, _joined(_between(said, Text("\n"))))
        else:
            turns.append(Turn(role, parts))
    return turns


def _with_pictures(turns: list[Turn], pictures: tuple[Part, ...]) -> list[Turn]:
    """Put the images and videos of system messages at the beginning of the first user's turn."""
    if not pictures:
        return turns
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        return [Turn("user", pictures), *turns]
    turns[first] = Turn("user", _joined([*pictures, *turns[first].parts]))
    return turns


def _instructions(request: Request) -> Iterable[Sequence[Part]]:
    if request.tools and request.tool_choice != "none":
        yield [Text(tools_prompt(request.tools))]
    schema = request.params.json_schema
    if schema is not None and schema is not True:
        yield [Text(schema_prompt(schema))]


def _content(message: Message) -> Sequence[Part]:
    if message.role == "tool":
        return [Text(RESULT_START), *message.content, Text(RESULT_END)]
    calls = "".join(format_tool_call(call.name, call.arguments) for call in message.tool_calls)
    return [*message.content, Text(calls)]


def _between(groups: Sequence[Sequence[Part]], separator: Text) -> list[Part]:
    result: list[Part] = []
    for index, group in enumerate(groups):
        if index:
            result.append(separator)
        result.extend(group)
    return result


def _joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts with neighbouring texts joined and empty ones left out."""
    result: list[Part] = []
    for part in parts:
        if isinstance(part, Text):
            if not part.text:
                continue
            if result and isinstance(result[-1], Text):
                result[-1] = Text(result[-1].text + part.text)
                continue
        result.append(part)
    return tuple(result)
