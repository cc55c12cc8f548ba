"""Many documents, one after the other, as one stream of pages.

What cannot be read is a value in the stream, not an exception: a damaged file costs its own
pages and no others.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from llavakit._checks import check_integer, check_number, checked
from llavakit.documents._isolated import Renderer
from llavakit.documents.attachments import (
    DEEPEST,
    MARK,
    distinct,
    documents_among,
    others_among,
)
from llavakit.documents.folders import Document, Failure, list_documents
from llavakit.documents.limits import page_limit
from llavakit.documents.names import label_of
from llavakit.documents.pages import (
    MAX_PAGE_PIXELS,
    Opening,
    Page,
    open_reader,
)
from llavakit.documents.passwords import Password
from llavakit.documents.ranges import PageRange
from llavakit.documents.readers import PageReader
from llavakit.documents.suffixes import left_out_of
from llavakit.errors import (
    DocumentError,
    ImageError,
    InputError,
    ParameterError,
    RendererKilledError,
    RenderError,
)
from llavakit.images import Picture
from llavakit.sources import DEFAULT_POLICY, SourcePolicy

_logger = logging.getLogger("llavakit.documents")

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
    password: Password = None,
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
        password: what opens encrypted documents: one password for all, a mapping from paths or
            names of files to passwords, or a function that is given a document's name and
            returns its password, or None to leave it.

    Yields:
        Pages and, where one or a whole document cannot be read, failures, in order. What is
        attached to a PDF comes behind its pages, as documents ``a.pdf#attachment=b.pdf``. A
        document is given up after 100 bad pages in a row, or 3 that its renderer did not survive.

    Raises:
        ParameterError: at once, for arguments that make no sense.
        MissingDependencyError: while iterating: PDFs need ``llavakit[documents]``.
    """
    view = View(dpi, max_pixels, text, page_seconds)
    return read_documents(list_documents(sources, pages, policy), view, policy, password)


def read_documents(
    documents: Iterable[Document | Failure],
    view: View,
    policy: SourcePolicy,
    password: Password = None,
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
                reader = open_reader(
                    document.source,
                    label_of(document.source),
                    view.dpi,
                    limit,
                    policy,
                    view.text,
                    renderer,
                    password,
                )
            except ParameterError:
                raise  # of the call, and so of all documents
            except InputError as error:
                yield Failure(document.name, None, error)
                continue
            opening = Opening(view.dpi, limit, policy, view.text, renderer, password)
            with closing(reader):
                yield from _with_attached(document, reader, opening, DEEPEST)
    finally:
        if renderer is not None:
            renderer.close()


def _with_attached(document: Document, reader: PageReader, opening: Opening, depth: int) -> Pages:
    """The pages of a document, and of those that are attached to it if it is read whole."""
    yield from _read(document, reader)
    if document.pages is not None:
        return
    try:
        names = distinct(reader.attachments())
    except DocumentError as error:
        yield Failure(document.name, None, error, PageRange(()))
        return
    others = others_among(names)
    if others:
        _logger.warning("%s", left_out_of(document.name, others))
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
            yield from _with_attached(Document(inside), attached, opening, depth - 1)


def _read(document: Document, reader: PageReader) -> Pages:
    """The pages of a document: as many pages and failures as it declares, whatever happens."""
    limit = FailureLimit()
    for earlier in document.earlier:
        limit.see(earlier)
    last = reader.count()
    wanted = (document.pages or PageRange(((1, None),))).within(last)
    done = len(document.earlier)
    for number in islice(wanted.numbers(None), done, None):
        why = reader.spent or limit.reached
        if why:
            left = wanted.behind(done)
            yield Failure(document.name, None, _given_up(document, left, why), left)
            return
        item = _page(document, reader, number)
        limit.see(type(item.error).__name__ if isinstance(item, Failure) else None)
        yield item
        done += 1


def _page(document: Document, reader: PageReader, number: int) -> Page | Failure:
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
