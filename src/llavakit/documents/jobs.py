"""Readings as JSON Lines on disk, in the order of the pages, and a run that can go on.

A run may be killed at any byte. What it had written stays; the next run of the same job cuts
off a torn last line, skips the pages that are there and ends with the same file, byte for byte,
as a run that was not interrupted. So there are no times in it, and nothing that depends on what
else the engine was doing. What the job is stands in a file beside it, ``out.jsonl.job``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from llavakit._checks import checked
from llavakit.backend import Backend
from llavakit.documents.files import read_documents
from llavakit.documents.folders import Document, Failure, list_documents
from llavakit.documents.job import Job, Tally, fingerprint_of
from llavakit.documents.job_state import JobState, put_in_order, to_line, without_dropped
from llavakit.documents.one_document import Pages
from llavakit.documents.pages import Page
from llavakit.documents.passwords import Password
from llavakit.documents.progress import name_of_item, plan
from llavakit.documents.reading import Model, Reading, Readings, read_pages
from llavakit.documents.store import PageStore
from llavakit.errors import ParameterError
from llavakit.runs.claim import claim
from llavakit.runs.lines import Lines
from llavakit.runs.window import check_window
from llavakit.sources import DEFAULT_POLICY, SourcePolicy


@checked
def run_job(
    job: Job,
    backend: Model,
    out: str | os.PathLike[str],
    *,
    restart: bool = False,
    prune: bool = False,
    retry_failed: bool = False,
    window: int | None = None,
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
        window: most requests under way; None is twice what the model runs at once,
            and at least 64.
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
        state = JobState(Path(f"{lines.path}.job"), settings)
        todo = plan(documents, lines.read(), state.read(), prune=prune, retry_failed=retry_failed)
        state.write(documents, todo)
        if todo.dropped:
            lines.replace(without_dropped(lines.path, todo))
        done = failures = 0
        with (
            closing(read_documents(todo.remaining, job.view, policy, password)) as opened,
            closing(_kept(opened, store)) as pages,
            closing(read_pages(backend, pages, job.task, window=window)) as readings,
        ):
            for reading in readings:
                lines.append(to_line(reading, job.model))
                done += reading.error is None
                failures += reading.error is not None
                if progress is not None:
                    progress(reading)
        state.write(documents, None, finished=put_in_order(lines, documents))
    changed, missing = tuple(todo.changed), tuple(todo.missing)
    return Tally(done, failures, todo.earlier, changed, missing, prune)


@checked
def stream_job(
    job: Job,
    backend: Model,
    *,
    window: int | None = None,
    policy: SourcePolicy = DEFAULT_POLICY,
    password: Password = None,
) -> Readings:
    """The readings of a job, in order, with nothing written anywhere (see :func:`run_job`)."""
    check_window(window)
    return _streamed(job, listed(job, policy), backend, window, policy, password)


def _streamed(
    job: Job,
    documents: Sequence[Document | Failure],
    backend: Backend,
    window: int | None,
    policy: SourcePolicy,
    password: Password,
) -> Readings:
    with (
        closing(read_documents(documents, job.view, policy, password)) as pages,
        closing(read_pages(backend, pages, job.task, window=window)) as readings,
    ):
        yield from readings


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


def _kept(pages: Pages, store: PageStore | None) -> Pages:
    for page in pages:
        if store is not None and isinstance(page, Page):
            store.put(page.picture)
        yield page
