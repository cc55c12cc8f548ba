"""What a store of page vectors can be asked, whatever database is behind it.

A store keeps rows and finds them; it knows no files and no models. Which documents are indexed,
and how far, is in :mod:`llavakit.retrieval.ledger`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from llavakit.embeddings import Embedding, Vectors

RowKey: TypeAlias = tuple[int, int]
"""A document's number in the ledger, and the place of one of its pages, from 0."""


@dataclass(frozen=True, slots=True, eq=False)
class PageRow:
    """A page as a store keeps it.

    Attributes:
        key: the page's document and its place there; no two rows of a store have the same.
        reference: the page's reference as JSON.
        text: what full text finds it by; "" where there is nothing.
        vectors: [vectors, dimensions], each of length 1.
    """

    key: RowKey
    reference: str
    text: str
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A page that was found; the larger the score, the better."""

    key: RowKey
    reference: str
    text: str
    score: float


class PageVectors(Protocol):
    """A store of pages. One process writes it at a time; others may search meanwhile."""

    def add(self, rows: Sequence[PageRow]) -> None:
        """Add rows whose keys are not there yet; they are on the disk when this returns."""

    def delete(self, document: int, at_least: int = 0) -> None:
        """Delete the pages of a document from a place on; those that are not there are no error."""

    def settle(self) -> None:
        """Bring what speeds a search up to date, after many changes."""

    def search(self, query: Embedding, k: int) -> list[FoundRow]:
        """Return the ``k`` pages of the best MaxSim, the best first."""

    def search_text(self, words: str, k: int) -> list[FoundRow]:
        """Return at most ``k`` pages that have some of the words, the best first.

        Raises:
            ParameterError: the store has no ranking of words.
        """

    def count(self) -> int:
        """Return the number of pages."""

    def keys(self) -> Iterator[RowKey]:
        """Yield the keys of all pages, in no order."""

    def close(self) -> None:
        """Free what it holds; safe to call twice."""
