"""A question with its answer, and the grammar that all questions share."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .pages import Page
from .scenes import Scene
from .wordings import KIND_OF_PICTURE

SHORT_HINT = "Answer the question using a single word or phrase."
PLURALS = {"cross": "crosses"}


@dataclass(frozen=True)
class Asked:
    """A question about a picture and its answer; ``task`` names the row of the table."""

    task: str
    question: str
    answer: str


def worded(rng: random.Random, wordings: tuple[str, ...], **slots: str) -> str:
    """Choose a wording and fill it in; one in twenty comes in lower case or without its mark."""
    slots.setdefault("c", rng.choice(("color", "colour")))
    slots.setdefault("p", rng.choice(("image", "image", "picture", "picture", "photo", "drawing")))
    text = rng.choice(wordings).format(**slots)
    if rng.random() < 0.06:
        text = text.rstrip("?.")
    if rng.random() < 0.06:
        text = text[0].lower() + text[1:]
    return text


def hinted(asked: Asked, rng: random.Random) -> Asked:
    """Add LLaVA's hint for short answers to some of the questions."""
    if rng.random() > 0.12:
        return asked
    question = f"{asked.question}{rng.choice((chr(10), ' '))}{SHORT_HINT}"
    return Asked(asked.task, question, asked.answer)


def plural(kind: str) -> str:
    """Return ``circles`` for ``circle``."""
    return PLURALS.get(kind, kind + "s")


def with_article(name: str) -> str:
    """Return ``a red circle`` or ``an orange star``."""
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


def joined(items: list[str]) -> str:
    """Return ``x``, ``x and y`` or ``x, y and z``."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def caption(picture: Scene | Page) -> str:
    """Return the description of a picture: its shapes in reading order, or the page's title."""
    if isinstance(picture, Page):
        return f"a page with the title {picture.title}"
    if not picture.shapes:
        return "an empty picture"
    return joined([with_article(shape.name) for shape in picture.shapes])


def kind_of_picture(picture: Scene | Page, rng: random.Random) -> Asked:
    """Ask whether it is a drawing or a page."""
    answer = "a drawing of shapes" if isinstance(picture, Scene) else "a printed page"
    return Asked("kind", worded(rng, KIND_OF_PICTURE), answer)
