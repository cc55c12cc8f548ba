"""Many documents, one after the other, as one stream of pages.

What cannot be read is a value in the stream, not an exception: a damaged file costs its own
pages and nobody else's.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Any, TypeAlias

from llavakit._checks import check_integer, check_number, checked
from llavakit.documents._isolated import Renderer
from llavakit.documents.folders import Document, Failure, list_documents
from llavakit.documents.limits import page_limit
from llavakit.documents.pages import (
    MAX_PAGE_PIXELS,
    Page,
    PageReader,
    label_of,
    open_reader,
)
from llavakit.errors import DocumentError, InputError, RenderError
from llavakit.images import Picture
from llavakit.sources import DEFAULT_POLICY, SourcePolicy

if TYPE_CHECKING:
    from llavakit.documents.limits import PageLimit


Pages: TypeAlias = Generator[Page | Failure, None, None]


@checked
@dataclass(frozen=True, slots=True)
class View:
    """How the pages of documents become images (see :func:`open_files`)."""

    dpi: float = 144
    max_pixels: int = MAX_PAGE_PIXELS
    text: bool = False
    page_seconds: float | None = 30.0

    def __post_init__(self) -> None:
        check_number("dpi", self.dpi, above=0)
        check_integer("max_pixels", self.max_pixels, least=1)
        if self.page_seconds is not None:
            check_number("page_seconds", self.page_seconds, above=0)


@checked
def open_files(
    sources: Any,
    *,
    pages: str | None = None,
    dpi: float = 144,
    max_pixels: int = MAX_PAGE_PIXELS,
    text: bool = False,
    page_seconds: float | None = 30.0,
    policy: SourcePolicy = DEFAULT_POLICY,
) -> Pages:
    """The pages of many documents, each read when it is asked for.

    Args:
        sources: documents as :func:`~llavakit.documents.open_pages` takes them, folders, or
            :class:`Document` with pages of its own. Of a folder, all images and documents
            below it are read, in the order of their names; what is hidden and links to other
            folders are not. One alone need not stand in a list.
        pages: pages to read of each document, such as ``"1-3,7"`` or ``"5-"``; None reads all.
        dpi: resolution at which PDFs are drawn.
        max_pixels: most pixels of a page; larger ones are drawn smaller.
        text: also read the text layer of PDFs.
        page_seconds: most seconds for a page of a PDF. PDFs are drawn in a process of their
            own, which is ended when its time is over. None draws them in this process, for
            documents that are known to be harmless.
        policy: what may be opened, and the caps on bytes, pixels and sides.

    Yields:
        Pages and, where one or a whole document cannot be read, failures, in order. A document
        is given up after 100 bad pages in a row, or 3 that its renderer did not survive.

    Raises:
        ParameterError: at once, for arguments that make no sense.
        MissingDependencyError: while iterating: PDFs need ``llavakit[documents]``.
    """
    view = View(dpi, max_pixels, text, page_seconds)
    return read_documents(list_documents(sources, pages, policy), view, policy)


def read_documents(
    documents: Iterable[Document | Failure], view: View, policy: SourcePolicy
) -> Pages:
    """The pages of documents that are listed already (see :func:`open_files`)."""
    limit = page_limit(view.dpi, view.max_pixels, policy)
    renderer = None if view.page_seconds is None else Renderer(view.page_seconds)
    try:
        for document in documents:
            if isinstance(document, Failure):
                yield document
                continue
            try:
                reader = _opened(document, view, limit, policy, renderer)
            except InputError as error:
                yield Failure(document.name, None, error)
                continue
            try:
                yield from _read(document, reader)
            finally:
                reader.close()
    finally:
        if renderer is not None:
            renderer.close()


def _opened(
    document: Document,
    view: View,
    limit: PageLimit,
    policy: SourcePolicy,
    renderer: Renderer | None,
) -> PageReader:
    label = label_of(document.source)
    return open_reader(document.source, label, view.dpi, limit, policy, view.text, renderer)


def _read(document: Document, reader: PageReader) -> Pages:
    patience = FailureLimit()
    for earlier in document.earlier:
        patience.see(earlier)
    numbers = count(1) if document.pages is None else document.pages.numbers(_count(reader))
    for number in islice(numbers, len(document.earlier), None):
        if patience.over:
            yield Failure(document.name, None, _given_up(document, number))
            return
        if patience.failing and number > (_count(reader) or 0):
            return  # nobody knows where a damaged TIFF ends; PDFs tell
        item = _page(document, reader, number)
        if item is None:
            return
        patience.see(type(item.error).__name__ if isinstance(item, Failure) else None)
        yield item


def _page(document: Document, reader: PageReader, number: int) -> Page | Failure | None:
    """One page; None behind the end, if nobody asked for this one."""
    try:
        found = reader.page(number)
    except DocumentError as error:
        return Failure(document.name, number, error)
    except InputError as error:
        label = label_of(document.source)
        failure = DocumentError(f"Page {number} of {label} cannot be read: {error}")
        return Failure(document.name, number, failure)
    if found is not None:
        return Page(document.name, number, Picture(found[0]), found[1])
    if document.pages is None:
        return None
    last = _count(reader)
    known = "" if last is None else f"; it has {last}"
    missing = DocumentError(f"{label_of(document.source)} has no page {number}{known}.")
    return Failure(document.name, number, missing)


def _count(reader: PageReader) -> int | None:
    try:
        return reader.count()
    except DocumentError:
        return None


def _given_up(document: Document, number: int) -> DocumentError:
    return DocumentError(
        f"{label_of(document.source)} was given up before page {number}: too many of its pages "
        f"cannot be read; go on with pages={f'{number}-'!r}."
    )


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
        self._fatal += error == RenderError.__name__

    @property
    def failing(self) -> bool:
        """Whether the last page could not be read."""
        return self._bad > 0

    @property
    def over(self) -> bool:
        """Whether the document is to be left."""
        return self._bad >= self.BAD_IN_A_ROW or self._fatal >= self.FATAL
