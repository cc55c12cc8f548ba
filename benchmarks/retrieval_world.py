"""Drawn pages that no model was trained on, and questions that each have one right page.

A question names its page by some of what is printed on it: a number, a total, a title and a name.
No other of the pages has all of that, which is checked for every question; no two pages have the
same text. Wordings are the benchmark's own, some of them as short as people type.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from examples.demo_model.world.pages import Page, random_page

SEED = "benchmark of retrieval"
"""Training draws from other seeds (``page-N`` and ``retrieval-N``)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and the number of its page.

    Attributes:
        kind: by what it names the page.
        text: the question.
        page: the place of the one right page among all.
    """

    kind: str
    text: str
    page: int


KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "number": (
        ("number",),
        (
            "What is the total of document {number}?",
            "No. {number}",
            "Which page has the number {number}?",
            "Show me number {number}.",
        ),
    ),
    "total": (
        ("total",),
        (
            "Which page has a total of {total}?",
            "What is the number of the page with the total {total}?",
            "total {total}",
            "Where is {total} to be paid?",
        ),
    ),
    "title and number": (
        ("title", "number"),
        (
            "What is the total of {title} {number}?",
            "{title} {number}",
            "How much is the {title} with the number {number}?",
            "Whose name is on {title} No. {number}?",
        ),
    ),
    "title and total": (
        ("title", "total"),
        (
            "What is the number of the {title} with a total of {total}?",
            "{title}, total {total}",
            "Which {title} has the total {total}?",
            "Find the {title} over {total}.",
        ),
    ),
    "title and name": (
        ("title", "name"),
        (
            "What is the total on the {title} of {name}?",
            "How much is the {title} of {name}?",
            "What is the {title} number of {name}?",
            "{name}'s {title}",
        ),
    ),
    "name and total": (
        ("name", "total"),
        (
            "Which page of {name} has a total of {total}?",
            "{name} {total}",
            "What is the number of {name}'s page with the total {total}?",
            "What did {name} get for {total}?",
        ),
    ),
}
"""What a kind of question names, and its wordings in turn."""


def make_pages(count: int, seed: str = SEED) -> list[Page]:
    """Return pages with different texts; a smaller number gives the first of them."""
    pages: dict[str, Page] = {}
    for number in range(4 * count + 100):
        page = random_page(random.Random(f"{seed}-{number}"))
        pages.setdefault(page.text(), page)
        if len(pages) == count:
            return list(pages.values())
    raise ValueError(f"There are not {count} different pages among {4 * count + 100}.")


def make_questions(pages: Sequence[Page], count: int, seed: str = SEED) -> list[Asked]:
    """Return questions of all kinds, as evenly as the pages have them, no two about one page.

    Raises:
        ValueError: the pages do not have so many.
    """
    rng = random.Random(f"{seed}-questions")
    possible = {kind: _nameable(pages, fields, rng) for kind, (fields, _) in KINDS.items()}
    wordings = {kind: cycle(words) for kind, (_, words) in KINDS.items()}
    taken: set[int] = set()
    asked: list[Asked] = []
    while len(asked) < count:
        before = len(asked)
        for kind, places in possible.items():
            place = next((one for one in places if one not in taken), None)
            if place is None or len(asked) == count:
                continue
            taken.add(place)
            text = next(wordings[kind]).format(**_fields(pages[place]))
            asked.append(Asked(kind, text[0].upper() + text[1:], place))
        if len(asked) == before:
            raise ValueError(f"{len(pages)} pages have {before} such questions, not {count}.")
    return asked


def right_pages(pages: Sequence[Page], kind: str, place: int) -> list[int]:
    """Return the places of all pages that have what a question of a kind names of a page."""
    fields, _ = KINDS[kind]
    wanted = _named(pages[place], fields)
    return [number for number, page in enumerate(pages) if _named(page, fields) == wanted]


def _nameable(pages: Sequence[Page], fields: Sequence[str], rng: random.Random) -> list[int]:
    """Places of the pages that these fields name and no other page, shuffled."""
    counts = Counter(_named(page, fields) for page in pages)
    places = [
        number
        for number, page in enumerate(pages)
        if None not in (named := _named(page, fields)) and counts[named] == 1
    ]
    rng.shuffle(places)
    return places


def _named(page: Page, fields: Sequence[str]) -> tuple[str | int | None, ...]:
    return tuple(getattr(page, field) for field in fields)


def _fields(page: Page) -> dict[str, str]:
    """What is printed, as a question writes it."""
    name = "" if page.name is None else page.name.title()
    return {
        "title": page.title.lower(),
        "number": str(page.number),
        "total": str(page.total),
        "name": name,
    }
