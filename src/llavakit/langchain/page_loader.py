"""``PageImageLoader``: documents as LangChain's ``Document`` objects, one a page."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from threading import Lock
from typing import Any

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from langchain_core.runnables.config import run_in_executor

from llavakit._checks import checked
from llavakit.documents import LeftOut, PageRange, PageStore, View, open_files
from llavakit.documents.folders import several
from llavakit.documents.pages import MAX_PAGE_PIXELS
from llavakit.documents.passwords import Password
from llavakit.langchain.page_documents import (
    Documents,
    Model,
    OnError,
    PageDocuments,
    PageText,
    Skipped,
    takes_layer,
)
from llavakit.sources import DEFAULT_POLICY, SourcePolicy


class PageImageLoader(BaseLoader):
    """Pages of PDFs, TIFFs, images and folders of them, read as they look.

    >>> loader = PageImageLoader("scans/", text="transcribe", model=ChatLLaVA(model="demo"))
    >>> for document in loader.lazy_load():  # doctest: +SKIP
    ...     print(document.metadata["source"], document.metadata["page"], document.page_content)

    Nothing is opened before the first document is asked for. Pages are drawn as they are
    needed and read by the model many at a time. Documents have ids that depend on source,
    page and pixels alone, so that indexing the same file twice gives the same index.

    Args:
        sources: a file, folder, URL, or anything else that :func:`~llavakit.documents.open_files`
            takes, or a list of them.
        pages: pages to read of each document, such as ``"1-3,7"``; None reads all.
        text: which text becomes ``page_content``: ``"auto"``, ``"layer"``, ``"transcribe"``,
            ``"describe"``, or a :class:`~llavakit.documents.Task` (see
            :class:`~llavakit.langchain.page_documents.PageDocuments`).
        model: who reads: a ``ChatLLaVA``, an ``LLaVALLM`` or a backend.
        store: a folder, or :class:`~llavakit.documents.PageStore`, where the pages' images are
            kept. Without one, pages are drawn again from their documents when they are needed.
        dpi: resolution at which PDFs are drawn.
        max_pixels: most pixels of a page; larger ones are drawn smaller.
        on_error: ``"raise"`` at the first page or document that cannot be read, or ``"skip"``
            it: a warning is logged, and :attr:`skipped` has the error.
        page_seconds: most seconds for drawing a page (see ``open_files``).
        policy: which files and addresses may be opened.
        password: what opens encrypted documents: one for all, a mapping from names of files to
            passwords, or a function from a name to a password.

    Raises:
        ParameterError: values that make no sense, or a task without a model.
    """

    @checked
    def __init__(
        self,
        sources: Any,
        *,
        pages: str | None = None,
        text: PageText = "auto",
        model: Model | None = None,
        store: PageStore | str | os.PathLike[str] | None = None,
        dpi: float = 144,
        max_pixels: int = MAX_PAGE_PIXELS,
        on_error: OnError = "raise",
        page_seconds: float | None = 30.0,
        policy: SourcePolicy = DEFAULT_POLICY,
        password: Password = None,
    ) -> None:
        self.sources = several(sources)
        if pages is not None:
            PageRange.parse(pages)
        self._pages = pages
        self._policy = policy
        self._password = password
        view = View(dpi, max_pixels, takes_layer(text), page_seconds)
        self._making = PageDocuments(text, model, to_store(store), on_error, view)
        self._left_out: list[LeftOut] = []

    @property
    def skipped(self) -> list[Skipped]:
        """What was left out since the object was made, if errors are skipped."""
        return self._making.skipped

    @property
    def left_out(self) -> list[LeftOut]:
        """What was left out of folders, archives and portfolios: how many files of which suffix.

        Of a folder it is known when the first document is asked for, of others when they are read.
        """
        return self._left_out

    def lazy_load(self) -> Iterator[Document]:
        """The pages, each when it is asked for.

        Raises:
            InputError: a document or page that cannot be read, unless errors are skipped.
            EngineError, ModelError: the model failed.
        """
        return self._load()

    async def alazy_load(self) -> AsyncIterator[Document]:
        """As :meth:`lazy_load`, never blocking the event loop."""
        documents = self._load()
        running = Lock()  # a generator that is running cannot be closed

        def step() -> Document | None:
            with running:
                return next(documents, None)

        def close() -> None:
            with running:
                documents.close()

        try:
            while (document := await run_in_executor(None, step)) is not None:
                yield document
        finally:
            await run_in_executor(None, close)

    def _load(self) -> Documents:
        view = self._making.view
        pages = open_files(
            self.sources,
            pages=self._pages,
            dpi=view.dpi,
            max_pixels=view.max_pixels,
            text=view.text,
            page_seconds=view.page_seconds,
            policy=self._policy,
            password=self._password,
            left_out=self._left_out,
        )
        with closing(pages):
            yield from self._making.of(pages)


def to_store(store: PageStore | str | os.PathLike[str] | None) -> PageStore | None:
    """A page store, or the one in a folder."""
    return store if store is None or isinstance(store, PageStore) else PageStore(store)
