"""``PageEmbedding``: one vector a text or image, for LlamaIndex's stores of single vectors."""

from __future__ import annotations

import asyncio
import io
from typing import Any

from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
from llama_index.core.schema import ImageType

from llavakit.embeddings import Embedder, check_embedder


class PageEmbedding(MultiModalEmbedding):
    """Dense embeddings of texts and images, in one space.

    >>> images = PageEmbedding(embedder=load_embedder("demo"))  # doctest: +SKIP
    >>> MultiModalVectorStoreIndex(nodes, image_embed_model=images)  # doctest: +SKIP

    A vector is the mean of a text's or an image's own ones. It finds less than they do (see
    :class:`~llavakit.llama_index.PageImageRetriever`), and fits every vector store.

    Attributes:
        embedder: what embeds, such as :func:`llavakit.retrieval.embedder.load_embedder` gives; it
            is not written down with the component.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    embedder: Any = Field(exclude=True, repr=False)

    def __init__(self, embedder: Embedder, **options: Any) -> None:
        check_embedder(embedder)
        own: dict[str, Any] = {"model_name": f"llavakit {embedder.fingerprint}", **options}
        super().__init__(**own, embedder=embedder)  # type: ignore[call-arg]  # hidden, as its own

    @classmethod
    def class_name(cls) -> str:
        return "llavakit_page_embedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embeddings([query])[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [one.dense.tolist() for one in self.embedder.embed(texts=texts)]

    def _get_image_embedding(self, img_file_path: ImageType) -> list[float]:
        return self._get_image_embeddings([img_file_path])[0]

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[list[float]]:
        # A stream may have been read already by what gave it.
        images = [one.getvalue() if isinstance(one, io.BytesIO) else one for one in img_file_paths]
        return [one.dense.tolist() for one in self.embedder.embed(images=images)]

    async def _aget_image_embedding(self, img_file_path: ImageType) -> list[float]:
        return await asyncio.to_thread(self._get_image_embedding, img_file_path)

    async def _aget_image_embeddings(self, img_file_paths: list[ImageType]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_image_embeddings, img_file_paths)
