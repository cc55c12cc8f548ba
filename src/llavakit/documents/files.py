"""Many documents, one after the other, as one stream of pages.

What cannot be read is a value in the stream, not an exception: a damaged file costs its own
pages and no others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from typing import Any

from llavakit._checks import checked
from llavakit.documents._isolated import Renderer
from llavakit.documents.ahead import render_ahead
from llavakit.documents.folders import Document, Failure, list_documents
from llavakit.documents.limits import page_limit
from llavakit.documents.one_document import Pages, ReadItems, all_pages, of_document, opened
from llavakit.documents.pages import MAX_PAGE_PIXELS, Opening
from llavakit.documents.passwords import Password
from llavakit.documents.suffixes import LeftOut, Note, log_left_out, noting
from llavakit.documents.view import View
from llavakit.sources import DEFAULT_POLICY, SourcePolicy

MOST_RENDERERS = 4
"""Most processes that render, unless the caller says otherwise: each is a copy of pdfium."""


@checked
def open_files(
    sources: Any,
    *,
    pages: str | None = None,
    dpi: float = 144,
    max_pixels: int = MAX_PAGE_PIXELS,
    text: bool = False,
    page_seconds: float | None = 30.0,
    renderers: int | None = None,
    policy: SourcePolicy = DEFAULT_POLICY,
    password: Password = None,
    left_out: list[LeftOut] | None = None,
) -> Pages:
    """The pages of many documents, in order; the next ones are rendered while one is used.

    Args:
        sources: documents as :func:`~llavakit.documents.open_pages` takes them, folders, or
            :class:`Document` with pages of its own. Of a folder, all images and documents
            below it are read, in the order of their names; what is hidden and links to other
            folders are not. One alone need not stand in a list.
        pages: pages to read of each document, such as ``"1-3,7"`` or ``"5-"``; None reads all.
        dpi: resolution at which PDFs are rendered.
        max_pixels: most pixels of a page; larger ones are rendered smaller.
        text: also read the text layer of PDFs.
        page_seconds: most seconds for a page of a PDF. PDFs are rendered in processes of their
            own, each of which is ended when its time is over. None renders them in this process,
            page by page, for documents that are known to be harmless.
        renderers: processes that render ahead, in the order of the pages, while those before are
            used: at most some pages (32 million pixels, and 8 pages for each process). 1 renders
            each page when it is asked for; None takes as many as there are cores, 2 to 4.
        policy: what may be opened, and the caps on bytes, pixels and sides.
        password: what opens encrypted documents: one password for all, a mapping from paths or
            names of files to passwords, or a function that is given a document's name and
            returns its password, or None to leave it.
        left_out: a list to which is added what is left out of folders, archives and portfolios;
            it is logged as well.

    Yields:
        Pages and, where one or a whole document cannot be read, failures, in order. What is
        attached to a PDF comes behind its pages, as documents ``a.pdf#attachment=b.pdf``. A
        document is given up after 100 bad pages in a row, or 3 that its renderer did not survive.

    Raises:
        ParameterError: at once, for arguments that make no sense.
        MissingDependencyError: while iterating: PDFs need ``llavakit[documents]``.
    """
    view = View(dpi, max_pixels, text, page_seconds, renderers)
    note = log_left_out if left_out is None else noting(left_out)
    listed = list_documents(sources, pages, policy, note)
    return read_documents(listed, view, policy, password, note)


def read_documents(
    documents: Iterable[Document | Failure],
    view: View,
    policy: SourcePolicy,
    password: Password = None,
    note: Note = log_left_out,
) -> Pages:
    """The pages of documents that are listed already (see :func:`open_files`)."""
    with closing(read_items(documents, view, policy, password, note)) as items:
        for one in items:
            if one.item is not None:
                yield one.item


def read_items(
    documents: Iterable[Document | Failure],
    view: View,
    policy: SourcePolicy,
    password: Password = None,
    note: Note = log_left_out,
) -> ReadItems:
    """What comes of documents, each item with its document's place, and the end of each document.

    Args:
        documents: in order; taken in the caller's thread, and ahead of their turn by several
            renderers.
        view, policy, password, note: as in :func:`open_files`.
    """
    limit = page_limit(view.dpi, view.max_pixels, policy)
    opening = Opening(view.dpi, limit, policy, view.text, None, password, note)
    if view.page_seconds is None or view.renderers == 1:
        yield from _one_by_one(documents, opening, view.page_seconds)
        return
    renderers = view.renderers or min(MOST_RENDERERS, max(2, _cores()))
    with closing(render_ahead(documents, opening, view.page_seconds, renderers)) as items:
        yield from items


def _one_by_one(
    documents: Iterable[Document | Failure], opening: Opening, seconds: float | None
) -> ReadItems:
    """What comes of documents, each page rendered when it is asked for, in this thread."""
    renderer = None if seconds is None else Renderer(seconds)
    opening = replace(opening, renderer=renderer)
    try:
        for number, document in enumerate(documents):
            yield from of_document(number, _alone(document, opening))
    finally:
        if renderer is not None:
            renderer.close()


def _alone(document: Document | Failure, opening: Opening) -> Pages:
    reader = document if isinstance(document, Failure) else opened(document, opening)
    if isinstance(reader, Failure):
        yield reader
        return
    assert isinstance(document, Document)  # what is open is no failure
    with closing(reader):
        yield from all_pages(document, reader, opening)


def _cores() -> int:
    """The processor's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
