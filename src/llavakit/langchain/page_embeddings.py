"""``PageEmbeddings``: one vector a text or image, for LangChain's stores of single vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.runnables.config import run_in_executor

from llavakit._checks import checked
from llavakit.embeddings import Embedder, check_embedder


class PageEmbeddings(Embeddings):
    """Dense embeddings of texts and images, in one space.

    >>> embeddings = PageEmbeddings(load_embedder("demo"))  # doctest: +SKIP
    >>> embeddings.embed_images(["page.png"])[0][:2]  # doctest: +SKIP

    A vector is the mean of a text's or an image's own ones. It finds less than they do (see
    :class:`~llavakit.langchain.PageImageRetriever`), and fits every vector store.

    Args:
        embedder: what embeds, such as :func:`llavakit.retrieval.embedder.load_embedder` gives.
    """

    def __init__(self, embedder: Embedder) -> None:
        check_embedder(embedder)
        self.embedder = embedder

    @checked
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each text."""
        return self._dense(texts=texts) if texts else []

    @checked
    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a question."""
        return self._dense(texts=[text])[0]

    @checked
    def embed_images(self, images: Sequence[Any]) -> list[list[float]]:
        """Return a vector for each image (whatever :class:`llavakit.Image` takes)."""
        return self._dense(images=images) if images else []

    @checked
    async def aembed_images(self, images: Sequence[Any]) -> list[list[float]]:
        """As :meth:`embed_images`, never blocking the event loop."""
        return await run_in_executor(None, self.embed_images, images)

    def _dense(self, **given: Any) -> list[list[float]]:
        return [one.dense.tolist() for one in self.embedder.embed(**given)]
