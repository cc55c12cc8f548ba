"""ViDoRe, the benchmark of retrieval from page images (https://arxiv.org/abs/2407.01449).

Every query of a task is compared with every page of it. Pages are embedded one after the other
and only their scores are kept, in ``pages.jsonl``: the memory that is needed does not grow with
the vectors, and a run that is killed goes on with the next page.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llavakit._checks import check_integer, checked, plain
from llavakit.embeddings import Embedder, check_embedder
from llavakit.errors import ParameterError
from llavakit.evaluation.ranking import ndcg, ranking, recall
from llavakit.evaluation.run import RunProgress, make_folder
from llavakit.evaluation.scores import Score, mean, sum_of_means
from llavakit.evaluation.vidore_data import RetrievalTask
from llavakit.evaluation.vidore_pages import KEYS, PageRun, ScoredPage, Scores, earlier
from llavakit.runs.atomic import write_atomic
from llavakit.runs.claim import claim
from llavakit.runs.lines import Lines
from llavakit.sources import DEFAULT_POLICY, SourcePolicy

_FORMAT = 1

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


@checked
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
    check_embedder(embedder)
    check_integer("pool", pool, least=1)
    plain("settings", settings)
    if len({task.name for task in tasks}) < len(tasks):
        raise ParameterError("Two tasks have one name; give each a folder of its own.")
    make_folder(out)
    with Lines(out / "pages.jsonl", KEYS, restart=restart) as lines:
        claim(lines, _job(tasks, embedder, model, pool, settings or {}))
        known = earlier(lines, tasks, retry_errors)
        total = sum(len(task.ids) for task in tasks)
        run = PageRun(embedder, lines, known, pool, policy, progress, total)
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


def _values(task: RetrievalTask, pages: Sequence[ScoredPage]) -> list[list[float]]:
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


def _counts(task: RetrievalTask, pages: Sequence[ScoredPage], query_errors: int) -> TaskCounts:
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
