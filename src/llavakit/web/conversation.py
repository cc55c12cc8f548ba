"""What was said and shown in one tab: turns, and the messages that they are for the model."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from llavakit.errors import InputError
from llavakit.values import Image, Message, Text, Usage
from llavakit.web.pictures import AttachedImage


class AnswerStage(StrEnum):
    """How far an answer is."""

    WAITING = "waiting"
    LOADING = "loading"
    READING = "reading"
    WRITING = "writing"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Return whether nothing more comes."""
        return self in (AnswerStage.DONE, AnswerStage.STOPPED, AnswerStage.FAILED)


@dataclass(slots=True)
class ShownAnswer:
    """An answer, while it comes and afterwards.

    Attributes:
        text: what has come of it.
        stage: how far it is.
        place: the place in the queue while it waits, from 1.
        error: the sentence that says why it failed.
        model: who answered.
        usage: tokens, once it is done.
        cut: whether it ended because of ``max_tokens``.
        first_token: seconds from the submission to the first piece.
        writing: seconds from the first piece to the end.
        feedback: what the visitor thinks of it.
    """

    text: str = ""
    stage: AnswerStage = AnswerStage.WAITING
    place: int = 0
    error: str = ""
    model: str = ""
    usage: Usage | None = None
    cut: bool = False
    first_token: float = 0.0
    writing: float = 0.0
    feedback: str | None = None

    @property
    def counts(self) -> bool:
        """Return whether the model is shown it in later turns."""
        return self.stage in (AnswerStage.DONE, AnswerStage.STOPPED) and bool(self.text.strip())


@dataclass(slots=True, eq=False)
class WebTurn:
    """A question with its images, and its answer.

    Attributes:
        notes: what was left out of what was uploaded, a sentence each.
    """

    text: str
    pictures: tuple[AttachedImage, ...] = ()
    notes: tuple[str, ...] = ()
    answer: ShownAnswer = field(default_factory=ShownAnswer)

    @property
    def question(self) -> Message:
        """Return the user's message."""
        return Message("user", [*(shown.image for shown in self.pictures), Text(self.text)])


class WebConversation:
    """The turns of one tab, in their order.

    Attributes:
        name: what the log calls it; says nothing about the visitor.
        turns: all of them, failed ones too; only turns with an answer are the model's past.
    """

    def __init__(self) -> None:
        self.name = secrets.token_hex(8)
        self.turns: list[WebTurn] = []

    @property
    def last(self) -> WebTurn | None:
        """Return the turn that is asked or was asked last."""
        return self.turns[-1] if self.turns else None

    @property
    def pictures(self) -> tuple[Image, ...]:
        """Return all images that the model was shown."""
        return tuple(shown.image for turn in self.turns for shown in turn.pictures)

    def shown_for(self, index: int, most: int) -> tuple[AttachedImage, ...]:
        """Return the newest images that the model was shown for the answer of a turn.

        Args:
            index: the turn, from 0; images of earlier turns count.
            most: images; of more, the newest ones.
        """
        return tuple(shown for turn in self.turns[: index + 1] for shown in turn.pictures)[-most:]

    @property
    def kept_bytes(self) -> int:
        """Return the bytes that its images take."""
        return sum(shown.size for turn in self.turns for shown in turn.pictures)

    def ask(
        self, text: str, pictures: Sequence[AttachedImage] = (), notes: Sequence[str] = ()
    ) -> WebTurn:
        """Add a question."""
        turn = WebTurn(text, tuple(pictures), tuple(notes))
        self.turns.append(turn)
        return turn

    def fail(self, text: str, error: str) -> WebTurn:
        """Add a question that cannot be asked, with the reason."""
        turn = self.ask(text)
        turn.answer = ShownAnswer(stage=AnswerStage.FAILED, error=error)
        return turn

    def again(self) -> WebTurn:
        """Ask the last question anew.

        Raises:
            InputError: nothing was asked, or nothing that the model could see.
        """
        if self.last is None:
            raise InputError("Ask something first.")
        self.last.answer = ShownAnswer()
        return self.last

    def edit(self, index: int, text: str) -> WebTurn:
        """Ask a turn's question in other words; it keeps its images, later turns are removed.

        Raises:
            InputError: there is no such turn, or no words.
        """
        if not 0 <= index < len(self.turns):
            raise InputError("That question is gone; ask it anew.")
        if not text.strip():
            raise InputError("A question needs words; write some, or clear the conversation.")
        old = self.turns[index]
        del self.turns[index:]
        return self.ask(text, old.pictures, old.notes)

    def clear(self) -> None:
        """Forget everything, and begin another conversation."""
        self.turns.clear()
        self.name = secrets.token_hex(8)

    def replace(self, turns: Sequence[WebTurn]) -> None:
        """Forget everything, and go on from other turns under another name."""
        self.clear()
        self.turns.extend(turns)

    def messages(self, system: str = "") -> tuple[Message, ...]:
        """Return what the model is given to answer the last question.

        Args:
            system: a system text instead of the template's own; "" keeps that.
        """
        said = [Message("system", system)] if system.strip() else []
        for turn in self.turns[:-1]:
            if turn.answer.counts:
                said += [turn.question, Message("assistant", turn.answer.text)]
        if self.last is not None:
            said.append(self.last.question)
        return tuple(said)
