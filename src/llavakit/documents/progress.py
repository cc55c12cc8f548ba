"""What a file of readings holds of a job, and what is left to be read: folders grow and change.

Pure but for the sizes of files. A run does its work in this order: it finishes the document that
it was at, reads those that are new or have changed, and then the pages that are tried again. So
the document of the last line is the only one that can be unfinished.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llavakit.documents.attachments import MARK
from llavakit.documents.folders import Document, Failure
from llavakit.documents.ranges import PageRange
from llavakit.errors import ParameterError

OUTSIDE = frozenset(
    (
        "RendererKilledError",
        "SourceFetchError",
        "OutOfMemoryError",
        "RequestTimeoutError",
        "QueueFullError",
        "RemoteError",
    )
)
"""Errors whose cause is not the page: a run that goes on tries those pages again."""

Entry = list[Any]
"""A document as it is written down: name, pages, bytes, time of change in nanoseconds."""


@dataclass
class Known:
    """The lines of one document: for each page its error's class, or None; in their order.

    Those of documents that are attached to it are kept by their names.
    """

    outcomes: dict[int | None, str | None] = field(default_factory=dict)
    attached: dict[str, list[str | None]] = field(default_factory=dict)

    @property
    def is_ended(self) -> bool:
        """Whether the (rest of the) document failed as a whole."""
        return None in self.outcomes


@dataclass(frozen=True)
class ReadingPlan:
    """What a run does.

    Attributes:
        remaining: what is read, in this order.
        dropped: lines that are taken out first: document and page; a page of None stands for
            all lines of the document.
        retried: for each document the pages that are tried again.
        missing: documents that are not there any more, and whose lines are.
        changed: documents that are read again.
        earlier: lines that stay.
    """

    remaining: list[Document | Failure]
    dropped: set[tuple[str, int | None]]
    retried: dict[str, list[int]]
    missing: list[str]
    changed: list[str]
    earlier: int

    def drops(self, line: Mapping[str, Any]) -> bool:
        """Whether a line is taken out."""
        name = line["source"]
        return (name, None) in self.dropped or (name, line["page"]) in self.dropped


def name_of_item(item: Document | Failure) -> str:
    """The name that its lines carry."""
    return item.source if isinstance(item, Failure) else item.name


def entry_of(item: Document | Failure) -> Entry:
    """Return a document as it is written down, so that a change is seen."""
    if isinstance(item, Failure):
        return [item.source, None, None, None]
    size = changed = None
    with contextlib.suppress(OSError, ValueError):
        status = Path(item.source).stat()
        size, changed = status.st_size, status.st_mtime_ns
    pages = item.pages
    return [item.name, pages and [list(part) for part in pages.parts], size, changed]


def plan(
    documents: Sequence[Document | Failure],
    lines: Iterable[Mapping[str, Any]],
    state: Mapping[str, Any],
    *,
    prune: bool = False,
    retry_failed: bool = False,
) -> ReadingPlan:
    """Compare what there is to read with what was read.

    Args:
        documents: of the job, as they are now.
        lines: of the file, in their order.
        state: what the last run wrote down: ``documents`` (entries) and ``retry``.
        prune: take out the lines of documents that are not there any more.
        retry_failed: try all pages again that could not be read.

    Raises:
        ParameterError: a line is of a document that is not of the job and never was, or no
            document is.
    """
    before = {entry[0]: entry for entry in state.get("documents") or ()}
    now = {name_of_item(one): one for one in documents}
    known, last, count = _known(lines, before.keys() | now.keys())
    finished = state.get("finished") == count
    if known and not known.keys() & now.keys():
        raise ParameterError(
            "The file belongs to another job (it has none of these documents); name another file, "
            "or begin anew with restart (--restart)."
        )
    pending = {name: set(pages) for name, pages in (state.get("retry") or {}).items()}
    dropped: set[tuple[str, int | None]] = set()
    retried: dict[str, list[int]] = {}
    changed, whole, opened, again = [], [], [], []
    missing = [name for name in known if name not in now]
    for name, document in now.items():
        one = known.get(name)
        if one is None:
            whole.append(document)
            continue
        entry = entry_of(document)
        if _is_gone(before.get(name), entry):
            missing.append(name)
            continue
        to_retry = _to_retry(one, pending.get(name, set()), retry_failed)
        if _has_changed(before.get(name), entry) or None in to_retry:
            changed += [name] if _has_changed(before.get(name), entry) else []
            dropped |= {(inside, None) for inside in (name, *one.attached)}
            whole.append(document)
            continue
        pages = sorted(page for page in to_retry if page is not None)
        failed_now = {(name, page) for page in pages if one.outcomes.get(page, "")}
        dropped |= failed_now
        left = [page for page in pages if (name, page) in failed_now or page not in one.outcomes]
        if pages:
            retried[name] = pages
        if name == last and not finished and not one.is_ended:
            assert isinstance(document, Document)  # what failed in the list has ended
            dropped |= {(inside, None) for inside in one.attached}  # they are read once more
            outcomes = dict(one.outcomes)
            outcomes.update({page: one.outcomes.get(page) for page in pages})
            opened.append(replace(document, earlier=tuple(outcomes.values())))
        if left and isinstance(document, Document):
            again.append(replace(document, pages=PageRange(tuple((p, p) for p in left))))
    if prune:
        dropped |= {(one, None) for name in missing for one in (name, *known[name].attached)}
    plan = ReadingPlan([*opened, *whole, *again], dropped, retried, missing, changed, 0)
    return replace(plan, earlier=sum(_staying(plan, name, one) for name, one in known.items()))


def _staying(plan: ReadingPlan, name: str, one: Known) -> int:
    """How many lines of a document stay."""
    own = sum(not plan.drops({"source": name, "page": page}) for page in one.outcomes)
    kept = (
        len(lines) for inside, lines in one.attached.items() if (inside, None) not in plan.dropped
    )
    return own + sum(kept)


def canonical(
    documents: Sequence[Document | Failure], keys: Sequence[tuple[str, int | None]]
) -> list[int] | None:
    """Return the order that lines have in an undisturbed run; None if they are in it.

    Args:
        documents: of the job.
        keys: document and page of each line. Lines of documents that are not there any more stay
            where they are, before all others.
    """
    places = {name_of_item(one): at for at, one in enumerate(documents)}
    ranges = {
        name_of_item(one): one.pages for one in documents if isinstance(one, Document) and one.pages
    }

    def place(at: int) -> tuple[int, int, int]:
        name, page = keys[at]
        if name not in places:
            owner = places.get(name.partition(MARK)[0], -1)
            return owner, 2**62 + 1, at
        return places[name], _position(ranges.get(name), page), at

    order = sorted(range(len(keys)), key=place)
    return None if order == list(range(len(keys))) else order


def _position(pages: PageRange | None, page: int | None) -> int:
    """Where a page comes among those of its document."""
    if page is None:
        return 2**62
    if pages is None:
        return page
    passed = 0
    for begin, end in pages.parts:
        if begin <= page and (end is None or page <= end):
            return passed + page - begin
        passed += (end or 2**40) - begin + 1
    return passed


def _known(
    lines: Iterable[Mapping[str, Any]], names: Iterable[str]
) -> tuple[dict[str, Known], str | None, int]:
    """Sorts lines by documents; the document of the last one, and how many there are."""
    allowed = set(names)
    known: dict[str, Known] = {}
    last, number = None, 0
    for number, line in enumerate(lines, 1):
        source = line["source"]
        last = source if source in allowed else source.partition(MARK)[0]
        if last not in allowed:
            raise ParameterError(
                f"Line {number} of the file is not of this job ({last[-80:]}); name another file, "
                "or begin anew with restart (--restart)."
            )
        error = (line["error"] or {}).get("type")
        one = known.setdefault(last, Known())
        if source == last:
            one.outcomes[line["page"]] = error
        else:
            one.attached.setdefault(source, []).append(error)
    return known, last, number


def _to_retry(one: Known, pending: set[int], retry_failed: bool) -> set[int | None]:
    wanted: set[int | None] = set(pending)
    for page, error in one.outcomes.items():
        if error and (retry_failed or error in OUTSIDE):
            wanted.add(page)
    inside = [error for errors in one.attached.values() for error in errors if error]
    if any(retry_failed or error in OUTSIDE for error in inside):
        wanted.add(None)  # the whole document
    return wanted


def _has_changed(before: Entry | None, now: Entry) -> bool:
    # An entry that another version wrote has fewer values.
    return before is not None and any(a != b for a, b in zip(before, now, strict=False))


def _is_gone(before: Entry | None, now: Entry) -> bool:
    """Whether a file that was read is not there any more."""
    return before is not None and before[2] is not None and now[2] is None
