"""Questions about printed pages. A function returns ``None`` where a page has no such field."""

from __future__ import annotations

import random
from collections.abc import Callable

from llavakit.prompts.tools import compact_json

from . import wordings
from .asked import Asked, caption, hinted, kind_of_picture, with_article, worded
from .pages import NAMES, TITLES, Page
from .scenes import SHAPES


def page_json(page: Page) -> str:
    """Return what is printed on a page as JSON."""
    data: dict[str, str | int] = {"title": page.title, "number": page.number, "total": page.total}
    if page.name is not None:
        data["name"] = page.name
    if page.page is not None:
        data["page"] = page.page
    return compact_json(data)


def ask_title(page: Page, rng: random.Random) -> Asked:
    """Ask for the title."""
    return hinted(Asked("title", worded(rng, wordings.TITLE), page.title), rng)


def ask_number(page: Page, rng: random.Random) -> Asked:
    """Ask for the number under one of the names that people give it."""
    word = page.title.lower()
    called = rng.choice(("invoice", "invoice", "document", word, word))
    return hinted(Asked("number", worded(rng, wordings.NUMBER, w=called), str(page.number)), rng)


def ask_total(page: Page, rng: random.Random) -> Asked:
    """Ask for the total."""
    question = worded(rng, wordings.TOTAL, w=page.title.lower())
    return hinted(Asked("total", question, str(page.total)), rng)


def ask_name(page: Page, rng: random.Random) -> Asked | None:
    """Ask for the name."""
    if page.name is None:
        return None
    return hinted(Asked("name", worded(rng, wordings.NAME), page.name), rng)


def ask_page_number(page: Page, rng: random.Random) -> Asked | None:
    """Ask for the number of the page."""
    if page.page is None:
        return None
    return hinted(Asked("page number", worded(rng, wordings.PAGE_NUMBER), str(page.page)), rng)


def ask_read_all(page: Page, rng: random.Random) -> Asked:
    """Ask for all that is printed."""
    return Asked("read all", worded(rng, wordings.READ_ALL), page.text())


def ask_page_json(page: Page, rng: random.Random) -> Asked:
    """Ask for the fields as JSON."""
    return Asked("page json", worded(rng, wordings.PAGE_AS_JSON), page_json(page))


def ask_page_caption(page: Page, rng: random.Random) -> Asked:
    """Ask for a description."""
    return Asked("page caption", worded(rng, wordings.DESCRIBE), caption(page))


def ask_is_it(page: Page, rng: random.Random) -> Asked:
    """Ask whether the page is of a kind, or of which."""
    word = page.title.lower()
    yes = rng.random() < 0.5
    name = word if yes else rng.choice(TITLES).lower()
    if rng.random() < 0.3:
        return Asked("is it", worded(rng, wordings.KIND_OF_DOCUMENT), with_article(word))
    question = worded(rng, wordings.IS_IT, a=with_article(name))
    return hinted(Asked("is it", question, "yes" if name == word else "no"), rng)


def ask_absent(page: Page, rng: random.Random) -> Asked:
    """Ask about something that is not on the page, or whether a name is."""
    if rng.random() < 0.4:
        kind = rng.choice(SHAPES)
        question = worded(rng, wordings.SHAPE_ON_PAGE, s=kind)
        return Asked("page absent", question, f"there is no {kind}")
    if page.name is None:
        return Asked("page absent", worded(rng, wordings.ABSENT_NAME), "there is no name")
    name = page.name if rng.random() < 0.4 else rng.choice(NAMES)
    question = worded(rng, wordings.NAMED_ON_PAGE, n=name)
    return Asked("page absent", question, "yes" if name == page.name else "no")


ASK_PAGE: dict[str, Callable[[Page, random.Random], Asked | None]] = {
    "title": ask_title,
    "number": ask_number,
    "total": ask_total,
    "name": ask_name,
    "page number": ask_page_number,
    "read all": ask_read_all,
    "page json": ask_page_json,
    "page caption": ask_page_caption,
    "is it": ask_is_it,
    "kind": kind_of_picture,
    "page absent": ask_absent,
}
