"""Readings as JSON Lines on disk, in the order of the pages, and a run that can go on.

A run may be killed at any byte. What it had written stays; the next run of the same job cuts
off a torn last line, skips the pages that are there and ends with the same file, byte for byte,
as a run that nobody disturbed. So there are no times in it, and nothing that depends on what
else the engine was doing. What the job is stands in a file beside it, ``out.jsonl.job``.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from llavakit._checks import Takes, check_integer, checked, plain
from llavakit.backend import Backend
from llavakit.documents.files import Pages, View, read_documents
from llavakit.documents.folders import Document, Failure, list_documents, several
from llavakit.documents.pages import Page
from llavakit.documents.ranges import PageRange
from llavakit.documents.reading import Model, Reading, Readings, read_pages
from llavakit.documents.store import PageStore
from llavakit.documents.tasks import Task
from llavakit.errors import ParameterError
from llavakit.runs.claim import claim
from llavakit.runs.lines import Lines
from llavakit.runs.window import WINDOW
from llavakit.sources import DEFAULT_POLICY, SourcePolicy

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
        earlier: lines that were there before.
    """

    pages: int
    failures: int
    earlier: int


@checked
def run_job(
    job: Job,
    backend: Model,
    out: str | os.PathLike[str],
    *,
    restart: bool = False,
    window: int = WINDOW,
    store: PageStore | None = None,
    policy: SourcePolicy = DEFAULT_POLICY,
    progress: Callable[[Reading], None] | None = None,
) -> Tally:
    """Reads pages into a file of JSON Lines, going on where an earlier run was ended.

    Args:
        job: what to read, and how.
        backend: the model; its ``info.revision`` is a part of the job.
        out: the file. Beside it a file ``<out>.job`` says which job it belongs to.
        restart: begin anew, whatever is there.
        window: most requests under way.
        store: keeps the images of all pages, too.
        policy: what may be opened.
        progress: called with every new reading, once it is written.

    Raises:
        ParameterError: the file belongs to another job, another run is writing it, or a
            document is named twice with different pages.
        SourceFetchError: the file cannot be written.
        EngineError, RemoteError, ModelError: the model failed; the same call goes on later.
    """
    documents = listed(job, policy)
    fingerprint = fingerprint_of(job, documents, backend)
    with Lines(Path(out), ("source", "page", "error"), restart=restart) as lines:
        claim(lines, fingerprint, difference)
        remaining, earlier = _remaining(documents, lines)
        done = failures = 0
        with (
            closing(read_documents(remaining, job.view, policy)) as drawn,
            closing(_kept(drawn, store)) as pages,
            closing(read_pages(backend, pages, job.task, window=window)) as readings,
        ):
            for reading in readings:
                lines.append(to_line(reading, job.model))
                done += reading.error is None
                failures += reading.error is not None
                if progress is not None:
                    progress(reading)
    return Tally(done, failures, earlier)


@checked
def stream_job(
    job: Job, backend: Model, *, window: int = WINDOW, policy: SourcePolicy = DEFAULT_POLICY
) -> Readings:
    """The readings of a job, in order, with nothing written anywhere (see :func:`run_job`)."""
    check_integer("window", window, least=1)
    return _streamed(job, listed(job, policy), backend, window, policy)


def _streamed(
    job: Job,
    documents: Sequence[Document | Failure],
    backend: Backend,
    window: int,
    policy: SourcePolicy,
) -> Readings:
    with (
        closing(read_documents(documents, job.view, policy)) as pages,
        closing(read_pages(backend, pages, job.task, window=window)) as readings,
    ):
        yield from readings


@checked
def to_line(reading: Reading, model: str) -> dict[str, Any]:
    """A reading as the object that stands in its line; always with the same keys.

    ``cached_tokens`` is left out of the usage: it tells what was read before, not what this
    page is.
    """
    usage = reading.usage
    error = reading.error
    line = {
        "source": reading.source,
        "page": reading.page,
        "size": None if reading.size is None else list(reading.size),
        "sha256": reading.sha256,
        "task": reading.task,
        "model": model,
        "text": reading.text,
        "data": reading.data,
        "finish_reason": reading.finish_reason,
        "usage": usage
        and {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "image_tokens": usage.image_tokens,
        },
        "error": error and {"type": type(error).__name__, "message": " ".join(str(error).split())},
    }
    if reading.text_layer is not None:
        line["text_layer"] = reading.text_layer
    return line


def listed(job: Job, policy: SourcePolicy) -> list[Document | Failure]:
    """The documents of a job, in order.

    Raises:
        ParameterError: one is named twice with different pages.
    """
    documents = list_documents(job.sources, job.pages, policy)
    for name, times in Counter(map(_name, documents)).items():
        if times > 1:
            raise ParameterError(
                f"{name} is named twice with different pages; name it once, such as "
                f"{name}#pages=1,3-5."
            )
    return documents


def _name(document: Document | Failure) -> str:
    return document.source if isinstance(document, Failure) else document.name


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


def _remaining(
    documents: Sequence[Document | Failure], lines: Lines
) -> tuple[list[Document | Failure], int]:
    """What there is still to read, and how many lines there are."""
    at, count = 0, 0
    outcomes: list[str | None] = []
    ended = False
    for line in lines.read():
        name = line["source"]
        if count == 0 or name != _name(documents[at]):
            at += count > 0
            outcomes, ended = [], False
        if at >= len(documents) or name != _name(documents[at]) or ended:
            raise ParameterError(
                f"Line {count + 1} of {lines.path} is not of this job; name another file, or begin "
                "anew with restart (--restart)."
            )
        outcomes.append((line["error"] or {}).get("type"))
        ended = line["page"] is None
        count += 1
    if count == 0:
        return list(documents), 0
    current = documents[at]
    if ended or isinstance(current, Failure):
        return list(documents[at + 1 :]), count
    return [replace(current, earlier=tuple(outcomes)), *documents[at + 1 :]], count


def _kept(pages: Pages, store: PageStore | None) -> Pages:
    for page in pages:
        if store is not None and isinstance(page, Page):
            store.put(page.picture)
        yield page
