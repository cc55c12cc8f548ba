"""Queries and the page images that answer them, as JSON Lines and as ViDoRe's data sets have them.

A record is ``{"query": ..., "image": ..., "negatives"?: [...], "id"?: ...}``. Rows of ViDoRe's sets
(https://huggingface.co/vidore) have ``query`` and ``image`` among others, and a row without a query
is a page that answers none: it is learnt as a negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavakit.errors import LlavaKitError, SourceNotFoundError
from llavakit.images import open_picture
from llavakit.training.data import picture_of
from llavakit.training.data_check import Fault, FaultReport, fault_lines, in_order
from llavakit.training.data_files import Records, Unread
from llavakit.training.examples import POLICY, picture_size
from llavakit.training.record_keys import FaultyRecord, is_absent
from llavakit.values import Image

KEYS = ("query", "image", "negatives", "id")
_NOTES = frozenset(
    {
        *("answer", "answer_type", "docId", "image_filename", "model", "options", "page", "prompt"),
        *(
            "query_id",
            "corpus_id",
            "questionId",
            "source",
            "split",
            "score",
            "language",
            "metadata",
        ),
    }
)
"""Columns of ViDoRe's sets, and notes of others, which say nothing about what is learnt."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What one record says.

    Attributes:
        query: None of a page that answers nothing.
        image: the page.
        negatives: pages that look as if they answered.
    """

    query: str | None
    image: Image
    negatives: tuple[Image, ...]


def pair_of(record: Any, folder: Path | None) -> Pair:
    """Read a record.

    Args:
        record: what its JSON says, or a row of a data set.
        folder: where relative paths of images begin.

    Raises:
        FaultyRecord: it is none, or has a key that would be dropped.
    """
    if isinstance(record, Unread):
        raise FaultyRecord("malformed", record.why)
    if not isinstance(record, Mapping):
        raise FaultyRecord("malformed", f"it is a {type(record).__name__} and not an object")
    for key, value in record.items():
        if key not in KEYS and key not in _NOTES and not is_absent(value):
            raise FaultyRecord("unsupported", f'it has "{key}"; known are {", ".join(KEYS)}')
    query, negatives = record.get("query"), record.get("negatives") or ()
    if not (query is None or isinstance(query, str)):
        raise FaultyRecord("malformed", f'its "query" is a {type(query).__name__} and no text')
    if query is not None and not query.strip():
        raise FaultyRecord("empty-question", 'its "query" has no words')
    if is_absent(record.get("image")):
        raise FaultyRecord("missing-image", 'it has no "image"')
    if isinstance(negatives, (str, Mapping)) or not isinstance(negatives, Sequence):
        raise FaultyRecord("malformed", 'its "negatives" are no list of images')
    if query is None and negatives:
        raise FaultyRecord("malformed", 'it has "negatives" and no "query" that they are for')
    pages = tuple(picture_of(one, folder) for one in negatives)
    return Pair(query, picture_of(record["image"], folder), pages)


@dataclass(frozen=True, slots=True)
class PairReport(FaultReport):
    """What was found in the data.

    Attributes:
        name: the source.
        records: how many there are.
        faults: of the records that cannot be used.
        good: indices of those with a query.
        pages: indices of those without one.
        positives: digests of the images that answer each query, by its text.
    """

    name: str
    records: int
    faults: tuple[Fault, ...]
    good: tuple[int, ...]
    pages: tuple[int, ...]
    positives: Mapping[str, frozenset[str]]

    def lines(self) -> Iterator[str]:
        """The report for people."""
        images = len(set().union(*self.positives.values())) if self.positives else 0
        yield (
            f"{self.name}: {self.records:,} records, {len(self.good):,} queries "
            f"({len(self.positives):,} different ones) about {images:,} images, and "
            f"{len(self.pages):,} pages without a query."
        )
        yield from fault_lines(self.faults)


def check_pairs(records: Records, folder: Path | None, *, workers: int = 4) -> PairReport:
    """Look through all records, and open every image.

    Args:
        records: the data.
        folder: where relative paths of images begin.
        workers: threads that open images.
    """

    def look(index: int) -> tuple[Pair, str] | FaultyRecord:
        try:
            pair = pair_of(records[index], folder)
            for image in pair.negatives:
                picture_size(image, decode=True)
            return pair, open_picture(pair.image.source, POLICY).digest
        except FaultyRecord as fault:
            return fault
        except SourceNotFoundError as error:
            return FaultyRecord("missing-image", str(error))
        except LlavaKitError as error:
            return FaultyRecord("unreadable-image", str(error))

    faults: list[Fault] = []
    good: list[int] = []
    pages: list[int] = []
    positives: dict[str, set[str]] = {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for index, found in enumerate(in_order(pool, look, len(records))):
            if isinstance(found, FaultyRecord):
                faults.append(Fault(records.places[index], found.kind, found.text))
                continue
            pair, digest = found
            if pair.query is None:
                pages.append(index)
                continue
            good.append(index)
            positives.setdefault(pair.query, set()).add(digest)
    known = {query: frozenset(digests) for query, digests in positives.items()}
    return PairReport(records.name, len(records), tuple(faults), tuple(good), tuple(pages), known)
