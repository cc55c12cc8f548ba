"""The pages of one document, and of what is attached to it, in order.

Whatever happens to its pages, there are as many pages and failures as the document declares.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from llavakit.documents.attachments import (
    DEEPEST,
    MARK,
    distinct,
    documents_among,
    others_among,
)
from llavakit.documents.folders import Document, Failure
from llavakit.documents.names import label_of
from llavakit.documents.pages import Opening, Page
from llavakit.documents.ranges import PageRange
from llavakit.documents.readers import PageReader
from llavakit.documents.suffixes import LeftOut
from llavakit.errors import (
    DocumentError,
    ImageError,
    InputError,
    ParameterError,
    RendererKilledError,
    RenderError,
)
from llavakit.images import Picture, hold

Pages: TypeAlias = Generator[Page | Failure, None, None]


@dataclass(frozen=True, slots=True)
class ReadItem:
    """What came of a document, and of which one: documents may be opened ahead of their turn.

    Attributes:
        document: its place among the documents that were given, from 0.
        item: a page or a failure, of the document or of what is attached to it; None when the
            document is read to its end, once and last.
    """

    document: int
    item: Page | Failure | None


ReadItems: TypeAlias = Generator[ReadItem, None, None]


def of_document(number: int, pages: Pages) -> ReadItems:
    """The items of a document by its place, and its end."""
    with closing(pages):
        for item in pages:
            yield ReadItem(number, item)
    yield ReadItem(number, None)


def opened(
    document: Document, opening: Opening, holding: Callable[..., Any] = hold
) -> PageReader | Failure:
    """Open a document, or say why it cannot be opened.

    Args:
        document: which one.
        opening: how.
        holding: see :meth:`~llavakit.documents.pages.Opening.of_source`.

    Raises:
        ParameterError: what is wrong is of the call, and so of all documents.
        MissingDependencyError: PDFs need ``llavakit[documents]``.
    """
    try:
        return opening.of_source(document.source, document.name, label_of(document.source), holding)
    except ParameterError:
        raise
    except InputError as error:
        return Failure(document.name, None, error)


def all_pages(
    document: Document, reader: PageReader, opening: Opening, depth: int = DEEPEST
) -> Pages:
    """The pages of a document, and of those that are attached to it if it is read whole."""
    yield from own_pages(document, reader)
    if document.pages is None:
        yield from attached_pages(document, reader, opening, depth)


def own_pages(document: Document, reader: PageReader) -> Pages:
    """The pages of a document itself."""
    wanted, done = wanted_of(document, reader), len(document.earlier)
    numbers = islice(wanted.numbers(None), done, None)
    items = (page_of(document, reader, number) for number in numbers)
    yield from limited(document, wanted, items, lambda: reader.spent)


def attached_pages(
    document: Document, reader: PageReader, opening: Opening, depth: int = DEEPEST
) -> Pages:
    """The pages of documents that are attached to one."""
    try:
        names = distinct(reader.attachments())
    except DocumentError as error:
        yield Failure(document.name, None, error, PageRange(()))
        return
    others = others_among(names)
    if others:
        opening.note(LeftOut(document.name, others))
    for at in documents_among(names):
        inside = f"{document.name}{MARK}{names[at]}"
        label = label_of(inside)
        try:
            if depth < 1:
                raise DocumentError(
                    f"{label} is attached to an attachment of an attachment, which is not followed."
                )
            attached = opening.of_attached(reader.attachment(at), inside, label)
        except ImageError as error:
            yield Failure(inside, None, DocumentError(f"{label} cannot be read: {error}"))
            continue
        except DocumentError as error:
            yield Failure(inside, None, error)
            continue
        with closing(attached):
            yield from all_pages(Document(inside), attached, opening, depth - 1)


def wanted_of(document: Document, reader: PageReader) -> PageRange:
    """Return the pages to read of an open document; those that an earlier run read are first."""
    return (document.pages or PageRange(((1, None),))).within(reader.count())


def limited(
    document: Document,
    wanted: PageRange,
    items: Iterator[Page | Failure],
    spent: Callable[[], str] = lambda: "",
) -> Pages:
    """What is read of a document until it is given up; then a failure that names the rest.

    Args:
        document: the document; what an earlier run read of it counts.
        wanted: its pages.
        items: what comes of those that are not read yet, each when it is asked for.
        spent: says why no more can be read; "" while they can.
    """
    limit = FailureLimit()
    for earlier in document.earlier:
        limit.see(earlier)
    for done in range(len(document.earlier), len(wanted)):
        why = spent() or limit.reached
        if why:
            left = wanted.behind(done)
            yield Failure(document.name, None, _given_up(document, left, why), left)
            return
        item = next(items)
        limit.see(type(item.error).__name__ if isinstance(item, Failure) else None)
        yield item


def page_of(document: Document, reader: PageReader, number: int) -> Page | Failure:
    """Return a page, or why it cannot be read."""
    label = label_of(document.source)
    try:
        found = reader.page(number)
    except DocumentError as error:
        return Failure(document.name, number, error)
    except InputError as error:
        failure = DocumentError(f"Page {number} of {label} cannot be read: {error}")
        return Failure(document.name, number, failure)
    if found is None:
        missing = DocumentError(f"{label} has no page {number}; it has {reader.count()}.")
        return Failure(document.name, number, missing)
    image, layer = found
    return Page(document.name, number, Picture(image), None if layer is None else layer.text, layer)


def _given_up(document: Document, left: PageRange, why: str) -> DocumentError:
    wanted = str(left)
    wanted = wanted if len(wanted) <= 60 else f"{wanted[:60].rpartition(',')[0]},..."
    number = left.parts[0][0]
    return DocumentError(
        f"{label_of(document.source)} was given up before page {number}: {why}; "
        f"{_counted(len(left))} ({wanted}) not read; go on with pages={wanted!r}."
    )


def _counted(pages: int) -> str:
    return "1 page was" if pages == 1 else f"{pages:,} pages were"


class FailureLimit:
    """When a document is given up; a law of what happened to its pages and nothing else.

    So a reading that goes on where another one was killed gives up at the same page.
    """

    BAD_IN_A_ROW = 100
    FATAL = 3

    def __init__(self) -> None:
        self._bad = 0
        self._fatal = 0

    def see(self, error: str | None) -> None:
        """Takes note of a page: the name of its error's class, or None if it was read."""
        self._bad = self._bad + 1 if error else 0
        self._fatal += error in _FATAL

    @property
    def reached(self) -> str:
        """Why the document is to be left; "" where it is not."""
        return "too many of its pages cannot be read" if self.over else ""

    @property
    def over(self) -> bool:
        """Whether the document is to be left."""
        return self._bad >= self.BAD_IN_A_ROW or self._fatal >= self.FATAL


_FATAL = (RenderError.__name__, RendererKilledError.__name__)
