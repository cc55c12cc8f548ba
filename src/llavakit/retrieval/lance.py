"""Pages in LanceDB: a multivector column on the disk, exact MaxSim, and full text with BM25.

The column is LanceDB's own (a list of vectors a row), so that its own tools read it. Scores are
computed here: LanceDB's exact MaxSim takes a millisecond and more for each page, and its index of
multivectors takes longer to build than the pages take to be embedded (``docs/retrieval.md`` has
the figures). Few pages are all scored; of many, those whose coarse scores are the best
(:mod:`llavakit.retrieval.scoring`). Vectors stream through; what grows in memory with the index are
codes and the ids of rows, 160 bytes for a page of 64 vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from llavakit.embeddings import Embedding, Vectors
from llavakit.errors import SourceFetchError
from llavakit.retrieval._lancedb import FTS, MatchQuery, lancedb
from llavakit.retrieval._lancedb import pyarrow as pa
from llavakit.retrieval.coding import Coding, HeldCodes, codes_schema, flat_rows
from llavakit.retrieval.row_ids import RowIds
from llavakit.retrieval.scoring import CoarseScores, Ends, encode, score_pages
from llavakit.retrieval.vectors import FoundRow, PageRow, RowKey

if TYPE_CHECKING:
    from lancedb.db import LanceDBConnection
    from lancedb.table import Table

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_Vectors: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[Any], Ends]
"""Keys of pages, their vectors in fp16 one page behind the other, and where each page's end."""

CODED_FROM = 4_000
"""From so many pages on, coarse scores choose which are scored exactly."""
CANDIDATES = 1_000
"""Least pages that are scored exactly then, and at least ten times as many as are wanted."""

_CACHE = 1 << 26  # bytes: unbounded, LanceDB remembers every version of a table that it has written
_SHIFT = 24  # bits of a key for the place in a document: 16 million pages
_BATCH = 256  # pages whose vectors are in memory at once
_CODES = 8192  # pages whose codes are scored at once
_THREADS = 2  # that score them
_KEYS = 2_000  # keys that one filter names
_FRAGMENTS = 32  # files of a table; more are joined, because each costs every search
_UNSEARCHED = 1_000  # pages outside the index of words, which a search reads one by one


class LanceVectors:
    """A store of pages in a folder (see :class:`~llavakit.retrieval.vectors.PageVectors`).

    Args:
        folder: of the database; made if it is not there.
        dimensions: length of a vector.
        coded_from: see :data:`CODED_FROM`.

    Raises:
        MissingDependencyError: LanceDB is not installed.
        SourceFetchError: the folder cannot be read or written.
    """

    def __init__(self, folder: Path, dimensions: int, *, coded_from: int = CODED_FROM) -> None:
        self._folder = folder
        self._dimensions = dimensions
        self._coded_from = coded_from
        with self._told():
            self._db = cast(
                "LanceDBConnection",
                lancedb.connect(
                    folder,
                    read_consistency_interval=timedelta(0),
                    session=lancedb.Session(_CACHE, _CACHE),
                ),
            )
            schema = _pages_schema(dimensions)
            self._pages: Table = self._db.create_table("pages", schema=schema, exist_ok=True)
        self._coding = Coding(self._db, dimensions)
        self._rows = RowIds()

    def add(self, rows: Sequence[PageRow]) -> None:
        """Add rows (see ``PageVectors``)."""
        if not rows:
            return
        with self._told():
            self._pages.add(_table(rows, self._dimensions))
            known = self._coding.latest()
            if known is not None:
                centroids, codes = known
                codes.add(_codes_table(rows, centroids))

    def delete(self, document: int, at_least: int = 0) -> None:
        """Delete pages of a document (see ``PageVectors``)."""
        low, high = _key((document, at_least)), _key((document + 1, 0))
        with self._told():
            known = self._coding.latest()
            # Codes first, as they are added last: there are never codes without their page.
            for table in (*(known or ())[1:], self._pages):
                table.delete(f"key >= {low} AND key < {high}")

    def settle(self) -> None:
        """Train and build what the number of pages asks for (see ``PageVectors``)."""
        with self._told():
            count = self._pages.count_rows()
            _compact(self._pages)
            if count:
                self._index_words()
            if count >= self._coded_from:
                self._coding.renew(count, self._sample, self._all)
                known = self._coding.latest()
                if known is not None:
                    _compact(known[1])

    def search(self, query: Embedding, k: int) -> list[FoundRow]:
        """Return the best pages (see ``PageVectors``)."""
        return self._again(lambda: self._search(query.vectors, k))

    def search_text(self, words: str, k: int) -> list[FoundRow]:
        """Return the pages with some of the words, by BM25 (see ``PageVectors``)."""

        def search() -> list[FoundRow]:
            if not self._pages.count_rows():
                return []
            if not _has_words(self._pages):
                self._index_words()
            match: Any = MatchQuery  # its defaults are pydantic's, which mypy does not see
            found = self._pages.search(match(words, "text"), query_type="fts")
            rows = found.select(["key", "reference", "text", "_score"]).limit(k).to_arrow()
            return [_found(row, row["_score"]) for row in rows.to_pylist()]

        return self._again(search)

    def count(self) -> int:
        """Return the number of pages."""
        with self._told():
            return int(self._pages.count_rows())

    def keys(self) -> Iterator[RowKey]:
        """Yield the keys of all pages."""
        with self._told():
            yield from map(_unkey, self._keys(self._pages).tolist())

    def close(self) -> None:
        """Nothing is held between calls."""

    def _search(self, query: Vectors, k: int) -> list[FoundRow]:
        held = self._coding.held()
        if held is None:
            scores, keys = self._exact(query, k, self._all())
        else:
            wanted = self._candidates(query, max(CANDIDATES, 10 * k), held)
            pages = self._rows.fetch(self._pages, wanted, ["key", "vectors"], _BATCH)
            scores, keys = self._exact(query, k, map(self._vectors, pages))
        columns = ["key", "reference", "text"]
        rows = self._rows.fetch(self._pages, keys, columns, _KEYS)
        by_key = {row["key"]: row for batch in rows for row in batch.to_pylist()}
        return [
            _found(by_key[key], score)
            for key, score in zip(keys.tolist(), scores.tolist(), strict=True)
            if key in by_key  # another process may have deleted it meanwhile
        ]

    def _candidates(self, query: Vectors, count: int, held: HeldCodes) -> npt.NDArray[np.int64]:
        """The keys of the pages that are worth an exact score, and of those without codes."""
        coarse = CoarseScores(query, held.centroids)
        with ThreadPoolExecutor(_THREADS) as threads:  # numpy lets go of the interpreter
            scores = list(threads.map(lambda one: coarse.of(*one), held.chunks(_CODES)))
        best = _Best(count)
        if scores:
            best.see(np.concatenate(scores).astype(np.float32), held.keys)
        if self._pages.count_rows() == len(held.keys):
            return best.keys
        without = np.setdiff1d(self._keys(self._pages), held.keys)
        return np.concatenate([best.keys, without])

    def _exact(
        self, query: Vectors, k: int, pages: Iterable[_Vectors]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        best = _Best(k)
        for keys, vectors, ends in pages:
            best.see(score_pages(query, vectors, ends), keys)
        return best.scores, best.keys

    def _batches(self, where: str) -> Iterator[_Vectors]:
        found = self._pages.search().where(where).select(["key", "vectors"])
        for batch in found.to_batches(_BATCH):
            if batch.num_rows:
                yield self._vectors(batch)

    def _vectors(self, batch: Any) -> _Vectors:
        vectors, ends = flat_rows(batch.column("vectors"))
        return batch.column("key").to_numpy(), vectors.reshape(-1, self._dimensions), ends

    def _all(self) -> Iterator[_Vectors]:
        """As :meth:`_batches`, of all pages, in the order of their keys."""
        for one in self._ranges():
            yield from self._batches(one)

    def _ranges(self) -> Iterator[str]:
        """Filters of some pages each, of all together.

        One scan of all pages would read ahead by up to 2 GB while their vectors are worked on.
        """
        keys = np.sort(self._keys(self._pages))
        for at in range(0, len(keys), _KEYS):
            some = keys[at : at + _KEYS]
            yield f"key >= {some[0]} AND key <= {some[-1]}"

    def _sample(self, count: int) -> Vectors:
        """About ``count`` vectors out of pages all over the index."""
        keys = np.sort(self._keys(self._pages))
        chosen = keys[:: max(1, len(keys) // max(1, count // 16))]
        parts = []
        for at in range(0, len(chosen), _KEYS):
            named = ", ".join(map(str, chosen[at : at + _KEYS].tolist()))
            for _, vectors, ends in self._batches(f"key IN ({named})"):
                parts.append(vectors[_spread(ends, 16)].astype(np.float32))
        return np.concatenate(parts)

    def _keys(self, table: Table) -> npt.NDArray[np.int64]:
        keys: npt.NDArray[np.int64] = (
            table.search().select(["key"]).to_arrow().column("key").to_numpy()
        )
        return keys

    def _index_words(self) -> None:
        for index in self._pages.list_indices():
            stats = self._pages.index_stats(index.name)
            if index.columns == ["text"] and stats is not None:
                most = max(_UNSEARCHED, stats.num_indexed_rows // 10)
                if stats.num_unindexed_rows <= most:
                    return
        self._pages.create_index("text", config=FTS(), replace=True)

    def _again(self, search: Callable[[], _Result]) -> _Result:
        """The result of a search; one that lost its files to another process begins again."""
        with self._told():
            try:
                return search()
            except (OSError, RuntimeError, ValueError):
                _logger.debug("The tables changed under a search; it begins again", exc_info=True)
                self._pages = self._db.open_table("pages")
                self._coding.forget()
                return search()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            raise SourceFetchError(
                f"The vectors in {self._folder} cannot be read or written ({error}); see to the "
                "disk, or index the documents anew into another folder."
            ) from error


class _Best:
    """The best of all that was seen; of equal scores the smaller key."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.scores: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)
        self.keys: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def see(self, scores: npt.NDArray[np.float32], keys: npt.NDArray[np.int64]) -> None:
        """Take note of some more."""
        if len(scores) > 4 * self._count:  # sorting all of them would take most of a search
            least = np.partition(scores, -self._count)[-self._count]
            scores, keys = scores[scores >= least], keys[scores >= least]
        scores = np.concatenate([self.scores, scores])
        keys = np.concatenate([self.keys, keys])
        order = np.lexsort((keys, -scores))[: self._count]
        self.scores, self.keys = scores[order], keys[order]


def _pages_schema(dimensions: int) -> Any:
    return pa.schema(
        [
            ("key", pa.int64()),
            ("reference", pa.string()),
            ("text", pa.string()),
            ("vectors", pa.list_(pa.list_(pa.float16(), dimensions))),
        ]
    )


def _table(rows: Sequence[PageRow], dimensions: int) -> Any:
    flat = np.concatenate([row.vectors for row in rows]).astype(np.float16)
    each = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), dimensions)
    columns = {
        "key": pa.array([_key(row.key) for row in rows], pa.int64()),
        "reference": pa.array([row.reference for row in rows]),
        "text": pa.array([row.text for row in rows], pa.string()),
        "vectors": pa.ListArray.from_arrays(_offsets(rows), each),
    }
    return pa.table(columns, schema=_pages_schema(dimensions))


def _codes_table(rows: Sequence[PageRow], centroids: Vectors) -> Any:
    codes = encode(np.concatenate([row.vectors for row in rows]), centroids)
    columns = {
        "key": pa.array([_key(row.key) for row in rows], pa.int64()),
        "codes": pa.ListArray.from_arrays(_offsets(rows), pa.array(codes)),
    }
    return pa.table(columns, schema=codes_schema())


def _offsets(rows: Sequence[PageRow]) -> Any:
    return pa.array(np.cumsum([0, *(len(row.vectors) for row in rows)]), pa.int32())


def _spread(ends: Ends, each: int) -> npt.NDArray[np.int64]:
    """The places of about ``each`` vectors of every page."""
    begins = np.concatenate([[0], ends[:-1]])
    return np.concatenate(
        [
            np.arange(begin, end, max(1, (end - begin) // each))
            for begin, end in zip(begins, ends, strict=True)
        ]
    )


def _compact(table: Table) -> None:
    """Join the files of a table, where they have become many, and let go of the old ones."""
    statistics: Any = table.stats()
    if statistics["fragment_stats"]["num_fragments"] > _FRAGMENTS:
        table.optimize(cleanup_older_than=timedelta(milliseconds=1))


def _has_words(table: Table) -> bool:
    return any(index.columns == ["text"] for index in table.list_indices())


def _found(row: dict[str, Any], score: float) -> FoundRow:
    return FoundRow(_unkey(row["key"]), row["reference"], row["text"], float(score))


def _key(key: RowKey) -> int:
    document, place = key
    return (document << _SHIFT) | place


def _unkey(key: int) -> RowKey:
    return key >> _SHIFT, key & ((1 << _SHIFT) - 1)
