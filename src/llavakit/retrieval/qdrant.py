"""Pages in Qdrant's local mode: a folder without a server, all of it in memory while it is open.

Good for some ten thousand pages. Its files hold Python's pickles: open only a folder that you have
made yourself. There is no ranking of words in it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llavakit.embeddings import Embedding
from llavakit.errors import MissingDependencyError, ParameterError, SourceFetchError
from llavakit.retrieval.vectors import FoundRow, PageRow, RowKey

try:
    from qdrant_client import QdrantClient, models
except ImportError as error:
    raise MissingDependencyError(
        'An index in Qdrant needs its client; run: pip install "llavakit[qdrant]"'
    ) from error

_PAGES = "pages"
_SHIFT = 24  # bits of a point's number for the place in a document: 16 million pages
_BATCH = 1_000


class QdrantVectors:
    """A store of pages in a folder (see :class:`~llavakit.retrieval.vectors.PageVectors`).

    Args:
        folder: of the database; made if it is not there. One process has it open at a time.
        dimensions: length of a vector.

    Raises:
        MissingDependencyError: the client is not installed.
        ParameterError: another process has it open.
    """

    def __init__(self, folder: Path, dimensions: int) -> None:
        self._folder = folder
        self._lock = threading.Lock()  # the client's local mode is not made for threads
        try:
            self._client = QdrantClient(path=str(folder), force_disable_check_same_thread=True)
        except RuntimeError as error:
            raise ParameterError(
                f"{folder} is open in another process, and Qdrant's local mode takes one at a "
                'time; close it there, or make the index with store="lance".'
            ) from error
        with self._told():
            if not self._client.collection_exists(_PAGES):
                multi = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
                self._client.create_collection(
                    _PAGES,
                    vectors_config=models.VectorParams(
                        size=dimensions,
                        distance=models.Distance.COSINE,
                        multivector_config=multi,
                    ),
                )

    def add(self, rows: Sequence[PageRow]) -> None:
        """Add rows (see ``PageVectors``)."""
        points = [
            models.PointStruct(
                id=_number(row.key),
                vector=row.vectors.tolist(),
                payload={"reference": row.reference, "text": row.text},
            )
            for row in rows
        ]
        if points:
            with self._told():
                self._client.upsert(_PAGES, points)

    def delete(self, document: int, at_least: int = 0) -> None:
        """Delete pages of a document (see ``PageVectors``)."""
        wanted = [_number(key) for key in self.keys() if key[0] == document and key[1] >= at_least]
        if wanted:
            with self._told():
                self._client.delete(_PAGES, models.PointIdsList(points=list(wanted)))

    def settle(self) -> None:
        """Every search compares all pages; there is nothing to bring up to date."""

    def search(self, query: Embedding, k: int) -> list[FoundRow]:
        """Return the best pages (see ``PageVectors``)."""
        with self._told():
            found = self._client.query_points(_PAGES, query=query.vectors.tolist(), limit=k)
        rows = []
        for point in found.points:
            payload = point.payload or {}
            key = _key(int(point.id))
            rows.append(FoundRow(key, payload["reference"], payload["text"], point.score))
        return rows

    def search_text(self, words: str, k: int) -> list[FoundRow]:
        """Refuse: Qdrant's local mode finds words and does not rank by them."""
        raise ParameterError(
            'Qdrant\'s local mode has no ranking of words; search with mode="pixels", or make the '
            'index with store="lance".'
        )

    def count(self) -> int:
        """Return the number of pages."""
        with self._told():
            return self._client.count(_PAGES).count

    def keys(self) -> Iterator[RowKey]:
        """Yield the keys of all pages."""
        offset = None
        while True:
            with self._told():
                points, offset = self._client.scroll(
                    _PAGES, limit=_BATCH, offset=offset, with_payload=False
                )
            yield from (_key(int(point.id)) for point in points)
            if offset is None:
                return

    def close(self) -> None:
        """Let another process open it; safe to call twice."""
        with self._lock:
            self._client.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (OSError, RuntimeError) as error:
                raise SourceFetchError(
                    f"The vectors in {self._folder} cannot be read or written ({error}); see to "
                    "the disk, or index the documents anew into another folder."
                ) from error


def _number(key: RowKey) -> int:
    document, place = key
    return (document << _SHIFT) | place


def _key(number: int) -> RowKey:
    return number >> _SHIFT, number & ((1 << _SHIFT) - 1)
