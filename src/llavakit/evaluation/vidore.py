"""ViDoRe, the benchmark of retrieval from page images (https://arxiv.org/abs/2407.01449).

Every query of a task is compared with every page of it. Pages are embedded one after the other
and only their scores are kept, in ``pages.jsonl``: the memory that is needed does not grow with
the vectors, and a run that is killed goes on with the next page.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llavakit._checks import check_integer, plain
from llavakit.embeddings import Embedder, Embedding
from llavakit.errors import InputError, LlavaKitError, OutOfMemoryError, ParameterError
from llavakit.evaluation.ranking import ndcg, ranking, recall
from llavakit.evaluation.run import RunProgress, make_folder
from llavakit.evaluation.scores import Score, mean, sum_of_means
from llavakit.evaluation.vidore_data import PageRow, Query, RetrievalTask
from llavakit.images import open_picture
from llavakit.runs.atomic import write_atomic
from llavakit.runs.claim import claim
from llavakit.runs.lines import Lines
from llavakit.sources import DEFAULT_POLICY, SourcePolicy

_FORMAT = 1
_KEYS = ("task", "page", "sha256", "scores", "error")
_TOGETHER = 16  # pages that are embedded at once
_PRODUCTS = 1 << 24  # numbers of one product of queries and a page: 64 MiB
_OF_ONE_INPUT = (InputError, OutOfMemoryError)

Scores = npt.NDArray[np.float32]
MEASURES: tuple[tuple[str, Callable[[Sequence[str], Mapping[str, int], int], float], int], ...] = (
    ("nDCG@5", ndcg, 5),
    ("nDCG@10", ndcg, 10),
    ("recall@1", recall, 1),
    ("recall@5", recall, 5),
)


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """What a task consisted of.

    Attributes:
        task: its name.
        queries: queries that count: those with judged pages.
        unjudged: queries without any, which are left out, as ViDoRe's own code leaves them out.
        pages: different pages.
        page_errors: pages that could not be embedded; they are found by no query.
        query_errors: queries that could not be embedded; they count as finding nothing.
        absent: judged pages that are not among the pages; they count as not found.
        vectors: mean number of vectors of a page.
    """

    task: str
    queries: int
    unjudged: int
    pages: int
    page_errors: int
    query_errors: int
    absent: int
    vectors: float


@dataclass(frozen=True, slots=True)
class RetrievalResults:
    """The outcome of ViDoRe.

    Attributes:
        benchmark: its name.
        title: its name in tables.
        model: the name of the model.
        fingerprint: names its weights and adapter.
        pool: the factor by which vectors of a page were pooled; 1 means they were not.
        tasks: what each task consisted of.
        scores: the figures of all tasks, then of each.
    """

    benchmark: str
    title: str
    model: str
    fingerprint: str
    pool: int
    tasks: tuple[TaskCounts, ...]
    scores: tuple[Score, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the results as they stand in ``results.json``."""
        return asdict(self)


def evaluate_retrieval(
    tasks: Sequence[RetrievalTask],
    embedder: Embedder,
    out: Path,
    *,
    model: str,
    pool: int = 1,
    restart: bool = False,
    retry_errors: bool = False,
    settings: Mapping[str, Any] | None = None,
    policy: SourcePolicy = DEFAULT_POLICY,
    progress: Callable[[RunProgress], None] = lambda progress: None,
) -> RetrievalResults:
    """Compare all queries with all pages of each task, and score the rankings.

    Args:
        tasks: from :func:`~llavakit.evaluation.vidore_data.read_tasks`.
        embedder: the retriever.
        out: the folder of results; made if it is not there. What an earlier run has embedded
            in it is kept.
        model: the name that stands in the results.
        pool: the factor by which vectors of a page are pooled (``Embedding.pooled``).
        restart: begin anew, whatever is there.
        retry_errors: try again the pages that had an error in an earlier run.
        settings: all else that the vectors depend on.
        policy: caps on the images' bytes and pixels.
        progress: called at the beginning, and after each page; its counts are pages.

    Raises:
        ParameterError: the folder's pages belong to another run, or another run writes them.
        SourceFetchError: the results cannot be written.
        EngineError, ModelError: the model failed; the same call resumes the run.
    """
    check_integer("pool", pool, least=1)
    plain("settings", settings)
    if len({task.name for task in tasks}) < len(tasks):
        raise ParameterError("Two tasks have one name; give each a folder of its own.")
    make_folder(out)
    with Lines(out / "pages.jsonl", _KEYS, restart=restart) as lines:
        claim(lines, _job(tasks, embedder, model, pool, settings or {}))
        known = _earlier(lines, tasks, retry_errors)
        run = _Run(embedder, lines, known, pool, policy, progress, sum(len(t.ids) for t in tasks))
        found = [(task, *run.task(task)) for task in tasks]
    counts, scores = [], []
    strata: list[list[list[float]]] = []
    for task, pages, query_errors in found:
        counts.append(_counts(task, pages, query_errors))
        values = _values(task, pages)
        strata.append(values)
        scores += _task_scores(task, values)
    results = RetrievalResults(
        "vidore",
        "ViDoRe",
        model,
        embedder.fingerprint,
        pool,
        tuple(counts),
        (*_means(strata), *scores),
    )
    text = json.dumps(results.to_dict(), indent=1, ensure_ascii=False) + "\n"
    write_atomic(out / "results.json", text.encode())
    return results


@dataclass(frozen=True, slots=True)
class _Page:
    """A page's scores against all queries of its task; None where it has an error."""

    id: str
    sha256: str
    vectors: int
    scores: Scores | None
    error: str | None


Known = dict[tuple[str, str, str], _Page]
"""By task, id and digest."""


class _Run:
    """Embeds what is missing, and writes it down."""

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
        self._done = sum(page.error is None for page in known.values())
        self._errors = len(known) - self._done
        self._done = len(known)
        progress(RunProgress(self._done, total, self._errors))

    def task(self, task: RetrievalTask) -> tuple[list[_Page], int]:
        """The pages of a task, and how many of its queries could not be embedded."""
        queries = self._queries(task.queries)
        pages: dict[tuple[str, str], _Page] = {}
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
        except _OF_ONE_INPUT as error:
            return None, error

    def _embed(
        self, task: str, group: Sequence[tuple[PageRow, str]], queries: Sequence[Embedding | None]
    ) -> None:
        outcomes = self._outcomes([row for row, _ in group])
        for (row, digest), (embedding, error) in zip(group, outcomes, strict=True):
            if (task, row.id, digest) in self._known:
                continue
            if embedding is not None:
                pooled = embedding.pooled(self._pool)
                page = _Page(row.id, digest, len(pooled), _maxsims(queries, pooled), None)
            else:
                message = f"Page {row.id} of {task}: {' '.join(str(error).split())}"
                page = _Page(row.id, digest, 0, None, message)
            self._lines.append(_line(task, page))
            self._known[task, row.id, digest] = page
            self._done += 1
            self._errors += page.error is not None
            self._progress(RunProgress(self._done, self._total, self._errors, page.error))

    def _outcomes(
        self, rows: Sequence[PageRow]
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
        except _OF_ONE_INPUT:
            made = [self._alone({"images": [one]}) for one in good]  # type: ignore[misc]
        given = iter(made)
        return [(None, one) if isinstance(one, InputError) else next(given) for one in opened]


def _different(rows: Iterable[PageRow]) -> Iterator[tuple[PageRow, str]]:
    """Rows with the digest of their image, each page once; one id may have several images."""
    seen: set[tuple[str, str]] = set()
    for row in rows:
        digest = hashlib.sha256(row.image or b"").hexdigest()
        if (row.id, digest) not in seen:
            seen.add((row.id, digest))
            yield row, digest


def _groups(pages: Iterator[tuple[PageRow, str]], size: int) -> Iterator[list[tuple[PageRow, str]]]:
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


def _job(
    tasks: Sequence[RetrievalTask],
    embedder: Embedder,
    model: str,
    pool: int,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """All that scores depend on; not the judgements, for figures are computed anew each time."""
    described = {}
    for task in tasks:
        digest = hashlib.sha256(json.dumps([query.text for query in task.queries]).encode())
        digest.update(json.dumps(task.ids).encode())
        described[task.name] = digest.hexdigest()
    return {
        "format": _FORMAT,
        "benchmark": "vidore",
        "model": model,
        "fingerprint": embedder.fingerprint,
        "pool": pool,
        "settings": dict(settings),
        "sha256 of the queries and the pages' ids": described,
    }


def _line(task: str, page: _Page) -> dict[str, Any]:
    """A page's line on disk; its scores as base64 of little-endian fp32, which is exact."""
    scores = None
    if page.scores is not None:
        scores = base64.b64encode(page.scores.astype("<f4").tobytes()).decode()
    line = {"task": task, "page": page.id, "sha256": page.sha256, "vectors": page.vectors}
    return {**line, "scores": scores, "error": page.error}


def _earlier(lines: Lines, tasks: Sequence[RetrievalTask], retry_errors: bool) -> Known:
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
        page = _Page(line["page"], line["sha256"], line.get("vectors", 0), scores, line["error"])
        found[line["task"], page.id, page.sha256] = page
    if retry_errors:
        return {key: page for key, page in found.items() if page.error is None}
    return found


def _values(task: RetrievalTask, pages: Sequence[_Page]) -> list[list[float]]:
    """Each measure of each query with judged pages, [measures][queries]."""
    best: dict[str, Scores] = {}
    for page in pages:
        if page.scores is not None:
            # A page of several images counts by the best, as in ViDoRe's own code.
            before = best.get(page.id)
            best[page.id] = page.scores if before is None else np.fmax(before, page.scores)
    values: list[list[float]] = [[] for _ in MEASURES]
    for number, query in enumerate(task.queries):
        if not query.relevance:
            continue
        scores = {one: float(all_[number]) for one, all_ in best.items()}
        ranked = ranking({one: score for one, score in scores.items() if score == score})
        for measured, (_, measure, depth) in zip(values, MEASURES, strict=True):
            measured.append(measure(ranked, query.relevance, depth))
    return values


def _counts(task: RetrievalTask, pages: Sequence[_Page], query_errors: int) -> TaskCounts:
    judged = [query for query in task.queries if query.relevance]
    there = set(task.ids)
    absent = {one for query in judged for one in query.relevance if one not in there}
    embedded = [page.vectors for page in pages if page.error is None]
    return TaskCounts(
        task.name,
        len(judged),
        len(task.queries) - len(judged),
        len(there),
        len(pages) - len(embedded),
        query_errors,
        len(absent),
        round(sum(embedded) / len(embedded), 1) if embedded else 0.0,
    )


def _means(strata: Sequence[Sequence[Sequence[float]]]) -> list[Score]:
    """Means over tasks, where there are several, as the leaderboard gives them."""
    if len(strata) < 2:
        return []
    scale = 100 / len(strata)
    return [
        sum_of_means(f"{name}, mean of tasks", [values[at] for values in strata], scale, "%")
        for at, (name, _, _) in enumerate(MEASURES)
    ]


def _task_scores(task: RetrievalTask, values: Sequence[Sequence[float]]) -> list[Score]:
    """The figures of a task, and nDCG@5 of each of its languages, where there are several."""
    scores = [
        mean(f"{task.name}: {name}", measured)
        for (name, _, _), measured in zip(MEASURES, values, strict=True)
    ]
    of = [query.language for query in task.queries if query.relevance]
    languages = sorted(set(of))
    if len(languages) > 1:
        for language in languages:
            chosen = [value for value, one in zip(values[0], of, strict=True) if one == language]
            scores.append(mean(f"{task.name}, {language or 'no language'}: nDCG@5", chosen))
    return scores
