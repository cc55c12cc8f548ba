"""What the demo model is taught, as conversations: the same that training records hold.

A :class:`Lesson` is one conversation, or several about the same pictures. The recipe names the
kinds of lessons (:mod:`examples.demo_model.recipe`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image as PILImage

from llavakit.images import Picture
from llavakit.prompts.conversation import Turn
from llavakit.training.data import Record
from llavakit.values import Image, Part, Text

from .pictures import Pictures
from .recipe import TEXT_ONLY
from .world.copying import random_copying
from .world.dialogue import IMAGE, Dialogue, random_system
from .world.questions import ask
from .world.several import Picture as Described
from .world.several import ask_several, interleaved, plain_with_tools, schema_about
from .world.smalltalk import random_talk

PICTURE = f"{IMAGE}\n"
"""How questions of the demo world, and the demo model's chat template, write a picture."""

_QUESTIONS = {"scene": 8, "page": 6, "several": 7}
_PLACEHOLDER = Image(Picture(PILImage.new("RGB", (1, 1))))
"""Pixels come from the store of pictures: a conversation tells only where they stand."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """Conversations about the same pictures.

    Attributes:
        conversations: one or more.
        tasks: of every answer of each conversation.
        pictures: (kind, index in the store) of each picture.
        gap: by how many positions the conversation stands apart from its system text.
    """

    conversations: tuple[Record, ...]
    tasks: tuple[tuple[str, ...], ...]
    pictures: tuple[tuple[str, int], ...] = ()
    gap: int = 0


def conversation(dialogue: Dialogue) -> Record:
    """A dialogue of the demo world as the records' readers make it."""
    turns = [Turn("system", (Text(dialogue.system),))] if dialogue.system else []
    for question, answer in dialogue.turns:
        turns.append(Turn("user", tuple(_parts(question))))
        turns.append(Turn("assistant", (Text(answer),)))
    return Record(None, tuple(turns))


def _parts(question: str) -> Iterator[Part]:
    for number, words in enumerate(question.split(PICTURE)):
        if number:
            yield _PLACEHOLDER
        if words:
            yield Text(words)


class LessonBook:
    """Draws lessons; equal generators draw equal ones.

    Args:
        store: the pictures by their kinds, ``scene`` and ``page``.
        tasks: weights of tasks in questions about scenes, where they are not the usual ones.
        farthest: the largest gap.
    """

    def __init__(
        self, store: Mapping[str, Pictures], tasks: Mapping[str, float], *, farthest: int
    ) -> None:
        self._store = store
        self._tasks = dict(tasks)
        self._farthest = farthest

    def draw(self, kind: str, rng: random.Random) -> Lesson:
        """A random lesson of a kind."""
        if kind in TEXT_ONLY:
            return self._alone(random_copying(rng) if kind == "copying" else random_talk(rng), rng)
        chosen = self._choose(kind, rng)
        shown = [self._store[name].described(index) for name, index in chosen]
        if kind in _QUESTIONS:
            return self._asked(chosen, shown, _QUESTIONS[kind], rng)
        if kind == "interleaved":
            dialogue = interleaved(shown, rng)
        else:
            make = {"schema": schema_about, "plain": plain_with_tools}[kind]
            dialogue = make(shown[0], rng)
        return self._alone(dialogue, rng, chosen)

    def _choose(self, kind: str, rng: random.Random) -> tuple[tuple[str, int], ...]:
        if kind in self._store:
            kinds = [kind]
        elif kind in ("several", "interleaved"):
            count = rng.choice((2, 2, 2, 3) if kind == "several" else (1, 1, 2, 2, 3))
            scenes = 0.9 if rng.random() < 0.7 else 0.3
            kinds = ["scene" if rng.random() < scenes else "page" for _ in range(count)]
        else:
            kinds = ["scene" if rng.random() < 0.5 else "page"]
        return tuple((name, rng.randrange(len(self._store[name]))) for name in kinds)

    def _alone(
        self, dialogue: Dialogue, rng: random.Random, chosen: Sequence[tuple[str, int]] = ()
    ) -> Lesson:
        # As if a lot stood in between: far positions are met without long rows.
        far = dialogue.system and rng.random() < 0.15
        gap = rng.randrange(self._farthest) if far else 0
        tasks = (dialogue.task,) * len(dialogue.turns)
        return Lesson((conversation(dialogue),), (tasks,), tuple(chosen), gap)

    def _asked(
        self,
        chosen: tuple[tuple[str, int], ...],
        shown: list[Described],
        questions: int,
        rng: random.Random,
    ) -> Lesson:
        """Pictures with questions about them, one in three of them a short dialogue."""
        system = random_system(rng)
        conversations, tasks = [], []
        for _ in range(questions):
            asked = [
                ask(shown[0], rng, more=self._tasks) if len(shown) == 1 else ask_several(shown, rng)
                for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 3)))
            ]
            turns = [(one.question, one.answer) for one in asked]
            turns[0] = (PICTURE * len(shown) + turns[0][0], turns[0][1])
            conversations.append(conversation(Dialogue("", tuple(turns), system)))
            tasks.append(tuple(one.task for one in asked))
        return Lesson(tuple(conversations), tuple(tasks), chosen)
