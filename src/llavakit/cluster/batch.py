"""Pages of very many documents, read by several models on Ray into a folder of Parquet.

The documents of a job are cut into shards, always in the same way: consecutive ones, so many each.
A shard is read by one actor and becomes one file, which is there whole or not at all; a run that
was killed, at whatever moment, reads the shards again whose file is not there. So every page is in
exactly one row, and the rows are those that ``llavakit read`` writes as lines without Ray.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llavakit
from llavakit.cluster.deploy import ClusterSettings, import_ray, ray_running, resources_of
from llavakit.cluster.shards import SHARD, Shard, ShardFolder, shards_of
from llavakit.documents import Job, Page, PageStore, Tally, read_pages, to_line
from llavakit.documents.files import read_documents
from llavakit.documents.job import fingerprint_of
from llavakit.documents.jobs import listed
from llavakit.documents.one_document import Pages
from llavakit.documents.passwords import Password
from llavakit.errors import LlavaKitError
from llavakit.sources import DEFAULT_POLICY, SourcePolicy

_BLOCKS = 1000  # units of work of Ray Data; a shard each, unless there are more shards


@dataclass(frozen=True, slots=True)
class Done:
    """A shard that was read.

    Attributes:
        shard: its number.
        pages: pages that were read.
        errors: why others were not, a sentence each.
    """

    shard: int
    pages: int
    errors: tuple[str, ...]


def run_on_ray(
    job: Job,
    load: Mapping[str, Any],
    out: str | os.PathLike[str],
    cluster: ClusterSettings,
    *,
    restart: bool = False,
    window: int | None = None,
    shard: int = SHARD,
    store: Path | None = None,
    policy: SourcePolicy = DEFAULT_POLICY,
    password: Password = None,
    progress: Callable[[Done], None] | None = None,
) -> Tally:
    """Reads pages into a folder of Parquet files, going on where an earlier run was ended.

    Args:
        job: what to read, and how. On a cluster of several machines all must see the files and
            ``out`` under the same names.
        load: arguments of :func:`llavakit.load` beside the model, for each actor.
        out: the folder; made if it is not there. ``_run.jsonl.job`` in it says which job it is of.
        cluster: how many actors, and where.
        restart: begin anew: earlier parts are removed.
        window: most requests under way at each actor; None is twice what its model runs at
            once, and at least 64.
        shard: documents of one file.
        store: keeps the images of all pages, too.
        policy: what may be opened.
        password: what opens encrypted documents (see
            :func:`~llavakit.documents.open_files`); a function is sent to the actors, pickled.
        progress: called with every shard, once its file is there.

    Raises:
        ParameterError: the folder is of another job or another run is writing it.
        SourceFetchError: it cannot be written.
        LlavaKitError: a model failed; the same call goes on later.
    """
    import_ray("ray")  # reports a missing extra, but not a missing part of it
    parts = ShardFolder(Path(out))
    with parts.opened(restart) as lines:
        documents = listed(job, policy)
        backend = llavakit.load(job.model, **load)
        fingerprint = fingerprint_of(job, documents, backend) | {"shard": shard}
        shards = shards_of(documents, shard)
        parts.claim(lines, fingerprint, len(shards))
        rows = [parts.rows(one) for one in shards]
        remaining = [one for one, found in zip(shards, rows, strict=True) if found is None]
        earlier = sum(found for found in rows if found is not None)
        if not remaining:
            return Tally(0, 0, earlier)
        reader = (job, dict(load), str(parts.folder.resolve()), window, store, policy, password)
        with ray_running(cluster):
            pages = failures = 0
            for done in _done(remaining, reader, resources_of(load, cluster), cluster.replicas):
                pages += done.pages
                failures += len(done.errors)
                if progress is not None:
                    progress(done)
    return Tally(pages, failures, earlier)


def _done(
    shards: Sequence[Shard], reader: tuple[Any, ...], resources: Mapping[str, float], actors: int
) -> Iterator[Done]:
    """The shards as they are finished, by a pool of actors."""
    ray, data = import_ray("ray"), import_ray("ray.data")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data.DataContext.get_current().enable_progress_bars = False
    items = [{"shard": pickle.dumps(one)} for one in shards]  # Arrow has no name for them
    read = data.from_items(items, override_num_blocks=min(len(items), _BLOCKS)).map_batches(
        ShardReader,
        fn_constructor_args=(str(Path.cwd()), *reader),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(actors, len(items))),
        **resources,
    )
    try:
        for row in read.iter_rows():
            yield pickle.loads(row["done"])
    except ray.exceptions.RayError as error:
        raise _cause(error) from error


def _cause(error: BaseException) -> BaseException:
    """The model's own error, which Ray wraps; or what Ray says."""
    at: BaseException | None = error
    while at is not None:
        inner = getattr(at, "cause", None)
        for one in (at, inner):
            if isinstance(one, LlavaKitError):
                return one
        at = inner if isinstance(inner, BaseException) else at.__cause__
    return error


class ShardReader:
    """An actor of Ray Data: a model, and shards to read with it.

    Args:
        home: the folder against which paths are meant, where there is one.
        job, load, out, window, store, policy, password: as for :func:`run_on_ray`.
    """

    def __init__(
        self,
        home: str,
        job: Job,
        load: Mapping[str, Any],
        out: str,
        window: int | None,
        store: Path | None,
        policy: SourcePolicy,
        password: Password = None,
    ) -> None:
        with suppress(OSError):
            os.chdir(home)
        self._job = job
        self._parts = ShardFolder(Path(out))
        self._window = window
        self._store = None if store is None else PageStore(store)
        self._policy = policy
        self._password = password
        self._backend = llavakit.load(job.model, **load)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Reads shards; gives what came of them. All of it pickled."""
        return {"done": [pickle.dumps(self.read(pickle.loads(one))) for one in batch["shard"]]}

    def read(self, shard: Shard) -> Done:
        """Reads a shard and writes its file."""
        job = self._job
        lines: list[dict[str, Any]] = []
        errors: list[str] = []
        with (
            closing(self._opened(shard)) as opened,
            closing(self._kept(opened)) as pages,
            closing(read_pages(self._backend, pages, job.task, window=self._window)) as readings,
        ):
            for reading in readings:
                lines.append(to_line(reading, job.model))
                if reading.error is not None:
                    errors.append(" ".join(str(reading.error).split()))
        self._parts.write(shard, lines)
        return Done(shard.number, len(lines) - len(errors), tuple(errors))

    def _opened(self, shard: Shard) -> Pages:
        return read_documents(shard.documents, self._job.view, self._policy, self._password)

    def _kept(self, pages: Pages) -> Pages:
        for page in pages:
            if self._store is not None and isinstance(page, Page):
                self._store.put(page.picture)
            yield page
