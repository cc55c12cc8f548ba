"""LanceDB as a LangChain vector store, in as many lines as it takes.

``langchain-lancedb`` 0.1.0 writes the database's own path over the ``source`` of every document
that it finds, gives no ids back, and adds a document that is there already a second time. A
citation needs the source, and indexing twice should change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lancedb
import pyarrow
from lancedb.index import FTS
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from sentences import embed


class MiniLM(Embeddings):
    """The sentence embeddings of :mod:`sentences`."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each text."""
        return embed(texts)

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        return embed([text])[0]


class LanceStore(VectorStore):
    """Documents in a table of LanceDB, in a folder that a later process can open."""

    def __init__(self, folder: str | Path, embedding: Embeddings, table: str = "pages") -> None:
        self._embedding = embedding
        size = len(embedding.embed_query("size"))
        text = pyarrow.string()
        fields = {"id": text, "text": text, "metadata": text}
        schema = pyarrow.schema(
            [*fields.items(), ("vector", pyarrow.list_(pyarrow.float32(), size))]
        )
        self._table = lancedb.connect(str(folder)).create_table(table, schema=schema, exist_ok=True)

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings that turn texts into vectors."""
        return self._embedding

    def __len__(self) -> int:
        return int(self._table.count_rows())

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Add documents; one whose id is there already is replaced."""
        ids = list(kwargs.get("ids") or [document.id for document in documents])
        if not all(ids):
            raise ValueError("Documents need ids, so that none is added twice.")
        vectors = self._embedding.embed_documents([one.page_content for one in documents])
        rows = {
            key: {
                "id": key,
                "text": document.page_content,
                "metadata": json.dumps(document.metadata),
                "vector": vector,
            }
            for key, document, vector in zip(ids, documents, vectors, strict=True)
        }
        merge = self._table.merge_insert("id").when_matched_update_all()
        merge.when_not_matched_insert_all().execute(list(rows.values()))
        self._table.create_index("text", config=FTS(), replace=True)
        return ids

    def similarity_search(
        self, query: str, k: int = 4, *, full_text: bool = False, **kwargs: Any
    ) -> list[Document]:
        """Return the documents nearest to a query in meaning, or in words (``full_text``: BM25)."""
        if full_text:
            search = self._table.search(query, query_type="fts")
        else:
            vector = self._embedding.embed_query(query)
            search = self._table.search(vector).distance_type("cosine")
        rows = search.limit(k).to_list()
        return [
            Document(row["text"], id=row["id"], metadata=json.loads(row["metadata"]))
            for row in rows
        ]

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        folder: str | Path = "lance",
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> LanceStore:
        """Return a store with these texts in it."""
        store = cls(folder, embedding)
        store.add_texts(texts, metadatas, ids=ids)
        return store
