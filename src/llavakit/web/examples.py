"""The example images of the empty page."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from llavakit.demo import example_images

_CHOSEN = (
    ("shapes.png", "What colour is the circle?"),
    ("rotated.jpg", "Is the star left or right of the heart?"),
    ("invoice.png", "What is the invoice number?"),
    ("squares.png", "How many squares are there?"),
)


@dataclass(frozen=True, slots=True)
class PageExample:
    """An image's file, and a question about it."""

    file: Path
    question: str


def copy_examples(folder: Path) -> tuple[PageExample, ...]:
    """Copy the examples into a folder, from which the page may serve them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, _ in _CHOSEN:
        shutil.copyfile(example_images() / name, folder / name)
    return tuple(PageExample(folder / name, question) for name, question in _CHOSEN)
