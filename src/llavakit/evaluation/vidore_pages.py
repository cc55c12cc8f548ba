"""The pages of ViDoRe's tasks: embedded one after the other, and their scores on disk."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llavakit.embeddings import Embedder, Embedding
from llavakit.errors import InputError, LlavaKitError, ParameterError
from llavakit.evaluation.run import RunProgress
from llavakit.evaluation.vidore_data import CorpusPage, Query, RetrievalTask
from llavakit.images import open_picture
from llavakit.runs.lines import Lines
from llavakit.runs.window import OF_ONE_REQUEST
from llavakit.sources import SourcePolicy

KEYS = ("task", "page", "sha256", "scores", "error")
"""What every line has."""

_TOGETHER = 16  # pages that are embedded at once
_PRODUCTS = 1 << 24  # numbers of one product of queries and a page: 64 MiB

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ScoredPage:
    """A page's scores against all queries of its task; None where it has an error."""

    id: str
    sha256: str
    vectors: int
    scores: Scores | None
    error: str | None


Known = dict[tuple[str, str, str], ScoredPage]
"""By task, id and digest."""


class PageRun:
    """Embeds the pages that are missing, and writes their scores down.

    Args:
        embedder: the retriever.
        lines: where scores are written.
        known: pages of earlier runs.
        pool: the factor by which vectors of a page are pooled.
        policy: caps on the images' bytes and pixels.
        progress: called now, and after each page.
        total: rows of pages of all tasks.
    """

    def __init__(
        self,
        embedder: Embedder,
        lines: Lines,
        known: Known,
        pool: int,
        policy: SourcePolicy,
        progress: Callable[[RunProgress], None],
        total: int,
    ) -> None:
        self._embedder = embedder
        self._lines = lines
        self._known = known
        self._pool = pool
        self._policy = policy
        self._progress = progress
        self._total = total
        self._done = len(known)
        self._errors = sum(page.error is not None for page in known.values())
        progress(RunProgress(self._done, total, self._errors))

    def task(self, task: RetrievalTask) -> tuple[list[ScoredPage], int]:
        """Return the pages of a task, and how many of its queries could not be embedded."""
        queries = self._queries(task.queries)
        pages: dict[tuple[str, str], ScoredPage] = {}
        rows = 0
        # Pages are embedded in the same groups by a run that goes on: with others beside it, a
        # page's vectors differ in their last bits.
        for group in _groups(_different(task.pages()), _TOGETHER):
            keys = [(task.name, row.id, digest) for row, digest in group]
            if not all(key in self._known for key in keys):
                self._embed(task.name, group, queries)
            for key in keys:
                pages[key[1:]] = self._known[key]
                rows += 1
        self._done += len(task.ids) - rows
        self._progress(RunProgress(self._done, self._total, self._errors))
        return list(pages.values()), sum(one is None for one in queries)

    def _queries(self, queries: Sequence[Query]) -> list[Embedding | None]:
        texts = [query.text for query in queries]
        try:
            return list(self._embedder.embed(texts=texts))
        except InputError:
            return [self._alone({"texts": [text]})[0] for text in texts]

    def _alone(self, given: dict[str, Any]) -> tuple[Embedding | None, LlavaKitError | None]:
        try:
            return self._embedder.embed(**given)[0], None
        except OF_ONE_REQUEST as error:
            return None, error

    def _embed(
        self,
        task: str,
        group: Sequence[tuple[CorpusPage, str]],
        queries: Sequence[Embedding | None],
    ) -> None:
        outcomes = self._outcomes([row for row, _ in group])
        for (row, digest), (embedding, error) in zip(group, outcomes, strict=True):
            if (task, row.id, digest) in self._known:
                continue
            if embedding is not None:
                pooled = embedding.pooled(self._pool)
                page = ScoredPage(row.id, digest, len(pooled), _maxsims(queries, pooled), None)
            else:
                message = f"Page {row.id} of {task}: {' '.join(str(error).split())}"
                page = ScoredPage(row.id, digest, 0, None, message)
            self._lines.append(_line(task, page))
            self._known[task, row.id, digest] = page
            self._done += 1
            self._errors += page.error is not None
            self._progress(RunProgress(self._done, self._total, self._errors, page.error))

    def _outcomes(
        self, rows: Sequence[CorpusPage]
    ) -> list[tuple[Embedding | None, LlavaKitError | None]]:
        """What each page's embedding is, or why there is none."""
        opened: list[Any] = []
        for row in rows:
            try:
                if row.image is None:
                    raise InputError("its row holds no bytes of an image")
                opened.append(open_picture(row.image, self._policy))
            except InputError as error:
                opened.append(error)
        good = [one for one in opened if not isinstance(one, InputError)]
        try:
            made = [(one, None) for one in self._embedder.embed(images=good)] if good else []
        except OF_ONE_REQUEST:
            made = [self._alone({"images": [one]}) for one in good]  # type: ignore[misc]
        given = iter(made)
        return [(None, one) if isinstance(one, InputError) else next(given) for one in opened]


def _different(rows: Iterable[CorpusPage]) -> Iterator[tuple[CorpusPage, str]]:
    """Rows with the digest of their image, each page once; one id may have several images."""
    seen: set[tuple[str, str]] = set()
    for row in rows:
        digest = hashlib.sha256(row.image or b"").hexdigest()
        if (row.id, digest) not in seen:
            seen.add((row.id, digest))
            yield row, digest


def _groups(
    pages: Iterator[tuple[CorpusPage, str]], size: int
) -> Iterator[list[tuple[CorpusPage, str]]]:
    while group := list(itertools.islice(pages, size)):
        yield group


def _maxsims(queries: Sequence[Embedding | None], page: Embedding) -> Scores:
    """Late interaction of each query with a page, [queries]; NaN for one without vectors."""
    scores = np.full(len(queries), np.nan, dtype=np.float32)
    there = [number for number, one in enumerate(queries) if one is not None]
    vectors = [one.vectors for one in queries if one is not None]
    begin = 0
    while begin < len(there):
        end, rows = begin + 1, len(vectors[begin])
        while end < len(there) and (rows + len(vectors[end])) * len(page) <= _PRODUCTS:
            rows += len(vectors[end])
            end += 1
        best = (np.concatenate(vectors[begin:end]) @ page.vectors.T).max(axis=1)
        starts = np.cumsum([0, *(len(one) for one in vectors[begin : end - 1])])
        scores[there[begin:end]] = np.add.reduceat(best, starts)
        begin = end
    return scores


def _line(task: str, page: ScoredPage) -> dict[str, Any]:
    """A page's line on disk; its scores as base64 of little-endian fp32, which is exact."""
    scores = None
    if page.scores is not None:
        scores = base64.b64encode(page.scores.astype("<f4").tobytes()).decode()
    line = {"task": task, "page": page.id, "sha256": page.sha256, "vectors": page.vectors}
    return {**line, "scores": scores, "error": page.error}


def earlier(lines: Lines, tasks: Sequence[RetrievalTask], retry_errors: bool) -> Known:
    """Read the pages of earlier runs; of two lines of a page, the later one counts."""
    by_name = {task.name: (set(task.ids), len(task.queries)) for task in tasks}
    found: Known = {}
    for at, line in enumerate(lines.read(), 1):
        ids, queries = by_name.get(line["task"], (set(), 0))
        scores = line["scores"] and np.frombuffer(base64.b64decode(line["scores"]), dtype="<f4")
        if line["page"] not in ids or (scores is not None and len(scores) != queries):
            raise ParameterError(
                f"Line {at} of {lines.path} is not of these data sets; name another folder, or "
                "begin anew with restart (--restart)."
            )
        page = ScoredPage(
            line["page"], line["sha256"], line.get("vectors", 0), scores, line["error"]
        )
        found[line["task"], page.id, page.sha256] = page
    if retry_errors:
        return {key: page for key, page in found.items() if page.error is None}
    return found
