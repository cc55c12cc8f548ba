"""What an index holds, compared with the documents as they are now: what an update has to do.

A file is taken for unchanged if its size and time are those that were written down, as rsync does;
where they differ, its content decides.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from llavakit._checks import refused
from llavakit.documents import Document, Failure
from llavakit.documents.attachments import outermost
from llavakit.documents.folders import list_documents, several
from llavakit.documents.progress import OUTSIDE
from llavakit.errors import ParameterError
from llavakit.retrieval.ledger import DocumentEntry, FileFacts, Ledger
from llavakit.sources import SourcePolicy


@dataclass
class Plan:
    """What an update does.

    Attributes:
        todo: what is read, in this order, each with what is known of it: None for a document that
            begins anew, and its entry for one that goes on.
        outdated: entries whose pages leave the index first; those of changed documents are among
            the documents that are read.
        touched: entries whose files have another time and the same content.
        new, changed, removed: names of documents, for people.
        kept: how many documents stay as they are.
    """

    todo: list[tuple[Document | Failure, DocumentEntry | None]] = field(default_factory=list)
    outdated: list[DocumentEntry] = field(default_factory=list)
    touched: list[tuple[DocumentEntry, FileFacts]] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    kept: int = 0


def list_now(paths: Any, policy: SourcePolicy) -> tuple[list[str], dict[str, Document | Failure]]:
    """Return the roots that paths name, and the documents below them by their names.

    Args:
        paths: files, folders, addresses and :class:`~llavakit.documents.Document`, as
            :func:`~llavakit.documents.open_files` takes them. Paths become absolute: an index is
            searched from any folder.
        policy: which folders may be listed.

    Raises:
        ParameterError: an image or bytes, which could not be opened again, or a document that is
            named twice with different pages.
    """
    sources = [_absolute(one) for one in several(paths)]
    found: dict[str, Document | Failure] = {}
    for one in list_documents(sources, None, policy):
        name = one.source if isinstance(one, Failure) else one.name
        if name in found:
            raise ParameterError(
                f"{name} is named twice with different pages; name it once, such as "
                f"{name}#pages=1,3-5."
            )
        found[name] = one
    roots = [str(one.source if isinstance(one, Document) else one) for one in sources]
    return roots, found


def _absolute(source: Any) -> str | Document:
    if isinstance(source, Document):
        return replace(source, source=_absolute(source.source))
    if not isinstance(source, (str, os.PathLike)):
        raise refused(
            "paths", source, "paths, addresses or folders: an index keeps no pixels, and opens "
            "its pages again from where they are"
        )  # fmt: skip
    name = os.fspath(source)
    if not isinstance(name, str) or not name:
        raise refused("paths", source, "names of files, folders or addresses")
    if name.lower().startswith("file:"):  # a file, whose changes are to be seen
        parts = urlsplit(name)
        name = url2pathname(parts.path) + (parts.fragment and f"#{parts.fragment}")
    return name if "://" in name else os.path.abspath(name)  # noqa: PTH100  # keeps #pages=1-3


def compare(
    roots: Sequence[str],
    now: Mapping[str, Document | Failure],
    ledger: Ledger,
    *,
    retry_failed: bool = False,
) -> Plan:
    """Return what there is to do.

    Args:
        roots: what was named; documents of the index that lie elsewhere stay as they are.
        now: the documents below it, by their names.
        ledger: what the index holds.
        retry_failed: read all documents again of which a page is missing.
    """
    plan = Plan()
    known = ledger.entries()
    failed = ledger.failed()
    for name, item in now.items():
        entry = known.get(name)
        if isinstance(item, Failure):
            plan.todo.append((item, None))
            plan.outdated.extend([entry] if entry else [])
            continue
        if entry is None:
            plan.new.append(name)
            plan.todo.append((item, None))
            continue
        facts = _changed_facts(item, entry)
        if facts is not None and facts == entry.facts:
            lost = failed.get(entry.id, set())
            if not entry.done and not ledger.gave_up(entry):
                plan.todo.append((item, entry))
            elif not entry.done or _to_retry(entry, lost, retry_failed):
                plan.outdated.append(entry)
                plan.todo.append((item, None))
            else:
                plan.kept += 1
        elif facts is not None:
            plan.touched.append((entry, facts))
            plan.todo.extend([] if entry.done else [(item, entry)])
            plan.kept += entry.done
        else:
            plan.changed.append(name)
            plan.outdated.append(entry)
            plan.todo.append((item, None))
    # What cannot be listed, or is not there (a disk that is not mounted), loses no pages.
    closed = [
        name
        for name, one in now.items()
        if isinstance(one, Failure) or not os.path.lexists(outermost(name))
    ]
    for name, entry in known.items():
        if name in now or not _lies_in(name, roots) or _lies_in(name, closed):
            continue
        plan.removed.append(name)
        plan.outdated.append(entry)
    return plan


def facts_of(name: str) -> FileFacts:
    """Return size, time and digest of a document's file; of an address nothing is known."""
    facts = _status(name)
    if facts.size is None:
        return facts
    try:
        with Path(outermost(name)).open("rb") as file:
            return replace(facts, sha256=hashlib.file_digest(file, "sha256").hexdigest())
    except OSError:
        return facts


def _status(name: str) -> FileFacts:
    try:
        status = Path(outermost(name)).stat()
    except (OSError, ValueError):
        return FileFacts()
    if not stat.S_ISREG(status.st_mode):  # a pipe without a writer would be read for ever
        return FileFacts()
    return FileFacts(status.st_size, status.st_mtime_ns)


def _changed_facts(document: Document, entry: DocumentEntry) -> FileFacts | None:
    """The facts of a file whose content is as it was indexed; None if it is not."""
    if wish_of(document) != entry.wish:
        return None
    status = _status(document.name)
    if (status.size, status.mtime) == (entry.facts.size, entry.facts.mtime):
        return entry.facts
    if status.size is None or status.size != entry.facts.size:
        return None
    facts = facts_of(document.name)
    return facts if facts.sha256 == entry.facts.sha256 is not None else None


def wish_of(document: Document | Failure) -> str:
    """Return the pages that are wanted of a document, as text; "" for all."""
    return "" if isinstance(document, Failure) else str(document.pages or "")


def _to_retry(entry: DocumentEntry, lost: set[str], retry_failed: bool) -> bool:
    """Whether a document that was read is read again.

    By itself only where nothing was to be had of it, for a cause outside of it.
    """
    return bool(lost) and (retry_failed or (not entry.pages and bool(lost & OUTSIDE)))


def _lies_in(name: str, folders: Sequence[str]) -> bool:
    return any(name == one or name.startswith(one.rstrip("/\\") + os.sep) for one in folders)
