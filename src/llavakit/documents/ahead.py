"""Pages rendered ahead by a pool of renderers, in order, while those before them are used.

A renderer is a process (:mod:`llavakit.documents._isolated`) with a thread that asks it. What it
works at is a stretch: a document, or, of a long PDF, a few of its pages, so that a document by
itself keeps all of them busy. Which documents are given up is decided in order, in the thread of
the caller, by the same rule as without a pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from llavakit.documents._isolated import IsolatedPdf, Renderer
from llavakit.documents._stretches import LAST, Stretch, Stretches
from llavakit.documents.folders import Document, Failure
from llavakit.documents.one_document import (
    Pages,
    ReadItems,
    all_pages,
    attached_pages,
    limited,
    of_document,
    opened,
    page_of,
    wanted_of,
)
from llavakit.documents.pages import Opening
from llavakit.documents.passwords import Password
from llavakit.documents.ranges import PageRange
from llavakit.images import Picture, hold

PART = 4
"""Pages of a stretch of a long PDF; documents of up to twice that are rendered by one process."""
_DOCUMENTS = 4  # looked at ahead, for each renderer


def render_ahead(
    documents: Iterable[Document | Failure], opening: Opening, seconds: float, renderers: int
) -> ReadItems:
    """What comes of documents (see :func:`~llavakit.documents.files.read_items`).

    Args:
        documents: in order; each is taken when it is looked at ahead, in the caller's thread.
        opening: how they are opened. What it calls for a password is called in this thread.
        seconds: most for a page.
        renderers: processes that render.
    """
    with closing(Stretches(renderers, seconds)) as stretches:
        opening = replace(opening, password=_asked_here(opening.password, stretches))
        waiting: deque[_Ahead] = deque()
        for number, document in enumerate(documents):
            waiting.append(_Ahead(number, document, opening, stretches))
            if len(waiting) > _DOCUMENTS * renderers:
                yield from waiting.popleft().items()
        while waiting:
            yield from waiting.popleft().items()


def _asked_here(password: Password, stretches: Stretches) -> Password:
    """Return a password function that is called in the caller's thread; others as they are."""
    if not callable(password):
        return password
    ask: Callable[[str], str | None] = password
    return lambda name: stretches.on_caller(partial(ask, name))


class _Ahead:
    """A document whose pages are rendered ahead.

    Args:
        number: its place among the documents.
        document: the document, or a failure that takes its place.
        opening, stretches: of all documents.
    """

    def __init__(
        self, number: int, document: Document | Failure, opening: Opening, stretches: Stretches
    ) -> None:
        self._number = number
        self._document = document
        self._opening = opening
        self._stretches = stretches
        self._long: tuple[IsolatedPdf, PageRange] | None = None  # a PDF in parts, and its pages
        if isinstance(document, Document):
            self._first = stretches.add((number, 0), partial(self._begun, document))

    def items(self) -> ReadItems:
        """What comes of it, in order; to be asked for in the order of the documents."""
        return of_document(self._number, self._pages())

    def _pages(self) -> Pages:
        document = self._document
        if isinstance(document, Failure):
            yield document
            return
        with closing(self._stretches.taken(self._first)) as first:
            begin = list(islice(first, 1))  # what kind of document it is, is known from here on
            if self._long is None:
                yield from begin
                yield from first
                return
            reader, wanted = self._long
            done = len(document.earlier) + PART
            with closing(self._parts(document, reader, wanted.behind(done))) as parts:
                yield from limited(document, wanted, chain(begin, first, parts))
        if document.pages is None:
            attached = partial(self._attached, document, reader)
            tail = self._stretches.add((self._number, LAST), attached)
            yield from self._stretches.taken(tail)

    def _parts(self, document: Document, reader: IsolatedPdf, left: PageRange) -> Pages:
        """The further pages of a long PDF, of which several parts are rendered at once."""
        numbers = left.numbers(None)
        waiting: deque[Stretch] = deque()
        at = 0
        try:
            while some := list(islice(numbers, PART)):
                at += 1
                part = partial(self._part, document, reader, some)
                waiting.append(self._stretches.add((self._number, at), part))
                if len(waiting) > 2 * self._stretches.workers:
                    yield from self._stretches.taken(waiting.popleft())
            while waiting:
                yield from self._stretches.taken(waiting.popleft())
        finally:
            for stretch in waiting:
                self._stretches.drop(stretch)

    # What follows runs in the threads of the renderers.

    def _begun(self, document: Document, renderer: Renderer) -> Pages:
        """A document from its beginning; of a long PDF the first pages."""
        opening = replace(self._opening, renderer=renderer)
        reader = opened(document, opening, self._held)
        if isinstance(reader, Failure):
            yield reader
            return
        with closing(reader):
            if isinstance(reader, IsolatedPdf):
                wanted = wanted_of(document, reader)
                left = wanted.behind(len(document.earlier))
                if len(left) > 2 * PART:
                    self._long = reader, wanted
                    begin = list(islice(left.numbers(None), PART))
                    yield from self._part(document, reader, begin, renderer)
                    return
            yield from all_pages(document, reader, opening)

    def _part(
        self, document: Document, reader: IsolatedPdf, numbers: list[int], renderer: Renderer
    ) -> Pages:
        reader = reader.within(renderer)
        for number in numbers:
            yield page_of(document, reader, number)

    def _attached(self, document: Document, reader: IsolatedPdf, renderer: Renderer) -> Pages:
        opening = replace(self._opening, renderer=renderer)
        yield from attached_pages(document, reader.within(renderer), opening)

    def _held(self, source: Any, max_bytes: int) -> Any:
        """As ``hold``; objects of the caller's (files, arrays) are read in the caller's thread."""
        if isinstance(source, (str, bytes, Path, Picture)):
            return source
        return self._stretches.on_caller(partial(hold, source, max_bytes))
