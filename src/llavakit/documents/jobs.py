"""Readings as JSON Lines on disk, in the order of the pages, and a run that can go on.

A run may be killed at any byte. What it had written stays; the next run of the same job cuts
off a torn last line, skips the pages that are there and ends with the same file, byte for byte,
as a run that was not interrupted. So there are no times in it, and nothing that depends on what
else the engine was doing. What the job is stands in a file beside it, ``out.jsonl.job``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from llavakit._checks import Takes, check_integer, checked, plain
from llavakit.backend import Backend
from llavakit.documents.files import Pages, View, read_documents
from llavakit.documents.folders import Document, Failure, list_documents, several
from llavakit.documents.pages import Page
from llavakit.documents.passwords import Password
from llavakit.documents.progress import Plan, canonical, entry_of, name_of_item, plan
from llavakit.documents.ranges import PageRange
from llavakit.documents.reading import Model, Reading, Readings, read_pages
from llavakit.documents.store import PageStore
from llavakit.documents.tasks import Task
from llavakit.errors import ParameterError
from llavakit.runs.atomic import write_atomic
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


@checked
def run_job(
    job: Job,
    backend: Model,
    out: str | os.PathLike[str],
    *,
    restart: bool = False,
    prune: bool = False,
    retry_failed: bool = False,
    window: int = WINDOW,
    store: PageStore | None = None,
    policy: SourcePolicy = DEFAULT_POLICY,
    password: Password = None,
    progress: Callable[[Reading], None] | None = None,
) -> Tally:
    """Reads pages into a file of JSON Lines, going on where an earlier run was ended.

    Documents that came since are read, those that changed are read again (their size or time
    differs), and pages that failed for a cause outside of them (no memory, a full disk, a
    renderer that the system ended) are tried again. At its end the file is in the order of an
    undisturbed run.

    Args:
        job: what to read, and how.
        backend: the model; its ``info.revision`` is a part of the job.
        out: the file. Beside it a file ``<out>.job`` says which job it belongs to.
        restart: begin anew, whatever is there.
        prune: take out the lines of documents that are not there any more.
        retry_failed: try all pages and documents again that could not be read.
        window: most requests under way.
        store: keeps the images of all pages, too.
        policy: what may be opened.
        password: what opens encrypted documents (see
            :func:`~llavakit.documents.open_files`); it is not written down.
        progress: called with every new reading, once it is written.

    Raises:
        ParameterError: the file belongs to another job, another run is writing it, or a
            document is named twice with different pages.
        SourceFetchError: the file cannot be written.
        EngineError, RemoteError, ModelError: the model failed; the same call goes on later.
    """
    documents = listed(job, policy)
    settings = fingerprint_of(job, (), backend)
    del settings["documents"]
    with Lines(Path(out), ("source", "page", "error"), restart=restart) as lines:
        claim(lines, settings)
        state = _State(Path(f"{lines.path}.job"), settings)
        todo = plan(documents, lines.read(), state.read(), prune=prune, retry_failed=retry_failed)
        state.write(documents, todo)
        if todo.dropped:
            lines.replace(_without_dropped(lines.path, todo))
        done = failures = 0
        with (
            closing(read_documents(todo.remaining, job.view, policy, password)) as drawn,
            closing(_kept(drawn, store)) as pages,
            closing(read_pages(backend, pages, job.task, window=window)) as readings,
        ):
            for reading in readings:
                lines.append(to_line(reading, job.model))
                done += reading.error is None
                failures += reading.error is not None
                if progress is not None:
                    progress(reading)
        state.write(documents, None, finished=_put_in_order(lines, documents))
    changed, missing = tuple(todo.changed), tuple(todo.missing)
    return Tally(done, failures, todo.earlier, changed, missing, prune)


class _State:
    """What stands beside a file of lines: its job, the documents as they were, what is pending."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings = settings
        self._documents: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """What the last run wrote down."""
        state: dict[str, Any] = json.loads(self._path.read_bytes())
        self._documents = {entry[0]: entry for entry in state.get("documents") or ()}
        return state

    def write(
        self,
        documents: Sequence[Document | Failure],
        todo: Plan | None,
        finished: int | None = None,
    ) -> None:
        """Writes down the documents, and what is tried again until the run is through.

        Args:
            documents: of the job.
            todo: what the run does; None once it is done.
            finished: how many lines there are then. A file that has lost some is not finished.
        """
        entries = {entry[0]: entry for entry in map(entry_of, documents)}
        # Of what is missing it is remembered what it was.
        kept = {name: entry for name, entry in self._documents.items() if name not in entries}
        gone = {name for name in entries if entries[name][2] is None and name in self._documents}
        entries |= {name: self._documents[name] for name in gone}
        state = {
            **self._settings,
            "documents": [*kept.values(), *entries.values()],
            "retry": {} if todo is None else todo.retried,
            "finished": finished,
        }
        self._documents = {entry[0]: entry for entry in state["documents"]}
        write_atomic(self._path, json.dumps(state, indent=1).encode() + b"\n")


def _without_dropped(path: Path, todo: Plan) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from (line for line in file if not todo.drops(json.loads(line)))


def _put_in_order(lines: Lines, documents: Sequence[Document | Failure]) -> int:
    """Gives the file the order of an undisturbed run, where a run that went on left another.

    Returns how many lines it has.
    """
    keys, places, at = [], [], 0
    with lines.path.open("rb") as file:
        for line in file:
            known = json.loads(line)
            keys.append((known["source"], known["page"]))
            places.append((at, len(line)))
            at += len(line)
    order = canonical(documents, keys)
    if order is None:
        return len(keys)

    def sorted_lines() -> Iterator[bytes]:
        with lines.path.open("rb") as file:
            for index in order:
                start, length = places[index]
                file.seek(start)
                yield file.read(length)

    lines.replace(sorted_lines())
    return len(keys)


@checked
def stream_job(
    job: Job,
    backend: Model,
    *,
    window: int = WINDOW,
    policy: SourcePolicy = DEFAULT_POLICY,
    password: Password = None,
) -> Readings:
    """The readings of a job, in order, with nothing written anywhere (see :func:`run_job`)."""
    check_integer("window", window, least=1)
    return _streamed(job, listed(job, policy), backend, window, policy, password)


def _streamed(
    job: Job,
    documents: Sequence[Document | Failure],
    backend: Backend,
    window: int,
    policy: SourcePolicy,
    password: Password,
) -> Readings:
    with (
        closing(read_documents(documents, job.view, policy, password)) as pages,
        closing(read_pages(backend, pages, job.task, window=window)) as readings,
    ):
        yield from readings


@checked
def to_line(reading: Reading, model: str) -> dict[str, Any]:
    """A reading as the object that stands in its line; always with the same keys.

    ``cached_tokens`` is left out of the usage: it says what was read before, not what this
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
    if reading.confidence is not None:
        line["confidence"] = asdict(reading.confidence)
    return line


def listed(job: Job, policy: SourcePolicy) -> list[Document | Failure]:
    """The documents of a job, in order.

    Raises:
        ParameterError: one is named twice with different pages.
    """
    documents = list_documents(job.sources, job.pages, policy)
    for name, times in Counter(map(name_of_item, documents)).items():
        if times > 1:
            raise ParameterError(
                f"{name} is named twice with different pages; name it once, such as "
                f"{name}#pages=1,3-5."
            )
    return documents


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


def _kept(pages: Pages, store: PageStore | None) -> Pages:
    for page in pages:
        if store is not None and isinstance(page, Page):
            store.put(page.picture)
        yield page
