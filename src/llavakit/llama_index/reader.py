"""``PageImageReader``: documents as nodes of their pages' pictures."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self

from llama_index.core.bridge.pydantic import (
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)
from llama_index.core.readers.base import BasePydanticReader

from llavakit.documents import (
    Failure,
    Page,
    PageReference,
    PageStore,
    Reading,
    Task,
    Tiles,
    View,
    open_files,
    read_pages,
)
from llavakit.documents.pages import MAX_PAGE_PIXELS, label_of
from llavakit.errors import DocumentError, InputError, LlavaKitError, ParameterError
from llavakit.llama_index.llm import LLaVA
from llavakit.llama_index.pages import PageNode, checked_extra, page_node, to_store
from llavakit.sources import DEFAULT_POLICY, SourcePolicy

_logger = logging.getLogger(__name__)


class PageImageReader(BasePydanticReader):
    """Pages of PDFs, TIFFs and pictures, each an ``ImageNode`` that answers from its pixels.

    >>> reader = PageImageReader(store="pages/", llm=LLaVA(model="demo"))
    >>> nodes = reader.load_data("report.pdf")  # doctest: +SKIP
    >>> documents = SimpleDirectoryReader(
    ...     "scans/", file_extractor={".pdf": reader}
    ... ).load_data()  # doctest: +SKIP

    A node's text, by which it is found, is the PDF's own text layer, or what a model reads on
    the page. Its metadata say where its picture is (see
    :class:`~llavakit.documents.PageReference`), beside ``file_name``, ``file_path`` and
    ``page_label``; of these, prompts show the name and the label, and embeddings nothing. Its id
    is the same whenever the same page of the same document is read.

    Attributes:
        store: where pictures are kept, a folder or a ``PageStore``; None keeps them nowhere and
            draws them from the documents again. Documents without a path or address need one.
        llm: the model that reads pages without a text layer, many at once.
        text: ``"auto"`` takes the text layer where there is one; ``"model"`` has every page read.
        task, prompt, max_tokens, tiles: how the model reads (see
            :class:`~llavakit.documents.Task`).
        pages: the pages to read of each document, such as ``"1-3,7"``; None reads all.
        dpi, max_pixels, page_seconds: how pages are drawn (see
            :func:`~llavakit.documents.open_files`).
        policy: what may be opened.
        on_failure: called with each document or page that cannot be read, and the rest goes
            on; None raises the first one's error.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    store: PageStore | None = None
    llm: LLaVA | None = None
    text: Literal["auto", "model"] = "auto"
    task: Literal["transcribe", "describe"] = "transcribe"
    prompt: str = ""
    max_tokens: int = 1024
    tiles: Tiles | None = None
    pages: str | None = None
    dpi: float = 144.0
    max_pixels: int = MAX_PAGE_PIXELS
    page_seconds: float | None = 30.0
    policy: SourcePolicy = Field(default=DEFAULT_POLICY, exclude=True)
    on_failure: Callable[[Failure], None] | None = Field(default=None, exclude=True)

    @field_validator("store", mode="before")
    @classmethod
    def _folder_is_a_store(cls, store: Any) -> Any:
        return to_store(store)

    @field_serializer("store")
    def _store_as_folder(self, store: PageStore | None) -> str | None:
        return None if store is None else str(store.folder)

    @model_validator(mode="after")
    def _somebody_reads(self) -> Self:
        if self.text == "model" and self.llm is None:
            raise ParameterError('text="model" needs the model that reads the pages; give llm=.')
        return self

    @classmethod
    def class_name(cls) -> str:
        return "llavakit_page_image_reader"

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
            LlavaKitError: while iterating, unless ``on_failure`` is set: a document cannot be
                read, a page cannot be read, or it has no text and there is no ``llm``.
            EngineError, RemoteError, ModelError: while iterating: the model itself failed.

        Leaving the iteration cancels what the model is reading.
        """
        view = View(self.dpi, self.max_pixels, self.text == "auto", self.page_seconds)
        sources = list(file) if isinstance(file, (list, tuple)) else [file]
        opened = open_files(
            sources if fs is None else [self._remote(one, fs) for one in sources],
            pages=self.pages,
            dpi=view.dpi,
            max_pixels=view.max_pixels,
            text=view.text,
            page_seconds=view.page_seconds,
            policy=self.policy,
        )
        made = _Made(view, self.store, checked_extra(extra_info or {}))
        return self._nodes(opened, made, self._task())

    def load_data(self, file: Any, *args: Any, **kwargs: Any) -> list[PageNode]:  # type: ignore[override]
        """All nodes of documents; arguments and errors as in :meth:`lazy_load_data`."""
        return list(self.lazy_load_data(file, *args, **kwargs))

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

    async def alazy_load_data(  # type: ignore[override]
        self, file: Any, *args: Any, **kwargs: Any
    ) -> Iterable[PageNode]:
        """As :meth:`aload_data`: what the framework iterates must not block its event loop."""
        return await self.aload_data(file, *args, **kwargs)

    def _task(self) -> Task:
        return Task(self.task, self.prompt, max_tokens=self.max_tokens, tiles=self.tiles)

    def _remote(self, path: Any, fs: Any) -> _RemoteFile:
        if self.store is None:
            raise ParameterError(
                "Pages of another file system cannot be drawn again later; keep their pictures "
                "with store=."
            )
        return _RemoteFile(fs, str(path))

    def _nodes(
        self, opened: Generator[Page | Failure, None, None], made: _Made, task: Task
    ) -> Generator[PageNode, None, None]:
        with contextlib.closing(opened):
            # Neighbours that the model has to read are read together.
            for unread, group in groupby(opened, self._needs_reading):
                make = self._read if unread else self._take
                for one in make(group, made, task):
                    if isinstance(one, PageNode):
                        yield one
                    else:
                        self._tell(one)

    def _needs_reading(self, item: Page | Failure) -> bool:
        return isinstance(item, Page) and self.llm is not None and not (item.text or "").strip()

    def _take(
        self, items: Iterator[Page | Failure], made: _Made, task: Task
    ) -> Iterator[PageNode | Failure]:
        return map(made.of_layer, items)

    def _read(
        self, items: Iterator[Page | Failure], made: _Made, task: Task
    ) -> Iterator[PageNode | Failure]:
        assert self.llm is not None
        references: deque[PageReference | Failure] = deque()

        def noted() -> Iterator[Page | Failure]:
            for item in items:
                known = made.reference(item) if isinstance(item, Page) else item
                references.append(known)
                yield known if isinstance(known, Failure) else item

        with contextlib.closing(read_pages(self.llm.backend_for(), noted(), task)) as readings:
            for reading in readings:
                known = references.popleft()
                yield known if isinstance(known, Failure) else made.of_reading(known, reading)

    def _tell(self, failure: Failure) -> None:
        if self.on_failure is None:
            raise failure.error
        self.on_failure(failure)


@dataclass(frozen=True)
class _Made:
    """How pages become nodes."""

    view: View
    store: PageStore | None
    extra: Mapping[str, Any]

    def of_layer(self, item: Page | Failure) -> PageNode | Failure:
        """The node of a page that has its own text."""
        if isinstance(item, Failure):
            return item
        text = (item.text or "").strip()
        if not text:
            return Failure(
                item.source,
                item.number,
                DocumentError(
                    f"Page {item.number} of {label_of(item.source)} has no text to be found by; "
                    "give the reader a model that reads it: llm=LLaVA(...)."
                ),
            )
        known = self.reference(item)
        return known if isinstance(known, Failure) else page_node(known, text, self.extra)

    def of_reading(self, reference: PageReference, reading: Reading) -> PageNode | Failure:
        """The node of a page that the model read."""
        if reading.error is not None:
            return Failure(reading.source, reading.page, _as_input_error(reading.error, reference))
        label = f"Page {reference.number} of {label_of(reference.source)}"
        if reading.finish_reason == "length":
            _logger.warning("%s was not read to its end; raise max_tokens.", label)
        # The framework leaves nodes without a text out of indices, and says so to nobody.
        text = (reading.text or "").strip() or f"{label} (nothing to read)"
        return page_node(reference, text, self.extra)

    def reference(self, page: Page) -> PageReference | Failure:
        """Where the page is found again; its picture is in the store from now on."""
        source = _placed(page.source)
        if source is None and self.store is None:
            return Failure(
                page.source,
                page.number,
                DocumentError(
                    f"{label_of(page.source)} has no path, so that its pages cannot be found "
                    "again; keep their pictures with store=."
                ),
            )
        known = PageReference.of(page, self.view, self.store)
        return known if source is None else replace(known, source=source)


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


def _placed(name: str) -> str | None:
    """A document's name as it can be opened from anywhere; None if it cannot."""
    if "://" in name:
        return name
    path = Path(name)
    return str(path.absolute()) if path.is_file() else None


def _as_input_error(error: LlavaKitError, reference: PageReference) -> InputError:
    if isinstance(error, InputError):
        return error
    failure = DocumentError(
        f"Page {reference.number} of {label_of(reference.source)} could not be read: {error}"
    )
    failure.__cause__ = error
    return failure
