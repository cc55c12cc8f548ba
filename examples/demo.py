"""What `make demo` runs: real files, real questions, the bundled model, through both frameworks.

Images (PNG, a JPEG that a camera turned, WebP) and pages of a PDF go into LangChain's
``ChatLLaVA`` and into LlamaIndex's ``LLaVA`` like into any other model. Both share one set of
weights. Then a PDF of many pages is read and kept in a database on disk, and asked from another
process; last, its pages are found by their pixels alone, and an image shows where the model looked.
Every answer is compared with the right one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage
from llama_index.core.llms import ChatMessage, TextBlock

import llavakit
from llavakit.documents import open_pages
from llavakit.langchain import ChatLLaVA
from llavakit.llama_index import LLaVA, to_image_block

DATA = Path(__file__).parent / "data"


def pictures(entry: dict[str, Any]) -> list[Any]:
    """Return the images of an entry of ``questions.json``: paths, and pages of a PDF."""
    found: list[Any] = []
    for name in entry.get("files") or [entry["file"]]:
        if name.endswith(".pdf"):
            (page,) = open_pages(DATA / name, pages=[entry.get("page", 1)])
            found.append(page.picture.rgb)
        else:
            found.append(DATA / name)
    return found


def ask_langchain(entries: list[dict[str, Any]]) -> list[str]:
    """Ask all questions as one batch of LangChain."""
    questions = [
        HumanMessage([*({"type": "image", "image": p} for p in pictures(e)), e["question"]])
        for e in entries
    ]
    model = ChatLLaVA(model="demo", temperature=0, max_tokens=64)
    return [answer.text for answer in model.batch([[question] for question in questions])]


async def ask_llama_index(entries: list[dict[str, Any]]) -> list[str]:
    """Ask all questions at once through LlamaIndex."""
    llm = LLaVA(model="demo", temperature=0, max_tokens=64)
    questions = [
        ChatMessage(blocks=[*map(to_image_block, pictures(e)), TextBlock(text=e["question"])])
        for e in entries
    ]
    answers = await asyncio.gather(*(llm.achat([question]) for question in questions))
    return [answer.message.content or "" for answer in answers]


def named(entry: dict[str, Any]) -> str:
    """Return the names of an entry's files in a few characters."""
    names = " + ".join(entry.get("files") or [entry["file"]])
    return f"{names} p.{entry['page']}" if "page" in entry else names


def right(entries: list[dict[str, Any]], answers: list[str]) -> int:
    """Return how many answers are the expected ones."""
    return sum(e["answer"] == answer for e, answer in zip(entries, answers, strict=True))


def ask_pictures() -> int:
    """Ask everything at once, in both frameworks; 0 if all answers are right."""
    entries = json.loads((DATA / "questions.json").read_text())
    began = time.perf_counter()
    backend = llavakit.load("demo")  # what both share; held here for its figures
    answers = ask_langchain(entries)
    seconds = time.perf_counter() - began
    for entry, answer in zip(entries, answers, strict=True):
        good = answer == entry["answer"]
        shown = answer.replace("\n", " / ")
        print(f"{'ok  ' if good else 'BAD '} {named(entry):<26} {entry['question']:<44} {shown}")
        if not good:
            print(f"{'':31} expected: {entry['answer']!r}")
    stats = backend.stats()
    found = right(entries, answers)
    print(
        f"\nLangChain: {found} of {len(entries)} right in {seconds:.1f} s, loading included; "
        f"{stats['images_encoded']} images encoded, {stats['generated_tokens']} tokens sampled."
    )
    began = time.perf_counter()
    again = asyncio.run(ask_llama_index(entries))
    seconds = time.perf_counter() - began
    encoded = backend.stats()["images_encoded"] - stats["images_encoded"]
    print(
        f"LlamaIndex: {right(entries, again)} of {len(entries)} right in {seconds:.1f} s, on the "
        f"same weights; {encoded} images encoded anew."
    )
    return 0 if answers == again and found == len(entries) else 1


def ask_documents(folder: Path) -> int:
    """Index a PDF through both frameworks here, and ask both indexes from another process."""
    # For a new table, the database and its adapter warn that it does not exist.
    os.environ.setdefault("LANCEDB_LOG", "error")
    logging.getLogger("llama_index.vector_stores.lancedb.base").setLevel(logging.ERROR)
    import langchain_rag
    import llama_index_rag

    examples = (langchain_rag, llama_index_rag)
    began = time.perf_counter()
    pages = [one.index(folder / one.__name__) for one in examples]
    seconds = time.perf_counter() - began
    print(f"A PDF of {pages[0]} pages read and indexed in LanceDB, twice, in {seconds:.1f} s.\n")
    sys.stdout.flush()
    return subprocess.run([sys.executable, __file__, "--ask", str(folder)]).returncode


def ask_indexes(folder: Path) -> int:
    """Ask both indexes that another process made, on one set of weights; 0 if all is right."""
    import langchain_rag
    import llama_index_rag

    backend = llavakit.load("demo")  # held, so that both share it
    failed = []
    for one in (langchain_rag, llama_index_rag):
        failed.append(one.ask(folder / one.__name__))
        print(flush=True)
    backend.close()
    return max(failed)


def ask_by_pixels(folder: Path, by: str | None) -> int:
    """Find and read the pages of a PDF by their images alone; 0 if all is right."""
    import page_search

    return page_search.main(folder, by or page_search.DEMO_BY)


def main(by: str | None = None) -> int:
    """Ask about images, then about documents, by text and by pixels; 0 if all is right.

    Args:
        by: what pages are looked for by with their pixels, ``"number"`` or ``"name"``; None takes
            what the bundled adapter is known to find.
    """
    backend = llavakit.load("demo")  # held, so that the weights are loaded once
    with tempfile.TemporaryDirectory() as folder:
        failed = (
            ask_pictures(),
            ask_documents(Path(folder) / "text"),
            ask_by_pixels(Path(folder) / "pixels", by),
        )
    backend.close()
    return max(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The demo of llavakit.")
    parser.add_argument("--ask", type=Path, help="only ask the indexes in a folder")
    parser.add_argument("--by", choices=("number", "name"), help="what pages are looked for by")
    given = parser.parse_args()
    sys.exit(main(given.by) if given.ask is None else ask_indexes(given.ask))
