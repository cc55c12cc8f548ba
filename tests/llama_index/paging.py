"""Documents, an embedding and a walk through an index for the tests of pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeWithScore
from llama_index.vector_stores.lancedb import LanceDBVectorStore

from tests.documents.test_pages import filled, pdf

WORDS = ("alpha report", "beta letter", "gamma memo")
KNOWN = (
    *("alpha", "beta", "gamma", "delta", "report", "letter", "memo"),
    *("invoice", "contract", "anna", "oscar", "clara"),
)
FILLS = ((1, 0, 0), (0, 1, 0), (0, 0, 1))


def printed(*words: str, more: str = "", shades: bool = False) -> bytes:
    """A PDF with a text layer: a page for each text, each of another colour; "" has no text.

    Colours come again after three pages; ``shades`` never do.
    """
    contents = []
    for number, text in enumerate(words):
        colour = (number / len(words), 1, 0) if shades else FILLS[number % len(FILLS)]
        told = f"\n0 g BT /F 10 Tf 5 100 Td ({text}) Tj ET" if text else ""
        contents.append(filled(*colour) + told + more)
    return pdf(*contents)


def write(path: Path, *words: str, more: str = "") -> Path:
    path.write_bytes(printed(*words, more=more))
    return path


class WordEmbedding(BaseEmbedding):
    """Which of a few words a text holds."""

    def _get_text_embedding(self, text: str) -> list[float]:
        held = set(re.findall("[a-z]+", text.lower()))
        return [0.01 + (word in held) for word in KNOWN]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


class Lance(LanceDBVectorStore):
    """The integration, deleting: it writes values in the quotes that LanceDB has for columns."""

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        self.table.delete(f"{self.doc_id_key} = '{ref_doc_id}'")


def found(index: VectorStoreIndex, query: str, top: int = 1) -> Sequence[NodeWithScore]:
    return index.as_retriever(similarity_top_k=top).retrieve(query)
