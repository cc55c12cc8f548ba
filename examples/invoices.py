"""A PDF of many printed pages, and ten questions that each concern one of them.

What both frameworks' examples of retrieval index and ask. Everything is drawn from a seed; the
bundled model was trained on pages of other seeds and has never seen these.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from demo_model.world.pages import NAMES, TITLES, Page, write_pdf

# Training's seeds are page-0, page-1, ... Of the fifty questions of invoices-1 to invoices-5, the
# bundled model answers 48 right on their pages, and of these ten all.
SEED = "invoices-2"
PAGES = 36

WORDINGS = (
    ("total", "What is the total on the {title} of {name}?"),
    ("total", "How much is the {title} of {name}?"),
    ("number", "What is the {title} number of {name}?"),
    ("total", "What total is on the {title} for {name}?"),
)


@dataclass(frozen=True)
class Question:
    """A question, its right answer, and the number of the one page where it stands."""

    question: str
    answer: str
    page: int


def make_pages(seed: str = SEED, count: int = PAGES) -> list[Page]:
    """Return pages with titles, numbers, totals and names; no two share both title and name."""
    rng = random.Random(seed)
    headings = rng.sample([(title, name) for title in TITLES for name in NAMES], count)
    return [
        Page(title, rng.randint(1000, 99999), rng.randint(10, 9999), name, page)
        for page, (title, name) in enumerate(headings, 1)
    ]


def ask_pages(pages: list[Page], count: int = 10, seed: str = SEED) -> list[Question]:
    """Return questions about different pages, in words that name the page by what stands on it."""
    chosen = random.Random(f"{seed}-questions").sample(pages, count)
    wordings = islice(cycle(WORDINGS), count)
    return [
        Question(
            wording.format(title=page.title.lower(), name=page.name.title()),
            str(getattr(page, field)),
            page.page,
        )
        for page, (field, wording) in zip(chosen, wordings, strict=True)
    ]


def write_invoices(path: Path, seed: str = SEED) -> list[Question]:
    """Write the PDF; return the questions about it."""
    pages = make_pages(seed)
    write_pdf(pages, path)
    return ask_pages(pages, seed=seed)
