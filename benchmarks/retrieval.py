"""``python -m benchmarks.retrieval``: which page answers a question, by pixels, text or both.

Drawn pages that no model was trained on, and questions with one right page each
(``benchmarks/retrieval_world.py``). Compared are:

- **pixels**: a retriever's vectors of the page images, late interaction; also pooled.
- **MiniLM**: sentence embeddings of the pages' text, cosine.
- **full text**: BM25 over the pages' text, by LanceDB.
- **hybrid**: two of them made one by reciprocal rank fusion (Cormack et al. 2009, k = 60).

The text is the printed one, as a text layer would have it; ``--transcribe`` adds rows of what the
model reads on the images, which is all there is of a scan. Measures are those of ``llavakit eval
vidore``. Figures go to ``OUT.json``, the tables to ``OUT.md``, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.retrieval_table import tables
from benchmarks.retrieval_world import KINDS, SEED, Asked, make_pages, make_questions
from examples.demo_model.world.pages import Page, draw_page
from llavakit.embeddings import Embedder, Embedding
from llavakit.evaluation.ranking import ndcg, recall
from llavakit.evaluation.scores import Score, mean
from llavakit.retrieval.fusion import fuse_ranks

FACTORS = (1, 2, 3, 5)
DEPTH = 100
"""Ranks of each list that are looked at, and made one."""

Ranking = list[int]
"""Places of pages, the best first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a way of finding pages gave.

    Attributes:
        rankings: of each question.
        pages_per_second: how fast pages were indexed; None where nothing was.
        bytes_per_page: what the index keeps of a page; vectors in fp16.
        query_ms: median of what a question takes, embedding included.
        vectors: vectors of a page, where there are several.
    """

    rankings: list[Ranking]
    pages_per_second: float | None = None
    bytes_per_page: float | None = None
    query_ms: float | None = None
    vectors: float | None = None


def by_pixels(
    embedder: Embedder, images: Sequence[Path], asked: Sequence[Asked]
) -> dict[int, Outcome]:
    """Rank by late interaction, with the vectors of a page pooled by each factor."""
    embedder.embed(images=images[:1])  # loads the model
    begun = time.perf_counter()
    pages: list[Embedding] = []
    for start in range(0, len(images), 64):
        pages += embedder.embed(images=images[start : start + 64])
        _say(f"{len(pages)} pages embedded")
    speed = len(images) / (time.perf_counter() - begun)
    queries, embedding_ms = [], []
    for one in asked:
        begun = time.perf_counter()
        queries += embedder.embed(texts=[one.text])
        embedding_ms.append(1000 * (time.perf_counter() - begun))
    outcomes = {}
    for factor in FACTORS:
        pooled = [page.pooled(factor) for page in pages]
        rankings, scoring_ms = _ranked(pooled, queries)
        vectors = statistics.mean(map(len, pooled))
        outcomes[factor] = Outcome(
            rankings,
            speed,
            2 * vectors * embedder.dimensions,
            statistics.median(embedding_ms) + scoring_ms,
            vectors,
        )
    return outcomes


def _ranked(
    pages: Sequence[Embedding], queries: Sequence[Embedding]
) -> tuple[list[Ranking], float]:
    """Rankings by MaxSim with every page, and the median milliseconds of one."""
    stacked = np.concatenate([page.vectors for page in pages])
    starts = np.cumsum([0, *(len(page) for page in pages[:-1])])
    rankings, took = [], []
    for query in queries:
        begun = time.perf_counter()
        best = np.maximum.reduceat(stacked @ query.vectors.T, starts, axis=0).sum(axis=1)
        rankings.append(np.argsort(-best, kind="stable")[:DEPTH].tolist())
        took.append(1000 * (time.perf_counter() - begun))
    return rankings, statistics.median(took)


def by_sentences(texts: Sequence[str], asked: Sequence[Asked]) -> Outcome:
    """Rank by the cosine of MiniLM's sentence embeddings."""
    from examples.sentences import embed

    embed(["once"])  # loads the model
    begun = time.perf_counter()
    vectors = np.array(embed(list(texts)), dtype=np.float32)
    speed = len(texts) / (time.perf_counter() - begun)

    def rank(text: str) -> Ranking:
        scores = vectors @ np.array(embed([text])[0], dtype=np.float32)
        return list(np.argsort(-scores, kind="stable")[:DEPTH].tolist())

    rankings, query_ms = _timed(rank, asked)
    return Outcome(rankings, speed, 2.0 * vectors.shape[1] + _size(texts), query_ms)


def by_full_text(texts: Sequence[str], asked: Sequence[Asked], folder: Path) -> Outcome:
    """Rank by BM25, with LanceDB's index of full text."""
    import lancedb
    from lancedb.index import FTS

    begun = time.perf_counter()
    rows = [{"page": number, "text": text} for number, text in enumerate(texts)]
    table = lancedb.connect(str(folder)).create_table("pages", rows)
    table.create_index("text", config=FTS())
    speed = len(texts) / (time.perf_counter() - begun)

    def rank(text: str) -> Ranking:
        found = table.search(text, query_type="fts").limit(DEPTH).to_list()
        return [int(row["page"]) for row in found]

    rank(asked[0].text)
    rankings, query_ms = _timed(rank, asked)
    size = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
    return Outcome(rankings, speed, size / len(texts), query_ms)


def fused(*outcomes: Outcome) -> Outcome:
    """Make rankings one: a page has the sum of 1 / (k + rank) over those that have it."""
    lists = zip(*(one.rankings for one in outcomes), strict=True)
    rankings = [[page for page, _ in fuse_ranks(some)] for some in lists]
    took = [one.query_ms for one in outcomes if one.query_ms is not None]
    sizes = [one.bytes_per_page for one in outcomes if one.bytes_per_page is not None]
    return Outcome(rankings, bytes_per_page=sum(sizes), query_ms=sum(took))


def transcribed(model: str, images: Path, device: str) -> tuple[list[str], float]:
    """Return what the model reads on each page, and pages a second."""
    import llavakit
    from llavakit.documents import Task, open_files, read_pages

    backend = llavakit.load(model, device=device)
    backend.ask(next(iter(sorted(images.iterdir()))), "What is this?")  # loads it
    begun = time.perf_counter()
    texts = []
    for reading in read_pages(backend, open_files([images]), Task("transcribe")):
        texts.append(reading.text or "")
        _say(f"{len(texts)} pages transcribed")
    return texts, len(texts) / (time.perf_counter() - begun)


def figures_of(outcome: Outcome, asked: Sequence[Asked]) -> dict[str, Any]:
    """Return nDCG@5 and recall@1, with 95% intervals and by kind of question, and the costs."""
    gains = [_measured(ndcg, 5, *pair) for pair in zip(outcome.rankings, asked, strict=True)]
    firsts = [_measured(recall, 1, *pair) for pair in zip(outcome.rankings, asked, strict=True)]
    by_kind = {
        kind: statistics.mean(of)
        for kind in KINDS
        if (of := [gain for gain, one in zip(gains, asked, strict=True) if one.kind == kind])
    }
    return {
        "nDCG@5": _with_interval(mean("nDCG@5", gains)),
        "recall@1": _with_interval(mean("recall@1", firsts)),
        "nDCG@5 by kind": {kind: round(value, 4) for kind, value in by_kind.items()},
        "pages per second": _rounded(outcome.pages_per_second, 1),
        "bytes per page": _rounded(outcome.bytes_per_page, 0),
        "query ms": _rounded(outcome.query_ms, 2),
        "vectors per page": _rounded(outcome.vectors, 1),
    }


def _measured(measure: Callable[..., float], depth: int, ranking: Ranking, one: Asked) -> float:
    return measure([str(page) for page in ranking], {str(one.page): 1}, depth)


def _with_interval(score: Score) -> list[float]:
    """Value, low and high, as shares."""
    known = (score.value, score.low, score.high)
    return [round(number / 100, 4) for number in known if number is not None]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _timed(rank: Callable[[str], Ranking], asked: Sequence[Asked]) -> tuple[list[Ranking], float]:
    rankings, took = [], []
    for one in asked:
        begun = time.perf_counter()
        rankings.append(rank(one.text))
        took.append(1000 * (time.perf_counter() - begun))
    return rankings, statistics.median(took)


def _say(progress: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{progress} ", end="", file=sys.stderr, flush=True)


def _size(texts: Sequence[str]) -> float:
    return statistics.mean(len(text.encode()) for text in texts)


def draw(pages: Sequence[Page], folder: Path) -> list[Path]:
    """Draw all pages into a folder, as PNG files in their order."""
    folder.mkdir()
    paths = [folder / f"{number:06}.png" for number in range(len(pages))]
    for page, path in zip(pages, paths, strict=True):
        draw_page(page).save(path)
    return paths


def measure(
    pages: Sequence[Page],
    asked: Sequence[Asked],
    folder: Path,
    embedder: Embedder | None,
    texts: dict[str, tuple[list[str], float | None]],
) -> dict[str, Any]:
    """Find the pages in every way.

    Args:
        pages: all pages.
        asked: the questions.
        folder: for images and indexes.
        embedder: for pixels; None leaves them out.
        texts: by the name of their source: the text of each page, and how many pages were read
            a second.
    """
    outcomes: dict[str, Outcome] = {}
    pooled: dict[int, Outcome] = {}
    if embedder is not None:
        pooled = by_pixels(embedder, sorted((folder / "images").iterdir()), asked)
        outcomes["pixels"] = pooled[1]
    for source, (of, read) in texts.items():
        sentences = _with_reading(by_sentences(of, asked), read)
        words = _with_reading(by_full_text(of, asked, folder / f"full text of {source}"), read)
        outcomes[f"MiniLM, {source}"] = sentences
        outcomes[f"full text, {source}"] = words
        outcomes[f"hybrid of MiniLM and full text, {source}"] = fused(sentences, words)
        if embedder is not None:
            both = fused(outcomes["pixels"], words)
            outcomes[f"hybrid of pixels and full text, {source}"] = both
    return {
        "ways": {name: figures_of(one, asked) for name, one in outcomes.items()},
        "pooling": {str(factor): figures_of(one, asked) for factor, one in pooled.items()},
    }


def _with_reading(outcome: Outcome, read: float | None) -> Outcome:
    """Count the time of reading the pages in, where the text had to be read first."""
    if read is None or outcome.pages_per_second is None:
        return outcome
    return replace(outcome, pages_per_second=1 / (1 / read + 1 / outcome.pages_per_second))


def main() -> None:
    """Measure, print the tables, and write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--model", default="demo", help="a LLaVA or a published retriever")
    parser.add_argument("--adapter", help="a retrieval adapter; by default the model's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--transcribe", action="store_true", help="text that the model reads, too")
    parser.add_argument("--reader", default="demo", help="the model that transcribes")
    parser.add_argument("--without-pixels", action="store_true", help="text and full text alone")
    parser.add_argument("--seed", default=SEED)
    parser.add_argument("--out", type=Path, help="for OUT.json and OUT.md")
    options = parser.parse_args()
    pages = make_pages(options.pages, options.seed)
    asked = make_questions(pages, options.questions, options.seed)
    embedder = None
    if not options.without_pixels:
        from llavakit.retrieval.embedder import load_embedder

        embedder = load_embedder(options.model, adapter=options.adapter, device=options.device)
    figures: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "pages": len(pages),
        "questions": len(asked),
        "seed": options.seed,
        "pixels by": None if embedder is None else options.model,
    }
    with tempfile.TemporaryDirectory(prefix="retrieval-") as name:
        folder = Path(name)
        draw(pages, folder / "images")
        texts: dict[str, tuple[list[str], float | None]] = {
            "printed text": ([page.text() for page in pages], None)
        }
        if options.transcribe:
            read, speed = transcribed(options.reader, folder / "images", options.device)
            texts["transcribed"] = (read, speed)
            right = sum(one == page.text() for one, page in zip(read, pages, strict=True))
            figures["pages transcribed without a fault"] = right
        figures |= measure(pages, asked, folder, embedder, texts)
    figures["load average beside it"] = round(os.getloadavg()[1], 1)
    written = tables(figures)
    print(written)
    if options.out is not None:
        options.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(written)


if __name__ == "__main__":
    main()
