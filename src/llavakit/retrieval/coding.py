"""Centroids and codes of the pages of an index, in tables of LanceDB beside it.

A generation is two tables, ``centroids-N`` and ``codes-N``. The second one appears whole, when all
pages have their codes; the latest that is there holds. A page without codes (added while a
generation was made, or before a process was killed) is scored exactly in every search.

A process that searches holds the codes in memory and reads them again when they have changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llavakit.embeddings import Vectors
from llavakit.retrieval._lancedb import pyarrow as pa
from llavakit.retrieval.scoring import Codes, Ends, encode, train_centroids

if TYPE_CHECKING:
    from lancedb.db import LanceDBConnection
    from lancedb.table import Table

FEWEST, MOST = 256, 4096
"""Centroids: one for about :data:`EACH` vectors, within these bounds."""
EACH = 32
_GROWTH = 4  # times as many pages, and there are new centroids: later pages may be of other kinds

_AT_ONCE = 8192  # pages of a batch that is read

_NAME = re.compile(r"codes-(\d+)")

Batches: TypeAlias = Callable[[], Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any], Ends]]]


@dataclass(frozen=True, slots=True, eq=False)
class HeldCodes:
    """All codes of an index, in memory: two bytes a vector and 16 a page.

    Attributes:
        centroids: [centroids, dimensions].
        keys: of the pages.
        codes: of all pages, one page behind the other.
        ends: where those of each page end.
    """

    centroids: Vectors
    keys: npt.NDArray[np.int64]
    codes: Codes
    ends: Ends

    def chunks(self, pages: int) -> Iterator[tuple[Codes, Ends]]:
        """Yield codes and ends of so many pages at a time."""
        for at in range(0, len(self.keys), pages):
            ends = self.ends[at : at + pages]
            begin = int(self.ends[at - 1]) if at else 0
            yield self.codes[begin : int(ends[-1])], ends - begin


class Coding:
    """The generations of codes in a database.

    Args:
        db: the connection.
        dimensions: length of a vector.
    """

    def __init__(self, db: LanceDBConnection, dimensions: int) -> None:
        self._db = db
        self._dimensions = dimensions
        self._held: tuple[int, Vectors, Table] | None = None
        self._codes: tuple[tuple[int, int], HeldCodes] | None = None

    def latest(self) -> tuple[Vectors, Table] | None:
        """Return the centroids and the table of codes that hold; None where there are none."""
        number = max(self._numbers(), default=None)
        if number is None:
            return None
        if self._held is None or self._held[0] != number:
            rows = self._db.open_table(f"centroids-{number}").to_arrow()
            flat = rows.column("centroid").combine_chunks().flatten().to_numpy()
            centroids = flat.reshape(-1, self._dimensions)
            self._held = number, centroids, self._db.open_table(f"codes-{number}")
        return self._held[1:]

    def held(self) -> HeldCodes | None:
        """Return all codes, read again where the table has changed; None where there are none."""
        known = self.latest()
        if known is None or self._held is None:
            return None
        centroids, table = known
        version = (self._held[0], int(table.version))
        found = self._codes
        if found is None or found[0] != version:
            found = self._codes = (version, _read(centroids, table))
        return found[1]

    def forget(self) -> None:
        """Open the tables anew when they are wanted next."""
        self._held = self._codes = None

    def renew(self, pages: int, sample: Callable[[int], Vectors], batches: Batches) -> None:
        """Make a new generation, if the index has grown so much that it needs one.

        Args:
            pages: in the index.
            sample: gives about so many vectors.
            batches: gives keys, vectors and ends of all pages.
        """
        known = self.latest()
        number = max(self._numbers(), default=0)
        if known is not None and pages < _GROWTH * self._trained(number):
            return
        vectors = sample(MOST * EACH)
        count = min(len(vectors), max(FEWEST, min(MOST, len(vectors) // EACH)))
        centroids = train_centroids(vectors, count)
        self._write(number + 1, centroids, pages, batches)
        self._held = None
        for old in sorted(self._numbers())[:-1]:
            self._db.drop_table(f"codes-{old}", ignore_missing=True)
            self._db.drop_table(f"centroids-{old}", ignore_missing=True)

    def _write(self, number: int, centroids: Vectors, pages: int, batches: Batches) -> None:
        width = self._dimensions
        rows = pa.FixedSizeListArray.from_arrays(pa.array(centroids.reshape(-1)), width)
        trained = pa.array(np.full(len(centroids), pages, dtype=np.int64))
        table = pa.table({"centroid": rows, "pages": trained})
        self._db.drop_table(f"centroids-{number}", ignore_missing=True)  # of a killed process
        self._db.create_table(f"centroids-{number}", table)
        reader = pa.RecordBatchReader.from_batches(codes_schema(), _coded(centroids, batches))
        self._db.create_table(f"codes-{number}", reader)

    def _trained(self, number: int) -> int:
        """How many pages there were when a generation was made."""
        rows = self._db.open_table(f"centroids-{number}").search().select(["pages"]).limit(1)
        return int(rows.to_arrow().column("pages")[0].as_py())

    def _numbers(self) -> list[int]:
        names = self._db.list_tables(limit=1000).tables
        return [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]


def flat_rows(column: Any) -> tuple[npt.NDArray[Any], Ends]:
    """Return the numbers of a column of lists, and where the entries of each row end."""
    values = column.flatten()
    if pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
    lengths = column.value_lengths().to_numpy()
    return values.to_numpy(zero_copy_only=True), np.cumsum(lengths, dtype=np.int64)


def _read(centroids: Vectors, table: Table) -> HeldCodes:
    keys, codes, ends, last = [], [], [], 0
    for batch in table.search().select(["key", "codes"]).to_batches(_AT_ONCE):
        if batch.num_rows:
            flat, behind = flat_rows(batch.column("codes"))
            keys.append(batch.column("key").to_numpy())
            codes.append(flat)
            ends.append(behind + last)
            last += len(flat)
    empty = np.empty(0, np.int64)
    return HeldCodes(
        centroids,
        np.concatenate([empty, *keys]),
        np.concatenate([np.empty(0, np.uint16), *codes]),
        np.concatenate([empty, *ends]),
    )


def codes_schema() -> Any:
    """Return the schema of a table of codes."""
    return pa.schema([("key", pa.int64()), ("codes", pa.list_(pa.uint16()))])


def _coded(centroids: Vectors, batches: Batches) -> Iterator[Any]:
    for keys, vectors, ends in batches():
        offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
        codes = pa.ListArray.from_arrays(offsets, pa.array(encode(vectors, centroids)))
        yield pa.record_batch([pa.array(keys), codes], schema=codes_schema())
