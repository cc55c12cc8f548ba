"""Pages a second: ``llavakit read``'s path against one ``transformers.generate`` a page.

Both begin with the same PDF on disk, draw its pages with the same code and end with the same
texts. The loop is what people write first: draw a page, ask about it, take the next one.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench_model import pictures, question
from benchmarks.contenders import Generate, Llavakit
from benchmarks.rates import report, timed
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
        pages: pages of the PDF, each an image of 576 tokens to the model.
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
        rounds.append({"a loop over generate": timed(loop), "llavakit.documents": timed(read)})
    title = f"{pages} pages of a PDF, {max_tokens} tokens each at most"
    return report(title, "pages", rounds, pages, ("answers", pages), _same)


def _same(expected: Texts, given: Texts) -> int:
    return sum(one == other for one, other in zip(expected, given, strict=True))
