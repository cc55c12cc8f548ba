"""Searching many pages: ``python -m benchmarks.retrieval_scale --out figures.json``.

Pages are made up: 64 vectors of 128 numbers each, half of them about a few subjects of the page
(out of 4,000, common and rare ones), half about nothing, all with a direction in common and with
noise, as image tokens have. A query has 16 words: 12 about subjects of one page, 4 about nothing.
What is right is the exact MaxSim of all pages, computed from the same numbers.

Measured in processes of their own: making the index, and searching it (milliseconds by the clock
and of the processor, the process's peak memory, how many of the right ten are found). Beside it,
LanceDB's own exact MaxSim of the same column, which takes no index either.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llavakit.embeddings import Embedding
from llavakit.retrieval.lance import LanceVectors
from llavakit.retrieval.vectors import PageRow

VECTORS, DIMENSIONS, WORDS = 64, 128, 16
SUBJECTS, OF_A_PAGE, ABOUT_NOTHING = 4_000, 24, 6
AT_ONCE = 1_000
"""Pages that are made at once, by a seed of their own."""
QUERIES = 24
BEST = 10
THEIRS_UP_TO = 1_000
"""Pages up to which LanceDB's own MaxSim is measured: it takes seconds from there on."""


def unit(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return vectors at the length of 1."""
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def world() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the directions of subjects and of nothing, and how common each subject is."""
    chance = np.random.default_rng(0)
    subjects = unit(chance.standard_normal((SUBJECTS, DIMENSIONS)))
    nothing = unit(chance.standard_normal((ABOUT_NOTHING, DIMENSIONS)))
    share = 1 / np.arange(1, SUBJECTS + 1) ** 0.8
    return subjects, nothing, share / share.sum()


def make_pages(number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return thousand pages: their vectors, and the numbers of their subjects."""
    subjects, nothing, share = world()
    chance = np.random.default_rng(1 + number)
    own = chance.choice(SUBJECTS, (AT_ONCE, OF_A_PAGE), p=share)
    picked = np.take_along_axis(own, chance.integers(0, OF_A_PAGE, (AT_ONCE, VECTORS)), axis=1)
    about = subjects[picked]
    empty = chance.random((AT_ONCE, VECTORS)) < 0.5
    about[empty] = nothing[chance.integers(0, ABOUT_NOTHING, int(empty.sum()))]
    noise = chance.standard_normal(about.shape, dtype=np.float32) / np.sqrt(DIMENSIONS)
    return unit(about + 0.4 * nothing[0] + 0.5 * noise), own


def make_queries(pages: int) -> list[np.ndarray[Any, Any]]:
    """Return queries, each about a page somewhere among them."""
    subjects, nothing, _ = world()
    queries = []
    for number in range(QUERIES):
        chance = np.random.default_rng(10_000_000 + number)
        _, own = make_pages(int(chance.integers(pages // AT_ONCE)))
        wanted = np.repeat(chance.choice(own[chance.integers(AT_ONCE)], 6), 2)
        about = np.concatenate([subjects[wanted], nothing[chance.integers(0, ABOUT_NOTHING, 4)]])
        noise = chance.standard_normal(about.shape) / np.sqrt(DIMENSIONS)
        queries.append(unit(about + 0.4 * nothing[0] + 0.7 * noise))
    return queries


def rows(pages: int) -> Iterator[list[PageRow]]:
    """Yield all pages as rows, 64 at a time, as an index commits them."""
    for number in range(pages // AT_ONCE):
        vectors, _ = make_pages(number)
        made = [
            PageRow((1 + number, place), json.dumps({"page": place}), "", one)
            for place, one in enumerate(vectors)
        ]
        yield from (made[at : at + 64] for at in range(0, AT_ONCE, 64))


def build(folder: Path, pages: int, _: list[np.ndarray[Any, Any]]) -> dict[str, float]:
    """Make the index; its seconds by the clock, and those of the processor."""
    begun, used = time.perf_counter(), time.process_time()
    store = LanceVectors(folder, DIMENSIONS)
    for some in rows(pages) if not store.count() else ():
        store.add(some)
    added = time.perf_counter()
    store.settle()
    return {
        "seconds to add": round(added - begun, 1),
        "seconds to settle": round(time.perf_counter() - added, 1),
        "processor seconds": round(time.process_time() - used, 1),
        "peak MB while made": round(_peak()),
        "bytes a page": round(sum(one.stat().st_size for one in folder.rglob("*")) / pages),
    }


def search(folder: Path, pages: int, queries: list[np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Search the index, and see how many of the right ten are found."""
    store = LanceVectors(folder, DIMENSIONS)
    before = _peak()
    clock, processor, found = [], [], []
    for query in queries:
        begun, used = time.perf_counter(), time.process_time()
        hits = store.search(Embedding(query), BEST)
        clock.append(1000 * (time.perf_counter() - begun))
        processor.append(1000 * (time.process_time() - used))
        found.append({hit.key for hit in hits})
    figures: dict[str, Any] = {
        "query ms, first": round(clock[0], 1),
        "query ms, median": round(statistics.median(clock), 1),
        "query ms, longest": round(max(clock[1:]), 1),
        "query processor ms, median": round(statistics.median(processor), 1),
        "peak MB of searching": round(_peak() - before),
        "peak MB of the process": round(_peak()),
    }
    if pages <= THEIRS_UP_TO:
        figures["query ms, LanceDB's own exact MaxSim"] = round(_theirs(folder, queries[0]), 1)
    right = exact(queries, pages)
    shares = [len(one & two) / BEST for one, two in zip(found, right, strict=True)]
    figures["share of the exact ten"] = round(statistics.mean(shares), 4)
    return figures


def exact(queries: list[np.ndarray[Any, Any]], pages: int) -> list[set[tuple[int, int]]]:
    """Return the best ten pages of each query, by the MaxSim of all as they are stored."""
    ends = np.arange(VECTORS, AT_ONCE * VECTORS + 1, VECTORS)
    words = np.concatenate(queries)
    scores = []
    for number in range(pages // AT_ONCE):
        flat = make_pages(number)[0].reshape(-1, DIMENSIONS).astype(np.float16).astype(np.float32)
        best = np.maximum.reduceat(flat @ words.T, ends - VECTORS, axis=0)
        scores.append(best.reshape(AT_ONCE, len(queries), WORDS).sum(axis=2))
    order = np.argsort(-np.concatenate(scores), axis=0, kind="stable")[:BEST]
    return [{(1 + int(at) // AT_ONCE, int(at) % AT_ONCE) for at in one} for one in order.T]


def _theirs(folder: Path, query: np.ndarray[Any, Any]) -> float:
    import lancedb

    table = lancedb.connect(folder).open_table("pages")
    wanted = table.search(query, vector_column_name="vectors").distance_type("cosine")
    begun = time.perf_counter()
    wanted.select(["key", "_distance"]).limit(BEST).to_arrow()
    return 1000 * (time.perf_counter() - begun)


def _peak() -> float:
    """The most memory that this process has held, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins with the memory of the process before
        lines = status.read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure, and print or write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pages", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    parser.add_argument("--keep", type=Path, help="where indices stay, and are taken from")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "page": f"{VECTORS} vectors of {DIMENSIONS} numbers in fp16",
        "query": f"{WORDS} words",
    }
    for pages in arguments.pages:
        folder = Path(tempfile.mkdtemp(prefix="retrieval-scale-"))
        kept = arguments.keep and arguments.keep / str(pages)
        try:
            spawn = multiprocessing.get_context("spawn")
            made: dict[str, Any] = {}
            queries = make_queries(pages)
            for step in (build, search):
                with spawn.Pool(1) as pool:  # each its own process, and so its own peak
                    made |= pool.apply(step, (kept or folder, pages, queries))
                print(f"{pages} pages: {json.dumps(made)}", flush=True)
            made["load average beside it"] = round(os.getloadavg()[2], 1)
        finally:
            shutil.rmtree(folder)
        figures[f"{pages} pages"] = made
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
