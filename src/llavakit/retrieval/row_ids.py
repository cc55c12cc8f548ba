"""Rows of a LanceDB table by their keys, without a scan for them.

A filter on a thousand keys reads the keys of all pages. LanceDB's ids of rows lead to them at once,
but hold for one version of a table only (joining its files gives other ids). So they are read again
when the version is another, and whatever they lead to is compared with the keys that were wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lancedb.table import Table

_SIGNED = npt.NDArray[np.int64]


class RowIds:
    """The ids of a table's rows, in memory: 16 bytes a row."""

    def __init__(self) -> None:
        self._held: tuple[int, _SIGNED, npt.NDArray[np.uint64]] | None = None

    def fetch(
        self, table: Table, keys: _SIGNED, columns: Sequence[str], at_once: int
    ) -> Iterator[Any]:
        """Yield record batches of rows with some keys, in any order.

        Keys that are not there (any more) are left out.

        Args:
            table: with a column ``key``.
            keys: none twice.
            columns: ``key`` among them.
            at_once: rows of a batch, at most.
        """
        known, ids = self._of(table)
        places = np.searchsorted(known, keys[np.isin(keys, known)])
        for at in range(0, len(places), at_once):
            some = places[at : at + at_once]
            taken = table.take_row_ids(ids[some].tolist()).select(list(columns)).to_arrow()
            if np.array_equal(np.sort(taken.column("key").to_numpy()), np.sort(known[some])):
                yield from taken.combine_chunks().to_batches()
            else:  # another process has changed the table since its version was read
                yield from _scan(table, known[some], columns)

    def _of(self, table: Table) -> tuple[_SIGNED, npt.NDArray[np.uint64]]:
        """All keys, rising, and the ids of their rows."""
        version = int(table.version)
        if self._held is None or self._held[0] != version:
            rows = table.search().select(["key"]).with_row_id(True).to_arrow()
            keys = rows.column("key").to_numpy()
            order = np.argsort(keys)
            ids = rows.column("_rowid").to_numpy().astype(np.uint64)
            self._held = version, keys[order], ids[order]
        return self._held[1:]


def _scan(table: Table, keys: _SIGNED, columns: Sequence[str]) -> Iterator[Any]:
    where = f"key IN ({', '.join(map(str, keys.tolist()))})"
    found = table.search().where(where).select(list(columns)).limit(len(keys)).to_arrow()
    yield from found.combine_chunks().to_batches()
