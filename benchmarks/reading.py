"""Pages a second: ``llavakit read``'s path against one ``transformers.generate`` a page.

Both begin with the same PDF on disk, draw its pages with the same code and end with the same
texts. The loop is what people write first: draw a page, ask about it, take the next one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench_model import pictures, question
from benchmarks.contenders import Generate, Llavakit
from llavakit.documents import Task, open_files, open_pages, read_pages

Texts = list[tuple[str, int]]
"""The text of each page, and how many tokens it has."""


def measure(
    path: Path, repeats: int, *, pages: int = 32, max_tokens: int = 256
) -> dict[str, dict[str, float]]:
    """Both in turn, on a PDF of so many different pages; prints a table and returns it.

    Args:
        path: the checkpoint of the model.
        repeats: how often; the figures are medians.
        pages: pages of the PDF, each a picture of 576 tokens to the model.
        max_tokens: most tokens of a page's text; a printed page has some hundreds.
    """
    pdf = path.parent / f"{pages}-pages.pdf"
    first, *rest = pictures(pages)
    first.save(pdf, "PDF", save_all=True, append_images=rest, resolution=144.0)
    prompt = question(300)
    peer, ours = Generate(path, [3]), Llavakit(path)

    def loop() -> Texts:
        texts = []
        for page in open_pages(pdf):
            turns = [("user", [page.picture.rgb, prompt])]
            (answer,) = peer.run([turns], max_tokens)
            texts.append((answer.text, answer.tokens))
        return texts

    def read() -> Texts:
        task = Task("transcribe", prompt, max_tokens=max_tokens)
        return [
            ((reading.text or "").strip(), reading.usage.completion_tokens if reading.usage else 0)
            for reading in read_pages(ours.backend, open_files([pdf]), task)
        ]

    rounds = []
    for _ in range(repeats):
        ours.forget()
        rounds.append({"a loop over generate": _timed(loop), "llavakit.documents": _timed(read)})
    return _report(f"{pages} pages of a PDF, {max_tokens} tokens each at most", rounds, pages)


def _timed(run: Callable[[], Texts]) -> tuple[float, Texts]:
    began = time.perf_counter()
    texts = run()
    return time.perf_counter() - began, texts


def _report(
    title: str, rounds: list[dict[str, tuple[float, Texts]]], pages: int
) -> dict[str, dict[str, float]]:
    baseline = next(iter(rounds[0]))
    figures: dict[str, dict[str, float]] = {}
    print(f"{title} (median of {len(rounds)})")
    print(f"  {'':<42}{'pages/s':>10}{'ratio':>8}{'same':>9}")
    for name in rounds[0]:
        rate = statistics.median(pages / one[name][0] for one in rounds)
        ratio = statistics.median(one[baseline][0] / one[name][0] for one in rounds)
        same = min(_same(one[baseline][1], one[name][1]) for one in rounds)
        figures[name] = {
            "pages per second": round(rate, 4),
            "throughput ratio": round(ratio, 4),
            "same answers": same,
            "answers": pages,
        }
        print(f"  {name:<42}{rate:>10.3f}{ratio:>8.2f}{f'{same}/{pages}':>9}")
    print(flush=True)
    return figures


def _same(expected: Texts, given: Texts) -> int:
    return sum(one == other for one, other in zip(expected, given, strict=True))
