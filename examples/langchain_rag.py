"""Questions about a PDF of many pages: found in a database on disk, answered from the images.

One process reads the pages with the model, embeds what it read, and keeps text and references in
LanceDB and the images in a page store. Another process opens both and asks.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from invoices import ask_pages, make_pages, write_invoices
from lance_store import LanceStore, MiniLM

from llavakit.langchain import ChatLLaVA, PageImageLoader, page_question_chain


def index(folder: Path) -> int:
    """Write the PDF, read its pages, and keep them; return how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    pdf = folder / "invoices.pdf"
    write_invoices(pdf)
    loader = PageImageLoader(
        pdf, text="transcribe", model=ChatLLaVA(model="demo"), store=folder / "pictures"
    )
    store = LanceStore(folder / "index", MiniLM())
    store.add_documents(loader.load())
    return len(store)


def ask(folder: Path) -> int:
    """Ask ten questions about what was kept; 0 if all answers and all pages are right."""
    store = LanceStore(folder / "index", MiniLM())
    model = ChatLLaVA(model="demo", temperature=0, max_tokens=32)
    # One page for each question: this small model was not trained on several pages at once.
    chain = page_question_chain(store.as_retriever(search_kwargs={"k": 1}), model)

    asked = ask_pages(make_pages())
    right = 0
    for one, result in zip(asked, chain.batch([one.question for one in asked]), strict=True):
        (cited,) = result["citations"]
        good = result["answer"] == one.answer and cited["page"] == one.page
        right += good
        where = f"{Path(cited['source']).name} p. {cited['page']}"
        print(f"{'ok  ' if good else 'BAD '} {one.question:<44} {result['answer']:<7} {where}")
        if not good:
            print(f"     expected: {one.answer} p. {one.page}")
    print(f"LangChain and LanceDB: {right} of {len(asked)} right, with the page cited.")
    return 0 if right == len(asked) and ask_by_number(store, model) else 1


def ask_by_number(store: LanceStore, model: ChatLLaVA) -> bool:
    """Ask about a number, which sentence embeddings hardly distinguish: full-text search."""
    retriever = store.as_retriever(search_kwargs={"k": 1, "full_text": True})
    chain = page_question_chain(retriever, model)
    page = make_pages()[0]
    result = chain.invoke({"query": f"No. {page.number}", "question": "What is the total?"})
    (cited,) = result["citations"]
    good = result["answer"] == str(page.total) and cited["page"] == page.page
    asked = f"The total of No. {page.number}, by full-text search:"
    print(f"{'ok  ' if good else 'BAD '} {asked:<44} {result['answer']:<7} p. {cited['page']}")
    return good


def main(folder: Path) -> int:
    """Index in this process, ask in another; 0 if all answers are right."""
    began = time.perf_counter()
    pages = index(folder)
    print(
        f"{pages} pages read and indexed in {time.perf_counter() - began:.1f} s, loading included."
    )
    sys.stdout.flush()
    return subprocess.run([sys.executable, __file__, "--db", str(folder), "--ask"]).returncode


def demo() -> int:
    """Run :func:`main` in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return main(Path(folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", type=Path, help="where to keep the index; else it is thrown away")
    parser.add_argument("--ask", action="store_true", help="only ask: the index is there already")
    args = parser.parse_args()
    if args.db is None:
        sys.exit(demo())
    sys.exit(ask(args.db) if args.ask else main(args.db))
