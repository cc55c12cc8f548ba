"""Questions about a PDF of many pages, which is found and read by its pixels alone.

No text is read for it: each page is embedded as an image by the model that answers afterwards, and
a query finds its page by late interaction. Pages are asked for by their numbers, which sentence
embeddings hardly tell apart. The same index serves both frameworks.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from invoices import SEED, make_pages, write_invoices
from llama_index.core import QueryBundle

from llavakit.langchain import ChatLLaVA, PageImageRetriever, page_question_chain
from llavakit.llama_index import LLaVA, page_query_engine
from llavakit.llama_index import PageImageRetriever as PageNodeRetriever
from llavakit.retrieval import PageIndex
from llavakit.retrieval.embedder import load_embedder

Found = tuple[str, int]
"""An answer, and the number of the page that it cites."""


QUESTION = "What is the total?"


@dataclass(frozen=True)
class Asked:
    """What is looked for, the right answer to ``QUESTION``, and the one page where it stands."""

    query: str
    answer: str
    page: int


def ask_for_numbers(seed: str = SEED, count: int = 10) -> list[Asked]:
    """Return queries for different pages of a PDF."""
    chosen = random.Random(f"{seed}-numbers").sample(make_pages(seed), count)
    return [
        Asked(f"the page with the number {one.number}", str(one.total), one.page or 0)
        for one in chosen
    ]


def index(folder: Path, seed: str = SEED) -> PageIndex:
    """Write the PDF and index its pages."""
    folder.mkdir(parents=True, exist_ok=True)
    write_invoices(folder / "invoices.pdf", seed)
    made = PageIndex(folder / "index", load_embedder("demo"))
    made.update([folder / "invoices.pdf"])
    if made.failures:
        raise SystemExit(f"Not indexed: {made.failures}")
    return made


def ask_langchain(pages: PageIndex, asked: list[Asked]) -> list[Found]:
    """Ask by a chain; one page for each question, for the small model was taught on one."""
    model = ChatLLaVA(model="demo", temperature=0, max_tokens=32)
    chain = page_question_chain(PageImageRetriever(index=pages, k=1), model)
    answers = chain.batch([{"query": one.query, "question": QUESTION} for one in asked])
    return [(one["answer"], one["citations"][0]["page"]) for one in answers]


def ask_llama_index(pages: PageIndex, asked: list[Asked]) -> list[Found]:
    """Ask by a query engine."""
    model = LLaVA(model="demo", temperature=0, max_tokens=32)
    engine = page_query_engine(PageNodeRetriever(index=pages, similarity_top_k=1), model)
    answers = [
        engine.query(QueryBundle(QUESTION, custom_embedding_strs=[one.query])) for one in asked
    ]
    return [(str(one), one.source_nodes[0].node.metadata["page"]) for one in answers]


def right(asked: list[Asked], found: list[Found]) -> int:
    """Return how many answers are right and cite the right page."""
    return sum((one.answer, one.page) == got for one, got in zip(asked, found, strict=True))


def ask(pages: PageIndex, asked: list[Asked]) -> int:
    """Ask in both frameworks; 0 if everything is right."""
    found = ask_langchain(pages, asked)
    for one, (answer, page) in zip(asked, found, strict=True):
        good = (answer, page) == (one.answer, one.page)
        print(f"{'ok  ' if good else 'BAD '} {one.query:<44} {answer:<7} p. {page}")
        if not good:
            print(f"     expected: {one.answer} p. {one.page}")
    again = ask_llama_index(pages, asked)
    both = right(asked, found), right(asked, again)
    print(f"Found by pixels: LangChain {both[0]} of {len(asked)}, LlamaIndex {both[1]}.")
    return 0 if min(both) == len(asked) else 1


def main(folder: Path) -> int:
    """Index and ask; 0 if everything is right."""
    began = time.perf_counter()
    with index(folder) as pages:
        seconds = time.perf_counter() - began
        print(f"{len(pages)} pages embedded and indexed in {seconds:.1f} s.")
        return ask(pages, ask_for_numbers())


def measure(folder: Path, seeds: int) -> None:
    """Count right answers and pages over PDFs of several seeds."""
    total = pages_found = 0
    for number in range(1, seeds + 1):
        seed = f"invoices-{number}"
        asked = ask_for_numbers(seed)
        with index(folder / seed, seed) as pages:
            found = ask_langchain(pages, asked)
        total += right(asked, found)
        pages_found += sum(one.page == page for one, (_, page) in zip(asked, found, strict=True))
    print(f"{seeds} PDFs: {pages_found} of {10 * seeds} pages found, {total} answers right.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, help="measure over PDFs of so many seeds instead")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if given.seeds:
            measure(Path(temporary), given.seeds)
        else:
            sys.exit(main(Path(temporary)))
