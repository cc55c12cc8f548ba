"""The example pictures of the empty page, drawn when it starts; the package carries none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llavakit.demo.examples import write_files

_SEED = 0
_CHOSEN = (
    ("shapes.png", "What colour is the circle?"),
    ("rotated.jpg", "Is the star left or right of the heart?"),
    ("invoice.png", "What is the invoice number?"),
    ("squares.png", "How many squares are there?"),
)


@dataclass(frozen=True, slots=True)
class PageExample:
    """A picture's file, and a question about it."""

    file: Path
    question: str


def draw_examples(folder: Path) -> tuple[PageExample, ...]:
    """Draws the examples into a folder."""
    write_files(folder, _SEED)
    return tuple(PageExample(folder / name, question) for name, question in _CHOSEN)
