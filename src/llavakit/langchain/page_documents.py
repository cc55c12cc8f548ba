"""Pages of documents <-> LangChain's ``Document``: the text that is searched, and where the
image is found again.

A ``Document`` carries no pixels. Its metadata are a
:class:`~llavakit.documents.PageReference`: flat, JSON-safe, and enough to get the same image
back or an error.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, TypeAlias

from langchain_core.documents import Document

from llavakit._checks import checked
from llavakit.backend import Backend
from llavakit.documents import Failure, Page, PageReference, PageStore, Reading, Task, View
from llavakit.documents.reading import read_pages
from llavakit.documents.text_layer import TextLayer, with_layer
from llavakit.errors import LlavaKitError, ParameterError
from llavakit.settings import ModelSettings

logger = logging.getLogger(__name__)

PageText: TypeAlias = Literal["auto", "layer", "transcribe", "describe"] | Task
OnError: TypeAlias = Literal["raise", "skip"]
Model: TypeAlias = Backend | ModelSettings
Documents: TypeAlias = Generator[Document, None, None]

FILE_PATH = "file_path"
"""The source once more: some vector stores write their own address over ``source``."""

_IDS = uuid.UUID("1f0e2ad2-4f5f-5c56-9b0c-6f6c6c617661")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A page, or a document, that is not among the results.

    Attributes:
        source: the document's name.
        page: the page's number; None if the (rest of the) document is meant.
        error: why.
    """

    source: str
    page: int | None
    error: LlavaKitError


@dataclass(frozen=True)
class PageDocuments:
    """How pages become ``Document`` objects.

    Attributes:
        text: what ``page_content`` is: ``"transcribe"`` and ``"describe"`` ask the model, and a
            :class:`~llavakit.documents.Task` asks it with other words, tiles or a schema;
            ``"auto"`` takes a PDF's own text where it says what the page shows (see
            :attr:`~llavakit.documents.TextLayer.is_whole`) and asks the model, if there is one,
            for a transcription of the other pages; ``"layer"`` asks it only where there is no
            text at all.
        model: a backend, or a model object such as ``ChatLLaVA``.
        store: where images are kept; None keeps them nowhere.
        on_error: ``"raise"``, or ``"skip"`` to go on without a page; it is logged and collected.
        view: how pages are drawn.
        skipped: what was left out.
    """

    text: PageText
    model: Model | None
    store: PageStore | None
    on_error: OnError
    view: View
    skipped: list[Skipped] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not (isinstance(self.text, Task) or self.text in _TASKS):
            raise ParameterError(
                f"text is {self.text!r}; use auto, layer, transcribe, describe or a Task."
            )
        if self.on_error not in ("raise", "skip"):
            raise ParameterError(f"on_error is {self.on_error!r}; use raise or skip.")
        if self.model is None and not takes_layer(self.text):
            raise ParameterError(
                "Reading pages takes a model; give model=ChatLLaVA(...) or a backend, or take the "
                'text layer of PDFs with text="auto".'
            )
        if not isinstance(self.model, (Backend, ModelSettings, type(None))):
            raise ParameterError(
                f"A {type(self.model).__name__} reads no pages; give a ChatLLaVA or a backend."
            )

    def of(self, pages: Iterable[Page | Failure]) -> Documents:
        """A document for each page, in their order, each when it is asked for.

        Raises:
            LlavaKitError: a page cannot be read, unless it is skipped.
        """
        without_text = doubtful = 0
        for asks, some in groupby(pages, self._asks_model):
            if asks:
                yield from self._read(some)
                continue
            for page in some:
                if isinstance(page, Failure):
                    self._skip(page.source, page.number, page.error)
                    continue
                text = (page.text or "").strip()
                without_text += not text
                doubtful += bool(text) and self.text == "auto" and page.needs_reading
                yield self._document(page, text)
        if without_text:
            logger.warning(
                "Pages without a text layer: %d. Nothing in them can be searched; give a model, "
                "which transcribes them.",
                without_text,
            )
        if doubtful:
            logger.warning(
                "Pages whose text does not say what they show (scans with a stamp, broken fonts): "
                "%d. Give a model, which transcribes them.",
                doubtful,
            )

    def _asks_model(self, page: Page | Failure) -> bool:
        if not takes_layer(self.text):
            return True
        if self.model is None or isinstance(page, Failure):
            return False
        return page.needs_reading if self.text == "auto" else not (page.text or "").strip()

    def _read(self, pages: Iterable[Page | Failure]) -> Documents:
        waiting: deque[tuple[Document, TextLayer | None] | None] = deque()

        def noted() -> Iterator[Page | Failure]:
            # Pixels are not kept: what is left of a page while the model reads is its reference.
            for page in pages:
                known = (self._document(page, ""), page.layer) if isinstance(page, Page) else None
                waiting.append(known)
                yield page

        task = self.text if isinstance(self.text, Task) else Task(_TASKS[self.text])
        with closing(read_pages(_backend(self.model), noted(), task)) as readings:
            for reading in readings:
                known = waiting.popleft()
                if known is None or reading.error is not None:
                    assert reading.error is not None  # None stands for a failure
                    self._skip(reading.source, reading.page, reading.error)
                else:
                    yield _with_reading(*known, reading)

    def _skip(self, source: str, page: int | None, error: LlavaKitError) -> None:
        if self.on_error == "raise":
            raise error
        where = source if page is None else f"page {page} of {source}"
        logger.warning("Left out %s: %s", where, error)
        self.skipped.append(Skipped(source, page, error))

    def _document(self, page: Page, text: str) -> Document:
        return page_document(PageReference.of(page, self.view, self.store), text, page.source)


_TASKS: dict[str, Literal["transcribe", "describe"]] = {
    "auto": "transcribe",
    "layer": "transcribe",
    "transcribe": "transcribe",
    "describe": "describe",
}


def page_document(reference: PageReference, text: str, name: str | None = None) -> Document:
    """Return the document of a page: its text, and where its image is found again.

    Args:
        reference: the page.
        text: what it is searched by.
        name: of its source, where that is not the one of the reference.
    """
    name = reference.source if name is None else name
    return Document(
        id=str(uuid.uuid5(_IDS, f"{reference.sha256} {reference.number} {name}")),
        page_content=text,
        metadata={**reference.metadata(), FILE_PATH: name},
    )


@checked
def reference_of(document: Document) -> PageReference | None:
    """The page that a document stands for; None if it is of another kind.

    Raises:
        DocumentError: it was made of a page, and what is left of its metadata names none.
    """
    metadata = document.metadata
    if "sha256" not in metadata or "page" not in metadata:
        return None
    source = metadata.get(FILE_PATH) or metadata.get("source")
    return PageReference.from_metadata({**metadata, "source": source})


def _backend(model: Any) -> Backend:
    return model if isinstance(model, Backend) else model.backend_for()


def takes_layer(text: PageText) -> bool:
    """Whether pages are searched by their own text, where they have one."""
    return text in ("auto", "layer")


def _with_reading(document: Document, layer: TextLayer | None, reading: Reading) -> Document:
    """The document with what the model said of its page."""
    known = with_layer(reading.text or "", layer)
    if reading.data is not None:
        known = json.dumps(reading.data, ensure_ascii=False)
    if reading.finish_reason == "length":
        logger.warning(
            "Page %s of %s was not read to its end; raise max_tokens of the Task.",
            reading.page,
            reading.source,
        )
        document.metadata["cut"] = True
    if reading.confidence is not None:
        document.metadata |= reading.confidence.metadata()
    document.page_content = known
    return document
