"""Questions about a PDF of many pages, which is found and read by its pixels alone.

No text is read for it: each page is embedded as an image by the model that answers afterwards, and
a query finds its page by late interaction. Pages are asked for by their numbers, which sentence
embeddings hardly tell apart, or by their titles and names. The same index serves both frameworks.

    python examples/page_search.py                         # ten questions by number
    python examples/page_search.py --by name --mode hybrid # by title and name, full text helps
    python examples/page_search.py --seeds 5               # N of 50, by number and by name
    python examples/page_search.py --heatmap map.png       # where it looked on the first page
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from invoices import SEED, ask_pages, make_pages, write_invoices
from llama_index.core import QueryBundle

from llavakit.langchain import ChatLLaVA, PageImageRetriever, page_question_chain
from llavakit.llama_index import LLaVA, page_query_engine
from llavakit.llama_index import PageImageRetriever as PageNodeRetriever
from llavakit.retrieval import PageIndex
from llavakit.retrieval.embedder import load_embedder
from llavakit.retrieval.index import SearchMode

Found = tuple[str, int]
"""An answer, and the number of the page that it cites."""


TOTAL = "What is the total?"
WAYS = ("number", "name")
"""What pages are asked for by: their numbers, or their titles and names."""
DEMO_BY = "number"
"""What `make demo` asks by: the way by which the bundled adapter finds all ten pages."""
MAP = Path(__file__).parents[1] / "build" / "where-it-looked.png"
"""The image that shows where the model looked."""


@dataclass(frozen=True)
class Asked:
    """A question, what its page is looked for by, the right answer, and the one page of it."""

    query: str
    question: str
    answer: str
    page: int


def ask_by_number(seed: str = SEED, count: int = 10) -> list[Asked]:
    """Return questions about different pages of a PDF, looked for by their numbers."""
    chosen = random.Random(f"{seed}-numbers").sample(make_pages(seed), count)
    return [
        Asked(f"the page with the number {one.number}", TOTAL, str(one.total), one.page or 0)
        for one in chosen
    ]


def ask_by_name(seed: str = SEED, count: int = 10) -> list[Asked]:
    """Return the ten questions of the text examples, looked for as they are asked."""
    asked = ask_pages(make_pages(seed), count, seed)
    return [Asked(one.question, one.question, one.answer, one.page) for one in asked]


ASK = {"number": ask_by_number, "name": ask_by_name}


def index(folder: Path, seed: str = SEED) -> PageIndex:
    """Write the PDF and index its pages."""
    folder.mkdir(parents=True, exist_ok=True)
    write_invoices(folder / "invoices.pdf", seed)
    made = PageIndex(folder / "index", load_embedder("demo"))
    made.update([folder / "invoices.pdf"])
    if made.failures:
        raise SystemExit(f"Not indexed: {made.failures}")
    return made


def ask_langchain(pages: PageIndex, asked: list[Asked], mode: SearchMode) -> list[Found]:
    """Ask by a chain; one page for each question, for the small model was taught on one."""
    model = ChatLLaVA(model="demo", temperature=0, max_tokens=32)
    chain = page_question_chain(PageImageRetriever(index=pages, k=1, mode=mode), model)
    answers = chain.batch([{"query": one.query, "question": one.question} for one in asked])
    return [(one["answer"], one["citations"][0]["page"]) for one in answers]


def ask_llama_index(pages: PageIndex, asked: list[Asked], mode: SearchMode) -> list[Found]:
    """Ask by a query engine."""
    model = LLaVA(model="demo", temperature=0, max_tokens=32)
    engine = page_query_engine(PageNodeRetriever(pages, 1, mode), model)
    answers = [
        engine.query(QueryBundle(one.question, custom_embedding_strs=[one.query])) for one in asked
    ]
    return [(str(one), one.source_nodes[0].node.metadata["page"]) for one in answers]


def right(asked: list[Asked], found: list[Found]) -> int:
    """Return how many answers are right and cite the right page."""
    return sum((one.answer, one.page) == got for one, got in zip(asked, found, strict=True))


def on_right_pages(asked: list[Asked], found: list[Found]) -> int:
    """Return how many answers cite the right page, right or not."""
    return sum(one.page == page for one, (_, page) in zip(asked, found, strict=True))


def ask(pages: PageIndex, asked: list[Asked], mode: SearchMode = "pixels") -> int:
    """Ask in both frameworks; 0 if everything is right."""
    found = ask_langchain(pages, asked, mode)
    for one, (answer, page) in zip(asked, found, strict=True):
        good = (answer, page) == (one.answer, one.page)
        print(f"{'ok  ' if good else 'BAD '} {one.query:<44} {answer:<7} p. {page}")
        if not good:
            print(f"     expected: {one.answer} p. {one.page}")
    again = ask_llama_index(pages, asked, mode)
    both = right(asked, found), right(asked, again)
    how = "pixels" if mode == "pixels" else f"{mode} search"
    print(f"Found by {how}: LangChain {both[0]} of {len(asked)}, LlamaIndex {both[1]}.")
    return 0 if min(both) == len(asked) else 1


def draw(pages: PageIndex, query: str, path: Path) -> Path:
    """Write the best page of a query with where the model looked; return where the image lies."""
    (hit,) = pages.search(query, k=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = hit.heatmap()
    drawn.thumbnail((400, 400))
    drawn.save(path, optimize=True)
    here = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    print(f"Where it looked on p. {hit.reference.number} for {query!r}: {here}")
    return path


def main(folder: Path, by: str = DEMO_BY, mode: SearchMode = "pixels", map_path: Path = MAP) -> int:
    """Index and ask, and draw where the model looked; 0 if everything is right."""
    began = time.perf_counter()
    with index(folder) as pages:
        seconds = time.perf_counter() - began
        print(f"{len(pages)} pages embedded and indexed in {seconds:.1f} s.")
        asked = ASK[by]()
        failed = ask(pages, asked, mode)
        draw(pages, asked[0].query, map_path)
        return failed


def measure(folder: Path, seeds: int, ways: Sequence[str], mode: SearchMode) -> None:
    """Print the right pages and answers over PDFs of several seeds, for each way of asking."""
    pages_found, total = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
    for number in range(1, seeds + 1):
        seed = f"invoices-{number}"
        with index(folder / seed, seed) as pages:
            for by in ways:
                asked = ASK[by](seed)
                found = ask_langchain(pages, asked, mode)
                total[by] += right(asked, found)
                pages_found[by] += on_right_pages(asked, found)
    for by in ways:
        print(
            f"By {by}, {mode}, {seeds} PDFs: {pages_found[by]} of {10 * seeds} pages found, "
            f"{total[by]} of {10 * seeds} answered right with the page cited."
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, help="measure over PDFs of so many seeds instead")
    parser.add_argument(
        "--by", choices=WAYS, help="what pages are asked for by (number; with --seeds both)"
    )
    parser.add_argument("--mode", choices=("pixels", "text", "hybrid"), default="pixels")
    parser.add_argument("--heatmap", type=Path, default=MAP, help=f"where the image goes ({MAP})")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if given.seeds:
            ways = WAYS if given.by is None else (given.by,)
            measure(Path(temporary), given.seeds, ways, given.mode)
        else:
            sys.exit(main(Path(temporary), given.by or DEMO_BY, given.mode, given.heatmap))
