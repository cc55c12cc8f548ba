"""From messages to the turns that a template knows: system, then user and assistant by turns.

LLaVA was trained on turns that alternate and on no tool role. Here system texts are put
together, tools and schemas are told in the system text, results of tools come back in the
user's turn, and neighbours of one role become one turn. Nothing is dropped: what cannot be
put into this form raises :class:`~llavakit.errors.MessageError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from llavakit.errors import MessageError
from llavakit.prompts.tools import (
    RESULT_END,
    RESULT_START,
    format_tool_call,
    schema_prompt,
    tools_prompt,
)
from llavakit.values import Image, Message, Part, Request, Text

TurnRole = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says at once; neighbouring texts are joined.

    Attributes:
        role: who says it.
        parts: text and pictures in their order.
        adds: of a system turn: it only adds to the template's own system text. The caller's
            system messages replace that text; what llavakit itself has to say of tools and
            schemas does not, where the caller gave no system message.
    """

    role: TurnRole
    parts: tuple[Part, ...]
    adds: bool = False

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))


def to_turns(request: Request, *, answerable: bool = True) -> list[Turn]:
    """The conversation of a request as alternating turns that end with the user's.

    Args:
        request: the conversation, with its tools and schema.
        answerable: whether it must end with something to answer; False, for counting, puts
            an empty turn of the user where one is missing.

    Raises:
        MessageError: there is nothing to answer.
    """
    system: list[list[Part]] = []
    turns: list[Turn] = []
    for message in request.messages:
        if message.role == "system":
            system.append(list(message.content))
            continue
        role: TurnRole = "assistant" if message.role == "assistant" else "user"
        parts = _joined(_spoken(message))
        if turns and turns[-1].role == role:
            parts = _joined([*turns[-1].parts, Text("\n"), *parts])
            turns[-1] = Turn(role, parts)
        else:
            turns.append(Turn(role, parts))
    if not answerable and (not turns or turns[-1].role != "user"):
        turns.append(Turn("user", ()))
    if not any(turn.role == "user" for turn in turns):
        raise MessageError("There is nothing to answer: add a user message.")
    if turns[-1].role != "user":
        raise MessageError(
            "The conversation ends with the assistant; add a user or tool message to answer."
        )
    # Nothing but pictures replaces no text; an empty text does, that is how to have none.
    adds = all(said and all(isinstance(part, Image) for part in said) for said in system)
    system.extend([Text(text)] for text in _instructions(request))
    if not system:
        return turns
    parts = _joined(_between(system, Text("\n")))
    pictures = [part for part in parts if isinstance(part, Image)]
    if pictures:
        # A picture has its place in a user's turn: the first one then begins with it.
        first = next(index for index, turn in enumerate(turns) if turn.role == "user")
        turns[first] = Turn("user", _joined([*pictures, *turns[first].parts]))
        parts = tuple(part for part in parts if isinstance(part, Text))
    return [Turn("system", parts, adds), *turns]


def _instructions(request: Request) -> Iterable[str]:
    if request.tools and request.tool_choice != "none":
        yield tools_prompt(request.tools)
    schema = request.params.json_schema
    if schema is not None and schema is not True:
        yield schema_prompt(schema)


def _spoken(message: Message) -> Sequence[Part]:
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
    """The same parts with neighbouring texts made one and empty ones left out."""
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
