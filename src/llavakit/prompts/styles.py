"""The five ways in which LLaVA's models were taught to read a conversation.

A template writes turns as the one string that a model was trained on: its system text, the
marks of the two roles, and what ends an answer. Which models read which template, and the
texts, are in :mod:`llavakit.prompts.templates`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llavakit.prompts.conversation import Turn, TurnRole
from llavakit.values import Part, Text, Video

IMAGE, VIDEO = "<image>", "<video>"
"""The placeholders of an image and of a video in the text of a prompt."""

TurnText: TypeAlias = tuple[TurnRole, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template(ABC):
    """A notation of conversations.

    Attributes:
        system: its own system text. A system turn takes its place, unless the turn only
            *adds* to it (see :class:`~llavakit.prompts.conversation.Turn`).
        examples: turns that stand before every conversation.
        tagged: images are written as ``<Image><image></Image>``, and those that begin a
            conversation in a turn of their own, which the assistant has received.
    """

    system: str = ""
    examples: tuple[TurnText, ...] = ()
    tagged: bool = False

    @property
    @abstractmethod
    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer and are not part of it."""

    @abstractmethod
    def _written(self, system: str, said: Sequence[TurnText]) -> str:
        """Write the turns, each with its end mark."""

    @abstractmethod
    def _opening(self, written: str) -> str:
        """The text between what was written and the assistant's words."""

    @property
    def _gap(self) -> str:
        """The separator before the assistant's words."""
        return ""

    def render(
        self,
        turns: Sequence[Turn],
        image: str = IMAGE,
        *,
        video: str = VIDEO,
        alone: str = "\n",
    ) -> str:
        """Render the prompt of a conversation, up to where the assistant's next words begin.

        That is in a new turn of the assistant, whatever the last turn is, unless that one is open.

        Args:
            turns: from :func:`~llavakit.prompts.conversation.to_turns`.
            image: the text of the model's image token.
            video: that of its video token.
            alone: what ends a turn of nothing but images. The original wrote a line end
                there when it answered, and nothing when it trained.
        """
        if turns and turns[-1].open:
            *before, begun = turns
            words = self._content(begun.parts, image, video, alone)
            prompt = self.render(before, image, video=video, alone=alone)
            return f"{prompt}{self._gap}{words}"
        written = self._closed(turns, image, video, alone)
        return written + self._opening(written)

    def render_answered(
        self, turns: Sequence[Turn], image: str = IMAGE, *, video: str = VIDEO
    ) -> str:
        """Render a conversation that ends with the assistant's words and their end mark.

        It is what models are trained on; arguments are those of :meth:`render`.
        """
        return self._closed(turns, image, video, alone="")

    def _closed(self, turns: Sequence[Turn], image: str, video: str, alone: str) -> str:
        dialogue = [turn for turn in turns if turn.role != "system"]
        if self.tagged:
            dialogue = _received(dialogue)
        said = [(turn.role, self._content(turn.parts, image, video, alone)) for turn in dialogue]
        return self._written(self._system_of(turns), [*self.examples, *said])

    def _system_of(self, turns: Sequence[Turn]) -> str:
        given = [turn for turn in turns if turn.role == "system"]
        own = [self.system] if all(turn.adds for turn in given) else []
        return "\n".join(filter(None, [*own, *(turn.text for turn in given)]))

    def _content(self, parts: Sequence[Part], image: str, video: str, alone: str) -> str:
        if self.tagged:
            return in_lines(parts, f"<Image>{image}</Image>", video=video, alone="")
        return in_lines(parts, image, alone, video=video)


def in_lines(parts: Sequence[Part], mark: str, alone: str = "\n", *, video: str = VIDEO) -> str:
    """Join text, images and videos in their order.

    LLaVA was trained on images with a line end behind them. It is not doubled where the
    text brings its own.

    Args:
        parts: what one side says.
        mark: stands for an image.
        alone: what ends a turn of nothing but images, as if words followed.
        video: stands for a video.
    """
    written = ""
    leading = True
    for index, part in enumerate(parts):
        if isinstance(part, Text):
            written += part.text
            leading = False
            continue
        if written and not written[-1].isspace():
            written += "\n"
        written += video if isinstance(part, Video) else mark
        if index + 1 < len(parts):
            after = parts[index + 1]
            written += "" if isinstance(after, Text) and after.text.startswith("\n") else "\n"
        elif leading:
            written += alone
    return written


def _received(turns: Sequence[Turn]) -> list[Turn]:
    """The images that begin a conversation, in a turn of their own, and the rest."""
    if not turns or turns[0].role != "user":
        return list(turns)
    parts = turns[0].parts
    count = next((at for at, part in enumerate(parts) if isinstance(part, Text)), 0)
    if count == 0:
        return list(turns)
    pictures, question = Turn("user", parts[:count]), Turn("user", parts[count:])
    return [pictures, Turn("assistant", (Text("Received."),)), question, *turns[1:]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled(Template):
    """``USER: ... ASSISTANT: ...``: a label before what is said, an end mark behind it.

    Attributes:
        user: label of the user.
        assistant: label of the assistant.
        user_end: stands behind the system text and the user's words.
        assistant_end: stands behind the assistant's words.
    """

    user: str
    assistant: str
    user_end: str
    assistant_end: str

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.assistant_end,)

    def _written(self, system: str, said: Sequence[TurnText]) -> str:
        prompt = system + self.user_end if system else ""
        for role, text in said:
            if role == "assistant":
                prompt += f"{self.assistant}: {text}{self.assistant_end}"
            else:
                prompt += f"{self.user}: {text}{self.user_end}"
        return prompt

    def _opening(self, written: str) -> str:
        return f"{self.assistant}:"

    @property
    def _gap(self) -> str:
        return " "


@dataclass(frozen=True, slots=True, kw_only=True)
class Instructed(Template):
    """``[INST] ... [/INST] ... </s>``: Llama 2 and Mistral; the system text is in the first one.

    Attributes:
        begin: stands before every instruction but the first, whose the tokenizer writes.
    """

    begin: str

    @property
    def stops(self) -> tuple[str, ...]:
        return ("</s>", self.begin) if self.begin else ("</s>",)

    def _written(self, system: str, said: Sequence[TurnText]) -> str:
        head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
        prompt = ""
        for role, text in said:
            if role == "assistant":
                # At the beginning it answers no instruction, but follows the system text.
                prompt += f"[INST] {head} [/INST]" if head else ""
                prompt += f" {text} </s>"
                head = ""
            else:
                prompt += f"{self.begin if prompt else ''}[INST] {head}{text} [/INST]"
                head = ""
        return prompt + (f"[INST] {head} [/INST]" if head else "")

    def _opening(self, written: str) -> str:
        # There is no mark of the assistant: its words answer an instruction, at least an empty one.
        begin = self.begin if written else ""
        return "" if written.endswith(" [/INST]") else f"{begin}[INST]  [/INST]"

    @property
    def _gap(self) -> str:
        return " "


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatML(Template):
    """``<|im_start|>user``, a line end, the words and ``<|im_end|>``.

    Attributes:
        between: stands behind every ``<|im_end|>``.
    """

    between: str = ""

    @property
    def stops(self) -> tuple[str, ...]:
        return ("<|im_end|>",)

    def _written(self, system: str, said: Sequence[TurnText]) -> str:
        first: list[tuple[str, str]] = [("system", system)] if system else []
        blocks = [
            f"<|im_start|>{role}\n{text}<|im_end|>{self.between}" for role, text in [*first, *said]
        ]
        return "".join(blocks)

    def _opening(self, written: str) -> str:
        return "<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Headed(Template):
    """``<|start_header_id|>user<|end_header_id|>``, the words, ``<|eot_id|>``: Llama 3."""

    @property
    def stops(self) -> tuple[str, ...]:
        return ("<|eot_id|>",)

    def _written(self, system: str, said: Sequence[TurnText]) -> str:
        first: list[tuple[str, str]] = [("system", system)] if system else []
        blocks = [
            f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"
            for role, text in [*first, *said]
        ]
        return "".join(blocks)

    def _opening(self, written: str) -> str:
        return "<|start_header_id|>assistant<|end_header_id|>\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain(Template):
    """Lines without roles: the captions on which the projector was trained."""

    @property
    def stops(self) -> tuple[str, ...]:
        return ("\n",)

    def _written(self, system: str, said: Sequence[TurnText]) -> str:
        lines = [system] if system else []
        return "".join(f"{line}\n" for line in [*lines, *(text for _, text in said)])

    def _opening(self, written: str) -> str:
        return ""
