"""A job: all that its results depend on, and how two jobs differ."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from llavakit._checks import Takes, checked, plain
from llavakit.backend import Backend
from llavakit.documents.folders import Document, Failure, several
from llavakit.documents.ranges import PageRange
from llavakit.documents.tasks import Task
from llavakit.documents.view import View

_FORMAT = 1


@checked
@dataclass(frozen=True, slots=True)
class Job:
    """All that the lines of a run depend on.

    Attributes:
        sources: files, folders and URLs, as :func:`~llavakit.documents.open_files` takes them.
        task: what is wanted of each page.
        model: the name that stands in the lines.
        pages: pages to read of each document, such as ``"1-3,7"``; None reads all.
        view: how pages become images.
        settings: whatever else makes a difference, such as a conversation template.
    """

    sources: Annotated[tuple[str, ...], Takes(Any)]
    task: Task
    model: str
    pages: str | None = None
    view: View = View()
    settings: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(several(self.sources)))
        if self.pages is not None:
            PageRange.parse(self.pages)
        plain("settings", self.settings)


@dataclass(frozen=True, slots=True)
class Tally:
    """How a run went.

    Attributes:
        pages: pages that were read in this run.
        failures: pages and documents that could not be read in this run.
        earlier: lines that were there before, and stay.
        changed: documents that had changed and were read again.
        missing: documents that are not there any more; their lines stay unless they are pruned.
        pruned: whether the lines of missing documents were taken out.
    """

    pages: int
    failures: int
    earlier: int
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    pruned: bool = False


def fingerprint_of(
    job: Job, documents: Sequence[Document | Failure], backend: Backend
) -> dict[str, Any]:
    """All that the results of a job depend on, as JSON values by name."""
    task, view = job.task, job.view
    return {
        "format": _FORMAT,
        "task": task.name,
        "prompt": task.prompt,
        "schema": task.schema,
        "max_tokens": task.max_tokens,
        "tiles": None if task.tiles is None else str(task.tiles),
        "model": job.model,
        "revision": backend.info.revision,
        "settings": dict(job.settings or {}),
        "pages": job.pages,
        "dpi": view.dpi,
        "max_pixels": view.max_pixels,
        "text_layer": view.text,
        "confidence": task.confidence or None,  # a file of an earlier version has no such key
        "documents": [_described(document) for document in documents],
    }


def _described(document: Document | Failure) -> list[Any]:
    """Name, pages and bytes: a file that was replaced meanwhile is another one."""
    if isinstance(document, Failure):
        return [document.source, None, None]
    size = None
    with contextlib.suppress(OSError, ValueError):
        size = Path(document.source).stat().st_size
    pages = document.pages
    return [document.name, None if pages is None else [list(part) for part in pages.parts], size]


def difference(key: str, known: Any, given: Any) -> str | None:
    """The first difference between two lists of documents in words; None for other keys."""
    if key != "documents":
        return None
    before = {entry[0]: entry for entry in known or ()}
    now = {entry[0]: entry for entry in given}
    for name in [*now, *before]:
        if name not in before:
            return f"{name} is new"
        if name not in now:
            return f"{name} is missing"
        if before[name] != now[name]:
            return f"{name} has changed"
    return "the documents come in another order"
