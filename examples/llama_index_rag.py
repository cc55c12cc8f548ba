"""Questions about a PDF of many pages: found in a database on disk, answered from the images.

One process reads the pages with the model, embeds what it read, and keeps text and references in
LanceDB and the images in a page store. Another process opens both and asks.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from invoices import ask_pages, make_pages, write_invoices
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.vector_stores.lancedb import LanceDBVectorStore
from sentences import embed

from llavakit.llama_index import LLaVA, PageImageReader, page_query_engine


class SentenceEmbedding(BaseEmbedding):
    """all-MiniLM-L6-v2, on the CPU."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return embed([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return embed(texts)

    def _get_query_embedding(self, query: str) -> list[float]:
        return embed([query])[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def index(folder: Path) -> int:
    """Write the PDF, read its pages, and keep them; return how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    pdf = folder / "invoices.pdf"
    write_invoices(pdf)
    reader = PageImageReader(text="transcribe", llm=LLaVA(model="demo"), store=folder / "pictures")
    nodes = reader.load_data(pdf)
    shutil.rmtree(folder / "index", ignore_errors=True)  # adding is all that is done to it
    kept = LanceDBVectorStore(uri=str(folder / "index"))
    context = StorageContext.from_defaults(vector_store=kept)
    VectorStoreIndex(nodes=nodes, storage_context=context, embed_model=SentenceEmbedding())
    return len(nodes)


def ask(folder: Path) -> int:
    """Ask ten questions about what was kept; 0 if all answers and all pages are right."""
    kept = LanceDBVectorStore(uri=str(folder / "index"))
    found = VectorStoreIndex.from_vector_store(kept, embed_model=SentenceEmbedding())
    llm = LLaVA(model="demo", temperature=0, max_tokens=32)
    # One page for each question: this small model was not trained on several pages at once.
    engine = page_query_engine(found, llm, similarity_top_k=1)

    asked = ask_pages(make_pages())
    right = 0
    for one in asked:
        response = engine.query(one.question)
        (source,) = response.source_nodes
        cited = source.metadata
        good = str(response) == one.answer and cited["page"] == one.page
        right += good
        where = f"{cited['file_name']} p. {cited['page_label']}"
        print(f"{'ok  ' if good else 'BAD '} {one.question:<44} {response!s:<7} {where}")
        if not good:
            print(f"     expected: {one.answer} p. {one.page}")
    print(f"LlamaIndex and LanceDB: {right} of {len(asked)} right, with the page cited.")
    return 0 if right == len(asked) else 1


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
