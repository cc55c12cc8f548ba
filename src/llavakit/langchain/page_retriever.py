"""``PageImageRetriever``: pages of an index as LangChain's ``Document`` objects."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables.config import run_in_executor
from pydantic import ConfigDict, Field

from llavakit._checks import checked
from llavakit.documents.passwords import Password
from llavakit.langchain.page_documents import page_document
from llavakit.retrieval import Hit, PageIndex
from llavakit.retrieval.index import SearchMode
from llavakit.sources import SourcePolicy

SCORE = "score"
"""The key of a document's metadata that says how well it was found, within one search."""


class PageImageRetriever(BaseRetriever):
    """Finds pages by what they show, for a chain that answers from their images.

    >>> retriever = PageImageRetriever.open("index/", model="demo", k=3)  # doctest: +SKIP
    >>> chain = page_question_chain(retriever, ChatLLaVA(model="demo"))  # doctest: +SKIP
    >>> chain.invoke("What did the pump cost?")["citations"]  # doctest: +SKIP

    The model that embeds the question and the one that answers may be one model: its weights are
    in memory once. Documents are those of :class:`~llavakit.langchain.PageImageLoader`: the page's
    own text, and metadata by which its image is found again. ``k`` and ``mode`` may be given to
    ``invoke`` as well.

    Attributes:
        index: the index that is searched.
        k: most pages.
        mode: ``"pixels"``, ``"text"`` or ``"hybrid"`` (see
            :meth:`~llavakit.retrieval.PageIndex.search`).
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    index: PageIndex = Field(exclude=True, repr=False)
    k: int = Field(4, ge=1)
    mode: SearchMode = "pixels"

    @classmethod
    @checked
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: str | os.PathLike[str] = "demo",
        adapter: str | os.PathLike[str] | None = None,
        k: int = 4,
        mode: SearchMode = "pixels",
        source_policy: SourcePolicy | None = None,
        password: Password = None,
        **settings: Any,
    ) -> Self:
        """Return a retriever over an index that was made with ``llavakit index``.

        Args:
            folder: of the index.
            model: the model that it was made with.
            adapter: the retrieval adapter that it was made with; None takes the checkpoint's own.
            k: most pages.
            mode: how they are found.
            source_policy: what the index and the model may open; None takes the default policy.
            password: what opens encrypted documents of the index.
            **settings: further arguments of :func:`llavakit.load`.

        Raises:
            ParameterError: the folder holds no index, or one of another model.
            ModelError: the model or the adapter cannot be loaded.
        """
        from llavakit.retrieval.opening import open_index

        index = open_index(
            folder,
            model=model,
            adapter=adapter,
            source_policy=source_policy,
            password=password,
            **settings,
        )
        return cls(index=index, k=k, mode=mode)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        mode: SearchMode | None = None,
    ) -> list[Document]:
        return self._found(query, k, mode)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        mode: SearchMode | None = None,
    ) -> list[Document]:
        return await run_in_executor(None, partial(self._found, query, k, mode))

    def _found(self, query: str, k: int | None, mode: SearchMode | None) -> list[Document]:
        hits = self.index.search(query, self.k if k is None else k, mode or self.mode)
        return list(map(_document, hits))


def _document(hit: Hit) -> Document:
    document = page_document(hit.reference, hit.text)
    document.metadata[SCORE] = hit.score
    return document
