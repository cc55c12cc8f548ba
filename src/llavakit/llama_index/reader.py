"""``PageImageReader``: documents as nodes of their pages' images."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, Literal, Self, TypeAlias

from llama_index.core.bridge.pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    field_serializer,
    field_validator,
    model_validator,
)
from llama_index.core.readers.base import BasePydanticReader

from llavakit._checks import checked
from llavakit.documents import (
    Failure,
    LeftOut,
    Page,
    PageReference,
    PageStore,
    Task,
    TextLayer,
    View,
    open_files,
    read_pages,
)
from llavakit.documents.pages import MAX_PAGE_PIXELS
from llavakit.errors import ParameterError
from llavakit.llama_index.llm import LLaVA
from llavakit.llama_index.page_nodes import PageNodes
from llavakit.llama_index.pages import (
    OnError,
    PageNode,
    PageOpening,
    checked_extra,
    to_store,
)
from llavakit.llama_index.policy_required import PolicyRequired
from llavakit.sources import DEFAULT_POLICY, SourcePolicy

_logger = logging.getLogger(__name__)

PageText: TypeAlias = Literal["auto", "layer", "transcribe", "describe"] | Task
Found: TypeAlias = Generator[PageNode | Failure, None, None]


class PageImageReader(PolicyRequired, BasePydanticReader):
    """Pages of PDFs, TIFFs and images, each an ``ImageNode`` that answers from its pixels.

    >>> reader = PageImageReader(store="pages/", llm=LLaVA(model="demo"))  # doctest: +SKIP
    >>> nodes = reader.load_data("report.pdf")  # doctest: +SKIP
    >>> documents = SimpleDirectoryReader(
    ...     "scans/", file_extractor={".pdf": reader}
    ... ).load_data()  # doctest: +SKIP

    A node's text, by which it is found, is the PDF's own text layer, or what a model reads on
    the page. Its metadata say where its image is (see
    :class:`~llavakit.documents.PageReference`), beside ``file_name``, ``file_path`` and
    ``page_label``; of these, prompts show the name and the label, and embeddings nothing. Its id
    is the same whenever the same page of the same document is read.

    Attributes:
        store: where images are kept, a folder or a ``PageStore``; None keeps them nowhere and
            draws them from the documents again, which for addresses is to fetch them again.
            Documents without a path or address need one.
        text: what nodes are found by. ``"auto"`` takes the text layer where it says what the
            page shows (see :attr:`~llavakit.documents.TextLayer.is_whole`), and asks the model,
            if there is one, for a transcription of the other pages: scans with a stamp, fonts
            without a meaning. ``"layer"`` asks it only where there is no text at all;
            ``"transcribe"`` and ``"describe"`` ask it about every page, and a
            :class:`~llavakit.documents.Task` with other words, tiles or a schema.
        llm: the model that reads, many pages at once.
        pages: the pages to read of each document, such as ``"1-3,7"``; None reads all.
        dpi, max_pixels, page_seconds: how pages are drawn (see
            :func:`~llavakit.documents.open_files`).
        policy: what may be opened.
        on_error: ``"raise"`` at the first document or page that cannot be read, or ``"skip"``
            it: a warning is logged, and :attr:`skipped` has the error.
        password: what opens encrypted documents: one for all, a mapping from names of files to
            passwords, or a function from a name to a password. It is not written down with the
            reader or its nodes.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    store: PageStore | None = None
    text: PageText = "auto"
    llm: LLaVA | None = None
    pages: str | None = None
    dpi: float = 144.0
    max_pixels: int = MAX_PAGE_PIXELS
    page_seconds: float | None = 30.0
    policy: SourcePolicy = Field(default=DEFAULT_POLICY)
    on_error: OnError = "raise"
    password: Any = Field(default=None, exclude=True, repr=False)
    _skipped: list[Failure] = PrivateAttr(default_factory=list)
    _left_out: list[LeftOut] = PrivateAttr(default_factory=list)

    @field_validator("store", mode="before")
    @classmethod
    def _folder_is_a_store(cls, store: Any) -> Any:
        return to_store(store)

    @field_serializer("store")
    def _store_as_folder(self, store: PageStore | None) -> str | None:
        return None if store is None else str(store.folder)

    @model_validator(mode="after")
    def _somebody_reads(self) -> Self:
        if not self._takes_layer() and self.llm is None:
            raise ParameterError(
                "Reading pages takes a model; give llm=LLaVA(...), or take the text layer of PDFs "
                'with text="auto".'
            )
        return self

    @property
    def skipped(self) -> list[Failure]:
        """What was left out since the object was made, if errors are skipped."""
        return self._skipped

    @property
    def left_out(self) -> list[LeftOut]:
        """What was left out of folders, archives and portfolios: how many files of which suffix.

        Of a folder it is known when it is given, of others when they are read.
        """
        return self._left_out

    @classmethod
    def class_name(cls) -> str:
        return "llavakit_page_image_reader"

    @checked
    def lazy_load_data(  # type: ignore[override]
        self, file: Any, extra_info: Mapping[str, Any] | None = None, fs: Any = None
    ) -> Generator[PageNode, None, None]:
        """The nodes of documents, each when it is asked for.

        Args:
            file: a document, a folder, or a list of them, as
                :func:`~llavakit.documents.open_files` takes them.
            extra_info: metadata for every node.
            fs: the (fsspec) file system of the files, where it is not the local one.

        Raises:
            ParameterError: at once, for what makes no sense.
            LlavaKitError: while iterating, unless errors are skipped: a document cannot be
                read, a page cannot be read, or it has no text and there is no ``llm``.
            EngineError, RemoteError, ModelError: while iterating: the model itself failed.

        Leaving the iteration cancels what the model is reading.
        """
        view = View(self.dpi, self.max_pixels, self._takes_layer(), self.page_seconds)
        sources = list(file) if isinstance(file, (list, tuple)) else [file]
        opened = open_files(
            sources if fs is None else [self._remote(one, fs) for one in sources],
            pages=self.pages,
            dpi=view.dpi,
            max_pixels=view.max_pixels,
            text=view.text,
            page_seconds=view.page_seconds,
            policy=self.policy,
            password=self.password,
            left_out=self._left_out,
        )
        opening = PageOpening(self.policy, self.store, self.page_seconds, self.password)
        made = PageNodes(view, self.store, checked_extra(extra_info or {}), opening)
        return self._nodes(opened, made, self._task())

    @checked
    def load_data(self, file: Any, *args: Any, **kwargs: Any) -> list[PageNode]:  # type: ignore[override]
        """All nodes of documents; arguments and errors as in :meth:`lazy_load_data`."""
        return list(self.lazy_load_data(file, *args, **kwargs))

    @checked
    async def aload_data(  # type: ignore[override]
        self, file: Any, *args: Any, **kwargs: Any
    ) -> list[PageNode]:
        """As :meth:`load_data`, off the event loop; cancelling it stops at the next page."""
        stop = threading.Event()

        def load() -> list[PageNode]:
            found = []
            with contextlib.closing(self.lazy_load_data(file, *args, **kwargs)) as nodes:
                for node in nodes:
                    if stop.is_set():
                        break
                    found.append(node)
            return found

        try:
            return await asyncio.to_thread(load)
        finally:
            stop.set()

    @checked
    async def alazy_load_data(  # type: ignore[override]
        self, file: Any, *args: Any, **kwargs: Any
    ) -> Iterable[PageNode]:
        """As :meth:`aload_data`: what the framework iterates must not block its event loop."""
        return await self.aload_data(file, *args, **kwargs)

    def _task(self) -> Task:
        if isinstance(self.text, Task):
            return self.text
        return Task("describe" if self.text == "describe" else "transcribe")

    def _remote(self, path: Any, fs: Any) -> _RemoteFile:
        if self.store is None:
            raise ParameterError(
                "Pages of another file system cannot be drawn again later; keep their images "
                "with store=."
            )
        return _RemoteFile(fs, str(path))

    def _nodes(
        self, opened: Generator[Page | Failure, None, None], made: PageNodes, task: Task
    ) -> Generator[PageNode, None, None]:
        with contextlib.closing(opened):
            # Neighbours that the model has to read are read together.
            for unread, group in groupby(opened, self._needs_reading):
                make = self._read if unread else self._take
                with contextlib.closing(make(group, made, task)) as found:
                    for one in found:
                        if isinstance(one, PageNode):
                            yield one
                        else:
                            self._skip(one)

    def _takes_layer(self) -> bool:
        return self.text in ("auto", "layer")

    def _needs_reading(self, item: Page | Failure) -> bool:
        if self.llm is None or isinstance(item, Failure):
            return False
        return item.needs_reading if self.text == "auto" else not (item.text or "").strip()

    def _take(self, items: Iterator[Page | Failure], made: PageNodes, task: Task) -> Found:
        doubtful = 0
        for item in items:
            page = item if isinstance(item, Page) and self.text == "auto" else None
            doubtful += page is not None and bool(page.text) and page.needs_reading
            yield made.of_layer(item)
        if doubtful:
            _logger.warning(
                "Pages whose text does not say what they show (scans with a stamp, broken fonts): "
                "%d. Give the reader a model that transcribes them: llm=LLaVA(...).",
                doubtful,
            )

    def _read(self, items: Iterator[Page | Failure], made: PageNodes, task: Task) -> Found:
        assert self.llm is not None
        waiting: deque[tuple[PageReference, TextLayer | None] | Failure] = deque()

        def noted() -> Iterator[Page | Failure]:
            for item in items:
                known = made.reference(item) if isinstance(item, Page) else item
                if isinstance(known, Failure):
                    waiting.append(known)
                    yield known
                else:
                    assert isinstance(item, Page)
                    waiting.append((known, item.layer))
                    yield item

        with contextlib.closing(read_pages(self.llm.backend_for(), noted(), task)) as readings:
            for reading in readings:
                known = waiting.popleft()
                yield known if isinstance(known, Failure) else made.of_reading(*known, reading)

    def _skip(self, failure: Failure) -> None:
        if self.on_error == "raise":
            raise failure.error
        _logger.warning("Left out: %s", failure.error)
        self._skipped.append(failure)


class _RemoteFile:
    """A file of an fsspec file system, opened when it is read."""

    def __init__(self, fs: Any, path: str) -> None:
        self.name = str(fs.unstrip_protocol(path))
        self._fs = fs
        self._path = path
        self._file: Any = None

    def read(self, size: int = -1) -> bytes:
        """As files have it."""
        if self._file is None:
            self._file = self._fs.open(self._path, "rb")
        data: bytes = self._file.read(size)
        if not data:
            self._file.close()
        return data
