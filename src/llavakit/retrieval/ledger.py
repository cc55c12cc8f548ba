"""What an index holds of which document: a small SQLite file beside the vectors.

Rows of a store count only from the moment at which they are written down here, so a run may be
killed anywhere: what the store has beyond that is deleted when the document goes on. SQLite keeps
a transaction whole through a kill and a power failure.
"""

from __future__ import annotations

import json
import sqlite3
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavakit.errors import ParameterError, SourceFetchError

_FORMAT = 1
_TABLES = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, wish TEXT NOT NULL,
    size INTEGER, mtime INTEGER, sha256 TEXT,
    outcomes INTEGER NOT NULL, pages INTEGER NOT NULL, done INTEGER NOT NULL
);
CREATE TABLE failures (
    document INTEGER NOT NULL, place INTEGER NOT NULL, source TEXT NOT NULL, page INTEGER,
    type TEXT NOT NULL, message TEXT NOT NULL, lost INTEGER,
    PRIMARY KEY (document, place)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What says that a file is still the one that was indexed; of an address all are None.

    Attributes:
        size: in bytes.
        mtime: time of its last change, in nanoseconds.
        sha256: of its content, in hex.
    """

    size: int | None = None
    mtime: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class DocumentEntry:
    """A document of an index.

    Attributes:
        id: its number, by which a store knows its pages; never given to another document.
        name: its absolute path, or its address.
        wish: the pages that are indexed of it, as ``"1-3,7"``; "" for all.
        facts: of its file, as it was indexed.
        outcomes: how many of its own pages (not those of documents attached to it) are settled,
            indexed or failed, in their order.
        pages: how many pages are indexed, those of attached documents among them.
        done: whether it was read to its end.
    """

    id: int
    name: str
    wish: str
    facts: FileFacts
    outcomes: int
    pages: int
    done: bool


@dataclass(frozen=True, slots=True)
class IndexFailure:
    """A page, or a document, that is not in the index, and why.

    Attributes:
        source: the document's name; of an attached document its own.
        page: the page's number; None where the (rest of the) document is meant.
        type: the name of the error's class.
        message: what the error says.
        lost: how many pages it stands for; None where nothing is known of them.
    """

    source: str
    page: int | None
    type: str
    message: str
    lost: int | None


@dataclass(frozen=True, slots=True)
class Settled:
    """What a batch has settled of one document.

    Attributes:
        entry: the document.
        outcomes: how many of its own pages are settled from now on.
        pages: how many pages were added.
        failures: by their places in the document.
        done: whether it is read to its end.
    """

    entry: DocumentEntry
    outcomes: int
    pages: int
    failures: Mapping[int, IndexFailure]
    done: bool


class Ledger:
    """The ledger of an index, in a file.

    Args:
        path: the file; made by :meth:`create`.

    Raises:
        SourceFetchError: it cannot be opened, or is no ledger.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._told():
            # A retriever of a framework is called from any thread; calls do not overlap here,
            # and SQLite serialises those that do.
            self._db = sqlite3.connect(path, timeout=30, check_same_thread=False)
            # An index may be dropped without a word; Python warns of what SQLite then closes.
            self._closing = weakref.finalize(self, self._db.close)
            self._db.execute("PRAGMA synchronous = FULL")

    def create(self, settings: Mapping[str, Any]) -> None:
        """Make the tables of a new index, all at once, with its settings."""
        with self._told(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for statement in filter(str.strip, _TABLES.split(";")):
                self._db.execute(statement)
            known = {"format": _FORMAT, **settings}
            rows = [(name, json.dumps(value)) for name, value in known.items()]
            self._db.executemany("INSERT INTO settings VALUES (?, ?)", rows)

    def settings(self) -> dict[str, Any]:
        """Return the settings of the index; empty where it is new.

        Raises:
            ParameterError: a later version of llavakit has written it.
        """
        with self._told():
            tables = self._db.execute("SELECT name FROM sqlite_master WHERE name = 'settings'")
            if tables.fetchone() is None:
                return {}
            rows = self._db.execute("SELECT name, value FROM settings").fetchall()
        known = {name: json.loads(value) for name, value in rows}
        if known.pop("format") != _FORMAT:
            raise ParameterError(
                f"{self._path.parent} is an index of another version of llavakit; index the "
                "documents anew into another folder."
            )
        return known

    def entries(self) -> dict[str, DocumentEntry]:
        """Return all documents by their names."""
        with self._told():
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM documents ORDER BY id").fetchall()
        return {entry.name: entry for entry in map(_entry, rows)}

    def failures(self) -> Iterator[IndexFailure]:
        """Yield everything that is not in the index, document by document."""
        with self._told():
            rows = self._db.execute(
                "SELECT source, page, type, message, lost FROM failures ORDER BY document, place"
            ).fetchall()
        for source, *others in rows:
            yield IndexFailure(json.loads(source), *others)

    def failed(self) -> dict[int, set[str]]:
        """Return, for each document with failures, the classes of their errors."""
        found: dict[int, set[str]] = {}
        with self._told():
            rows = self._db.execute("SELECT document, type FROM failures").fetchall()
        for document, kind in rows:
            found.setdefault(document, set()).add(kind)
        return found

    def gave_up(self, entry: DocumentEntry) -> bool:
        """Return whether one of a document's own failures stands for the rest of it."""
        with self._told():
            return bool(
                self._db.execute(
                    "SELECT count(*) FROM failures "
                    "WHERE document = ? AND place < ? AND page IS NULL",
                    (entry.id, entry.outcomes),
                ).fetchone()[0]
            )

    def outcomes(self, entry: DocumentEntry) -> tuple[str | None, ...]:
        """Return, for each settled page of a document, its error's class or None."""
        with self._told():
            failed = dict(
                self._db.execute(
                    "SELECT place, type FROM failures WHERE document = ?", (entry.id,)
                ).fetchall()
            )
        return tuple(failed.get(place) for place in range(entry.outcomes))

    def begin(self, name: str, wish: str, facts: FileFacts) -> DocumentEntry:
        """Write down a document of which nothing is indexed, in the place of what was known."""
        with self._told(), self._db:
            self._forget(name)
            cursor = self._db.execute(
                "INSERT INTO documents (name, wish, size, mtime, sha256, outcomes, pages, done) "
                "VALUES (?, ?, ?, ?, ?, 0, 0, 0)",
                (json.dumps(name), wish, facts.size, facts.mtime, facts.sha256),
            )
        assert cursor.lastrowid is not None
        return DocumentEntry(cursor.lastrowid, name, wish, facts, 0, 0, False)

    def reopen(self, entry: DocumentEntry) -> None:
        """Forget what is known behind a document's own settled pages: it is going on there."""
        with self._told(), self._db:
            place = (entry.id, entry.outcomes)
            self._db.execute("DELETE FROM failures WHERE document = ? AND place >= ?", place)
            failed = self._db.execute(
                "SELECT count(*) FROM failures WHERE document = ?", (entry.id,)
            ).fetchone()[0]
            self._db.execute(
                "UPDATE documents SET pages = ?, done = 0 WHERE id = ?",
                (entry.outcomes - failed, entry.id),
            )

    def touch(self, entry: DocumentEntry, facts: FileFacts) -> None:
        """Write down the new time of a file whose content is as it was."""
        with self._told(), self._db:
            self._db.execute(
                "UPDATE documents SET size = ?, mtime = ?, sha256 = ? WHERE id = ?",
                (facts.size, facts.mtime, facts.sha256, entry.id),
            )

    def settle(self, batch: Sequence[Settled]) -> None:
        """Write down what a batch has settled, all at once."""
        with self._told(), self._db:
            for one in batch:
                self._db.execute(
                    "UPDATE documents SET outcomes = ?, pages = pages + ?, done = ? WHERE id = ?",
                    (one.outcomes, one.pages, one.done, one.entry.id),
                )
                self._db.executemany(
                    "INSERT INTO failures VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [
                        (one.entry.id, place, *_row(failure))
                        for place, failure in one.failures.items()
                    ],
                )

    def remove(self, name: str) -> None:
        """Forget a document."""
        with self._told(), self._db:
            self._forget(name)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._closing()

    def _forget(self, name: str) -> None:
        known = json.dumps(name)
        self._db.execute(
            "DELETE FROM failures WHERE document IN (SELECT id FROM documents WHERE name = ?)",
            (known,),
        )
        self._db.execute("DELETE FROM documents WHERE name = ?", (known,))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise SourceFetchError(
                f"{self._path} cannot be read or written ({error}); see to the disk, or index the "
                "documents anew into another folder."
            ) from error


_COLUMNS = "id, name, wish, size, mtime, sha256, outcomes, pages, done"


def _entry(row: Sequence[Any]) -> DocumentEntry:
    number, name, wish, size, mtime, sha256, outcomes, pages, done = row
    facts = FileFacts(size, mtime, sha256)
    return DocumentEntry(number, json.loads(name), wish, facts, outcomes, pages, bool(done))


def _row(failure: IndexFailure) -> tuple[Any, ...]:
    source, message = json.dumps(failure.source), _plain(failure.message)
    return source, failure.page, failure.type, message, failure.lost


def _plain(message: str) -> str:
    """A message in one line that SQLite can hold: a file's name need not be Unicode."""
    return " ".join(message.encode("utf-8", "backslashreplace").decode().split())
