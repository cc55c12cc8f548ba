"""An update at work: pages are drawn, embedded and committed, a batch at a time.

Pages are rendered ahead by several processes. Each item that is read says which document it is of,
and a document begins in the ledger when its first item is used, so that nothing depends on how far
ahead others were opened.

A batch is on the disk in two steps, first the rows in the store, then the ledger. A run that is
killed between them has rows of which the ledger knows nothing; they are deleted when the document
goes on. So the index is the same, however often it was killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from llavakit.documents import Document, Failure, Page, PageReference, View
from llavakit.documents.files import read_items
from llavakit.documents.names import label_of
from llavakit.documents.one_document import ReadItem
from llavakit.documents.passwords import Password
from llavakit.embeddings import Embedder, Embedding
from llavakit.errors import DocumentError, LlavaKitError, ModelError
from llavakit.retrieval.changes import Plan, facts_of, wish_of
from llavakit.retrieval.ledger import DocumentEntry, FileFacts, IndexFailure, Ledger, Settled
from llavakit.retrieval.vectors import PageRow, PageVectors
from llavakit.runs.window import OF_ONE_REQUEST
from llavakit.sources import SourcePolicy

COMMIT_PAGES = 64
"""Most pages that a kill can cost."""
COMMIT_SECONDS = 10.0
"""Most seconds, for models that take long for a page."""


@dataclass(frozen=True, slots=True)
class IndexProgress:
    """One page, or failure, that is on the disk from now on.

    Attributes:
        item: the page's reference, or why it is not in the index.
        documents: how many documents of this update are finished.
        of: how many it has.
    """

    item: PageReference | IndexFailure
    documents: int
    of: int


@dataclass
class _Open:
    """A document whose items are used.

    Attributes:
        number: its place in the plan.
        entry: in the ledger.
        name: of its own pages.
        place: of the next item.
        outcomes: settled pages of its own.
        pages, failures: what was added since the last commit.
        done: whether it is read to its end.
    """

    number: int
    entry: DocumentEntry
    name: str
    place: int
    outcomes: int
    pages: int = 0
    failures: dict[int, IndexFailure] = field(default_factory=dict)
    done: bool = False

    def settled(self) -> Settled:
        """What the next commit writes down; from then on it counts anew."""
        one = Settled(self.entry, self.outcomes, self.pages, self.failures, self.done)
        self.pages, self.failures = 0, {}
        return one


@dataclass(frozen=True)
class UpdateSettings:
    """How pages are drawn and embedded.

    Attributes:
        view: how documents become images, and how many processes render them ahead.
        pool: how many alike vectors of a page become one.
        batch: pages that are embedded at once; their images are in memory.
        policy: what may be opened.
        password: what opens encrypted documents.
    """

    view: View
    pool: int
    batch: int
    policy: SourcePolicy
    password: Password


class Update:
    """One run of an update.

    Attributes:
        added: pages that it has indexed.
        failures: what could not be indexed.
        texts: pages among them that have a text.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: PageVectors,
        embedder: Embedder,
        settings: UpdateSettings,
        progress: Callable[[IndexProgress], None] | None,
    ) -> None:
        self.added = 0
        self.texts = 0
        self.failures: list[IndexFailure] = []
        self._ledger = ledger
        self._store = store
        self._embedder = embedder
        self._settings = settings
        self._progress = progress
        self._plan = Plan()
        self._facts: dict[int, FileFacts] = {}  # of documents that are opened, and not used yet
        self._open: list[_Open] = []  # the last one is being used, the others wait for the commit
        self._drawn: list[tuple[_Open, int, Page]] = []
        self._rows: list[PageRow] = []
        self._items: list[PageReference | IndexFailure] = []
        self._finished = 0
        self._committed = time.monotonic()

    def run(self, plan: Plan) -> None:
        """Do what a plan says.

        Raises:
            SourceFetchError: the index cannot be written.
            EngineError, ModelError, RemoteError: the model failed, and so would all pages; the
                same update goes on later.
        """
        for entry, facts in plan.touched:
            self._ledger.touch(entry, facts)
        for entry in plan.outdated:
            self._store.delete(entry.id)
            self._ledger.remove(entry.name)
        self._plan = plan
        settings = self._settings
        read = read_items(self._fed(), settings.view, settings.policy, settings.password)
        with closing(read) as items:
            for one in items:
                self._take(one)
        self._commit()

    def _fed(self) -> Iterator[Document | Failure]:
        """The documents; asked for each when it is opened, which may be far ahead of its turn."""
        for number, (item, entry) in enumerate(self._plan.todo):
            if isinstance(item, Failure):
                yield item
            elif entry is not None:
                yield replace(item, earlier=self._ledger.outcomes(entry))
            else:
                # Before it is opened: of a file that changes meanwhile, the next update sees it.
                self._facts[number] = facts_of(item.name)
                yield item

    def _begun(self, number: int) -> _Open:
        """A document by its place in the plan; begun in the ledger when it is used first."""
        if self._open and self._open[-1].number == number:
            return self._open[-1]
        item, entry = self._plan.todo[number]
        name = item.source if isinstance(item, Failure) else item.name
        if entry is None:
            facts = self._facts.pop(number, FileFacts())
            entry = self._ledger.begin(name, wish_of(item), facts)
        else:
            self._store.delete(entry.id, entry.outcomes)
            self._ledger.reopen(entry)
        self._open.append(_Open(number, entry, name, entry.outcomes, entry.outcomes))
        return self._open[-1]

    def _take(self, read: ReadItem) -> None:
        document, item = self._begun(read.document), read.item
        if item is None:
            document.done = True
            self._finished += 1
            return
        place = document.place
        document.place += 1
        document.outcomes += item.source == document.name
        if isinstance(item, Failure):
            self._fail(document, place, item.source, item.number, item.error, item.lost)
        else:
            self._drawn.append((document, place, item))
        if len(self._drawn) >= self._settings.batch:
            self._embed()
        late = time.monotonic() - self._committed > COMMIT_SECONDS
        if len(self._rows) >= COMMIT_PAGES or (late and self._items):
            self._commit()

    def _embed(self) -> None:
        drawn, self._drawn = self._drawn, []
        if not drawn:
            return
        try:
            found: Sequence[Embedding | LlavaKitError] = self._embedded([one[2] for one in drawn])
        except OF_ONE_REQUEST:
            found = [self._alone(page) for _, _, page in drawn]
        for (document, place, page), one in zip(drawn, found, strict=True):
            if isinstance(one, LlavaKitError):
                self._fail(document, place, page.source, page.number, one, 1)
                continue
            reference = PageReference.of(page, self._settings.view)
            text = _text(page)
            vectors = one.pooled(self._settings.pool).vectors
            known = json.dumps(reference.metadata())
            self._rows.append(PageRow((document.entry.id, place), known, text, vectors))
            self._items.append(reference)
            self.texts += bool(text)
            document.pages += 1

    def _embedded(self, pages: Sequence[Page]) -> list[Embedding | LlavaKitError]:
        found = self._embedder.embed(images=[page.picture for page in pages])
        return [self._sound(page, one) for page, one in zip(pages, found, strict=True)]

    def _alone(self, page: Page) -> Embedding | LlavaKitError:
        try:
            return self._embedded([page])[0]
        except OF_ONE_REQUEST as error:
            return error

    def _sound(self, page: Page, found: Embedding) -> Embedding | LlavaKitError:
        wanted = self._embedder.dimensions
        if found.vectors.shape[1] != wanted:
            raise ModelError(
                f"The embedder gives vectors of {found.vectors.shape[1]} numbers and says "
                f"{wanted}; nothing can be indexed with it."
            )
        if np.isfinite(found.vectors).all():
            return found
        return DocumentError(
            f"Page {page.number} of {label_of(page.source)} has no embedding: the model's numbers "
            "for it are not finite; take another dtype or device."
        )

    def _fail(
        self,
        document: _Open,
        place: int,
        source: str,
        number: int | None,
        error: LlavaKitError,
        lost: int | None,
    ) -> None:
        failure = IndexFailure(source, number, type(error).__name__, str(error), lost)
        document.failures[place] = failure
        self._items.append(failure)
        self.failures.append(failure)

    def _commit(self) -> None:
        self._embed()
        self._store.add(self._rows)
        self._ledger.settle([document.settled() for document in self._open])
        self.added += len(self._rows)
        self._rows = []
        self._open = [document for document in self._open if not document.done]
        self._committed = time.monotonic()
        items, self._items = self._items, []
        if self._progress is not None:
            for item in items:
                self._progress(IndexProgress(item, self._finished, len(self._plan.todo)))


def _text(page: Page) -> str:
    """What full text finds a page by: its own text, where its characters have a meaning."""
    if page.layer is not None and not page.layer.is_sound:
        return ""
    return (page.text or "").encode("utf-8", "replace").decode().strip()
