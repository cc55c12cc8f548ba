"""``PageImageRetriever``: pages of an index as nodes of their images."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Self, get_args

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle

from llavakit._checks import check_integer, checked, refused
from llavakit.documents import PageStore
from llavakit.documents.passwords import Password
from llavakit.errors import ParameterError
from llavakit.llama_index.pages import PageOpening, page_node
from llavakit.retrieval import Hit, PageIndex
from llavakit.retrieval.index import SearchMode
from llavakit.sources import SourcePolicy


class PageImageRetriever(BaseRetriever):
    """Finds pages by what they show, for an engine that answers from their images.

    >>> retriever = PageImageRetriever.open("index/", model="demo")  # doctest: +SKIP
    >>> engine = page_query_engine(retriever, LLaVA(model="demo"))  # doctest: +SKIP
    >>> engine.query("What did the pump cost?").source_nodes  # doctest: +SKIP

    The model that embeds the question and the one that answers may be one model: its weights are
    in memory once. Nodes are those of :class:`~llavakit.llama_index.PageImageReader`.

    Args:
        index: the index that is searched.
        similarity_top_k: most pages.
        mode: ``"pixels"``, ``"text"`` or ``"hybrid"`` (see
            :meth:`~llavakit.retrieval.PageIndex.search`).
        policy: what nodes may open when their images are asked for; None takes the index's.
        store: images of pages by their digest.
        callback_manager: receives the events of searches.
    """

    @checked
    def __init__(
        self,
        index: PageIndex,
        similarity_top_k: int = 4,
        mode: SearchMode = "pixels",
        *,
        policy: SourcePolicy | None = None,
        store: PageStore | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        check_integer("similarity_top_k", similarity_top_k, least=1)
        if mode not in get_args(SearchMode):
            raise refused("mode", mode, '"pixels", "text" or "hybrid"')
        self.index = index
        self.similarity_top_k = similarity_top_k
        self.mode: SearchMode = mode
        self._opening = PageOpening(policy or index.policy, store, password=index.password)
        super().__init__(callback_manager=callback_manager)

    @classmethod
    @checked
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: str | os.PathLike[str] = "demo",
        adapter: str | os.PathLike[str] | None = None,
        similarity_top_k: int = 4,
        mode: SearchMode = "pixels",
        policy: SourcePolicy | None = None,
        source_policy: SourcePolicy | None = None,
        password: Password = None,
        **settings: Any,
    ) -> Self:
        """Return a retriever over an index that was made with ``llavakit index``.

        Args:
            folder: of the index.
            model: the model that it was made with.
            adapter: the retrieval adapter that it was made with; None takes the checkpoint's own.
            similarity_top_k, mode: as of the class.
            policy: what the index, its nodes and the model may open; None takes the default policy.
            source_policy: another name for ``policy``, as the models of this package call it.
            password: what opens encrypted documents of the index.
            **settings: further arguments of :func:`llavakit.load`.

        Raises:
            ParameterError: the folder holds no index, or one of another model; or two policies.
            ModelError: the model or the adapter cannot be loaded.
        """
        from llavakit.retrieval.opening import open_index

        if policy is not None and source_policy is not None:
            raise ParameterError(
                "policy and source_policy are two names for one thing; give one of them."
            )
        index = open_index(
            folder,
            model=model,
            adapter=adapter,
            source_policy=policy or source_policy,
            password=password,
            **settings,
        )
        return cls(index, similarity_top_k, mode)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self.index.search(_words(query_bundle), self.similarity_top_k, self.mode)
        return [self._node(hit) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)

    def _node(self, hit: Hit) -> NodeWithScore:
        node = page_node(hit.reference, hit.text, {}, self._opening)
        return NodeWithScore(node=node, score=hit.score)


def _words(query: QueryBundle) -> str:
    """What is searched for: the strings that the query names for it, or the question itself.

    Late interaction looks for each word, so that several strings are one longer query.
    """
    return "\n".join(query.embedding_strs)
