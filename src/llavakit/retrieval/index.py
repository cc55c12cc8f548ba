"""An index of pages by what they show, in a folder: made, kept up to date and searched."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, get_args

from filelock import FileLock, Timeout

from llavakit._checks import check_integer, checked, refused
from llavakit.documents import PageReference, View
from llavakit.documents.passwords import Password
from llavakit.embeddings import Embedder, check_embedder
from llavakit.errors import ParameterError, SourceFetchError
from llavakit.retrieval.changes import compare, list_now
from llavakit.retrieval.fusion import fuse_ranks
from llavakit.retrieval.hits import Hit
from llavakit.retrieval.ledger import IndexFailure, Ledger
from llavakit.retrieval.updating import IndexProgress, Update, UpdateSettings
from llavakit.retrieval.vectors import FoundRow, PageVectors, RowKey
from llavakit.sources import DEFAULT_POLICY, SourcePolicy

_logger = logging.getLogger(__name__)

SearchMode: TypeAlias = Literal["pixels", "text", "hybrid"]
StoreName: TypeAlias = Literal["lance", "qdrant"]

DEPTH = 100
"""How far down the rankings go that a hybrid search fuses."""
_LEDGER = "index.sqlite"
_LOCK = ".update.lock"


@dataclass(frozen=True, slots=True)
class IndexChanges:
    """What an update did.

    Attributes:
        added: pages that it indexed.
        failures: pages and documents that it could not index.
        new, changed, removed: documents, by their names.
        kept: documents that are as they were.
        without_text: pages among those added that only their pixels can find.
        pages: how many pages the index has now.
    """

    added: int
    failures: tuple[IndexFailure, ...]
    new: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    kept: int
    without_text: int
    pages: int


class PageIndex:
    """Pages of documents, found by what they show, by their words, or by both.

    >>> index = PageIndex("index", embedder)  # doctest: +SKIP
    >>> index.update(["scans/", "report.pdf"])  # doctest: +SKIP
    >>> index.search("What did the pump cost?", k=3)[0].page()  # doctest: +SKIP

    An index keeps vectors, text layers and page references, and no pixels: a page's image comes
    from its document again, compared by its digest. One process updates an index at a time; any
    number may search it meanwhile.

    Args:
        folder: where it is, or will be.
        embedder: what embeds pages and questions.
        store: ``"lance"`` or ``"qdrant"``; None takes what the index was made with, and LanceDB
            for a new one.
        pool: how many alike vectors of a page become one; None as for ``store``, and 3 for a new
            index.
        view: how pages are drawn; None as for ``store``.
        policy: what may be opened.
        password: what opens encrypted documents (see :func:`~llavakit.documents.open_files`).
        must_exist: refuse to make a new index.

    Attributes:
        folder, embedder, policy, password: as they were given.

    Raises:
        ParameterError: the index was made with another embedder or other settings, or the folder
            is of something else.
        MissingDependencyError: the store's package is not installed.
        SourceFetchError: the folder cannot be read or written.
    """

    @checked
    def __init__(
        self,
        folder: str | os.PathLike[str],
        embedder: Any,
        *,
        store: StoreName | None = None,
        pool: int | None = None,
        view: View | None = None,
        policy: SourcePolicy = DEFAULT_POLICY,
        password: Password = None,
        must_exist: bool = False,
    ) -> None:
        if not os.fspath(folder):
            raise refused("folder", folder, "the name of a folder")
        check_embedder(embedder)
        if store not in (None, *get_args(StoreName)):
            raise refused("store", store, 'None, "lance" or "qdrant"')
        if pool is not None:
            check_integer("pool", pool, least=1)
        self.folder = Path(folder)
        self.embedder: Embedder = embedder
        self.policy = policy
        self.password = password
        given = {
            "store": store,
            "pool": pool,
            "dpi": None if view is None else view.dpi,
            "max_pixels": None if view is None else view.max_pixels,
        }
        self._ledger, known = _open_ledger(self.folder, embedder, given, must_exist)
        self._view = replace(
            view or View(), dpi=known["dpi"], max_pixels=known["max_pixels"], text=True
        )
        self._pool: int = known["pool"]
        self._store = _open_store(known["store"], self.folder, known["dimensions"])

    def __len__(self) -> int:
        """The number of pages."""
        return self._store.count()

    def __bool__(self) -> bool:
        """An index without pages is an index, too."""
        return True

    @property
    def failures(self) -> list[IndexFailure]:
        """All pages and documents that are not in the index, and why."""
        return list(self._ledger.failures())

    @property
    def documents(self) -> dict[str, int]:
        """The documents, by their names, and how many pages of each are indexed."""
        return {name: entry.pages for name, entry in self._ledger.entries().items()}

    @checked
    def update(
        self,
        paths: Any,
        *,
        retry_failed: bool = False,
        batch: int = 8,
        renderers: int | None = None,
        progress: Callable[[IndexProgress], None] | None = None,
    ) -> IndexChanges:
        """Index what is new, index anew what has changed, and remove what is gone.

        It may be killed at any time; the next update of the same paths goes on. Documents of the
        index that lie below none of the paths stay as they are.

        Args:
            paths: documents and folders, as :func:`~llavakit.documents.open_files` takes them.
            retry_failed: index documents anew of which a page is missing. Without it that
                happens only if nothing of a document could be read, for a cause outside of it.
            batch: pages that are embedded at once; their images are in memory.
            renderers: processes that render pages ahead while others are embedded (see
                :func:`~llavakit.documents.open_files`); None takes the view's, and without one as
                many as there are cores, 2 to 4.
            progress: called for each page and failure, once it is on the disk.

        Raises:
            ParameterError: something that cannot be opened again, such as bytes; or another
                process is updating the index.
            SourceFetchError: the index cannot be written.
            EngineError, ModelError, RemoteError: the model failed.
        """
        check_integer("batch", batch, least=1)
        if renderers is not None:
            check_integer("renderers", renderers, least=1)
        roots, now = list_now(paths, self.policy)
        with self._alone():
            plan = compare(roots, now, self._ledger, retry_failed=retry_failed)
            view = replace(self._view, renderers=renderers or self._view.renderers)
            settings = UpdateSettings(view, self._pool, batch, self.policy, self.password)
            run = Update(self._ledger, self._store, self.embedder, settings, progress)
            run.run(plan)
            self._store.settle()
        return IndexChanges(
            run.added,
            tuple(run.failures),
            tuple(plan.new),
            tuple(plan.changed),
            tuple(plan.removed),
            plan.kept,
            run.added - run.texts,
            len(self),
        )

    @checked
    def search(self, question: str, k: int = 4, mode: SearchMode = "pixels") -> list[Hit]:
        """Return the pages that answer a question, the best first.

        Args:
            question: in plain words.
            k: most pages.
            mode: ``"pixels"`` ranks by what pages show (MaxSim), ``"text"`` by the words of their
                text layers (BM25), ``"hybrid"`` by both (reciprocal rank fusion, K = 60).

        Raises:
            ParameterError: a blank question, an unknown mode, or a store without a ranking of
                words.
            SourceFetchError: the index cannot be read.
            EngineError, ModelError: the model failed.
        """
        check_integer("k", k, least=1)
        if not question.strip():
            raise refused("question", question, "words to search for")
        if mode not in get_args(SearchMode):
            raise refused("mode", mode, '"pixels", "text" or "hybrid"')
        depth = max(DEPTH, k) if mode == "hybrid" else k
        rankings: dict[str, list[FoundRow]] = {}
        if mode != "text":
            (query,) = self.embedder.embed(texts=[question])
            rankings["pixels"] = self._store.search(query, depth)
        if mode != "pixels":
            rankings["text"] = self._store.search_text(question, depth)
        rows = {row.key: row for ranking in rankings.values() for row in ranking}
        ranks: dict[str, dict[RowKey, int]] = {
            name: {row.key: rank for rank, row in enumerate(ranking, 1)}
            for name, ranking in rankings.items()
        }
        if mode == "hybrid":
            best = fuse_ranks([list(one) for one in ranks.values()])[:k]
        else:
            best = [(row.key, row.score) for row in rankings[mode]]
        return [
            self._hit(
                rows[key], score, question, {n: one[key] for n, one in ranks.items() if key in one}
            )
            for key, score in best
        ]

    def close(self) -> None:
        """Free what it holds; safe to call twice. The embedder stays."""
        self._store.close()
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hit(self, row: FoundRow, score: float, question: str, ranks: dict[str, int]) -> Hit:
        reference = PageReference.from_metadata(json.loads(row.reference))
        bound = (self.embedder, self.policy, self.password)
        return Hit(reference, score, row.text, question, ranks, *bound)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(self.folder / _LOCK, blocking=False, thread_local=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise ParameterError(
                f"Another process is updating {self.folder}; wait for it, or index into another "
                "folder."
            ) from error
        except NotImplementedError:  # what filelock raises on a file system without locks
            _logger.warning(
                "%s lies on a file system without locks; see that one update runs at a time",
                self.folder,
            )
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        try:
            yield
        finally:
            lock.release()


def _open_ledger(
    folder: Path, embedder: Embedder, given: dict[str, Any], must_exist: bool
) -> tuple[Ledger, dict[str, Any]]:
    """The ledger of an index, made if it is new, and the settings that hold."""
    path = folder / _LEDGER
    is_there = path.is_file() and path.stat().st_size > 0
    if must_exist and not is_there:
        raise ParameterError(
            f"{folder} holds no index; make one: llavakit index DIR --out {folder}"
        )
    if not is_there:
        _make(folder)
    ledger = Ledger(path)
    known = ledger.settings()
    if not known:
        known = _defaults(embedder, given)
        ledger.create(known)
        return ledger, known
    try:
        _check(folder, known, embedder, given)
    except ParameterError:
        ledger.close()
        raise
    return ledger, known


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = {one.name for one in folder.iterdir()} - {_LEDGER, f"{_LEDGER}-journal", _LOCK}
    except OSError as error:
        raise _unwritable(folder, error) from error
    if others:
        raise ParameterError(
            f"{folder} holds no index and other files ({sorted(others)[0]}, ...); name an empty "
            "folder, or one that is not there yet."
        )


def _defaults(embedder: Embedder, given: dict[str, Any]) -> dict[str, Any]:
    view = View()
    usual = {"store": "lance", "pool": 3, "dpi": view.dpi, "max_pixels": view.max_pixels}
    chosen = {name: usual[name] if value is None else value for name, value in given.items()}
    own = {"fingerprint": embedder.fingerprint, "dimensions": embedder.dimensions}
    return {**own, **chosen}


def _check(folder: Path, known: dict[str, Any], embedder: Embedder, given: dict[str, Any]) -> None:
    if (known["fingerprint"], known["dimensions"]) != (embedder.fingerprint, embedder.dimensions):
        raise ParameterError(
            f"{folder} was made with another embedder ({known['fingerprint']}, "
            f"{known['dimensions']} numbers) than this one ({embedder.fingerprint}, "
            f"{embedder.dimensions}), and their vectors cannot be compared; take that one, or "
            "index the documents anew into another folder."
        )
    for name, value in given.items():
        if value is not None and value != known[name]:
            raise ParameterError(
                f"{folder} was made with {name}={known[name]!r}, and {name}={value!r} is asked "
                "for; leave it out, or index the documents anew into another folder."
            )


def _open_store(name: str, folder: Path, dimensions: int) -> PageVectors:
    if name == "qdrant":
        from llavakit.retrieval.qdrant import QdrantVectors

        return QdrantVectors(folder / "qdrant", dimensions)
    from llavakit.retrieval.lance import LanceVectors

    return LanceVectors(folder / "lance", dimensions)


def _unwritable(folder: Path, error: OSError) -> SourceFetchError:
    return SourceFetchError(
        f"{folder} cannot be written ({error.strerror}); see to the disk or name another folder."
    )
