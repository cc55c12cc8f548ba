"""Answers from the pictures of pages: a response synthesizer, and a query engine with it.

The framework's synthesizers plan with estimates, and answer in rounds, page by page, where an
estimate says that the pages are too many. This one counts exactly, and asks once about as many
pages as the model can hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms.llm import (
    astream_chat_response_to_tokens,
    stream_chat_response_to_tokens,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import RichPromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.types import RESPONSE_TEXT_TYPE

from llavakit.documents import Page, PageStore, fit_pages
from llavakit.documents.context import LABEL
from llavakit.errors import ParameterError
from llavakit.images import open_picture
from llavakit.llama_index.carriers import source_of
from llavakit.llama_index.llm import LLaVA
from llavakit.llama_index.nodes import PictureResolver, resolve_node
from llavakit.llama_index.pages import OnError, node_label, to_store
from llavakit.sources import SourcePolicy
from llavakit.values import Message, Text

_logger = logging.getLogger(__name__)

PAGES_TEMPLATE = RichPromptTemplate(
    '{% chat role="user" %}{% for message in context_messages %}{% for block in message.blocks %}'
    "{% if block.block_type == 'image' %}{{ block.inline_url() | image }}{% endif %}"
    "{% endfor %}{% endfor %}{{ query_str }}{% endchat %}"
)
"""For the framework's own engines (``chat_content_qa_template=``): the pictures of what was
found, then the question, and nothing else."""


class PageSynthesizer(BaseSynthesizer):
    """Answers a question from the pictures of nodes, in one request.

    As many nodes are shown as the context holds beside the answer, the first (best) ones first.
    Those that are left out are logged as a warning, and are not among the response's
    ``source_nodes``; its ``metadata`` have them with ``left_out`` set. Of a node with a picture
    only the picture is shown, and where there are several, a label above each. Nodes without
    one are shown as text.

    Args:
        llm: the model; what it may open holds for pictures that are not opened yet.
        streaming: give the answer piece by piece.
        output_cls: a pydantic class to answer with, instead of words.
        answer_tokens: tokens that are kept free for the answer; None takes the model's
            ``max_tokens``.
        label: what is written above each picture (see :func:`~llavakit.documents.ask_about`).
        question_template: what the model is asked, with ``{question}`` in it.
    """

    def __init__(
        self,
        llm: LLaVA,
        *,
        streaming: bool = False,
        output_cls: type[Any] | None = None,
        answer_tokens: int | None = None,
        label: str | None = LABEL,
        question_template: str = "{question}",
    ) -> None:
        if "{question}" not in question_template:
            raise ParameterError("question_template has no {question} in it.")
        if streaming and output_cls is not None:
            raise ParameterError("An object cannot be streamed; give streaming or output_cls.")
        # Not `multimodal`: the framework would build content blocks of its own, for nobody.
        super().__init__(llm=llm, streaming=streaming, output_cls=output_cls)
        self._model = llm
        self._answer_tokens = answer_tokens
        self._label = label
        self._question_template = question_template

    def synthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """The answer.

        Raises:
            ContextLengthError: not even the first page fits.
            InputError: a picture cannot be opened.
        """
        shown = self._fitted(query, nodes)
        response = super().synthesize(
            query, shown.nodes, additional_source_nodes, message=shown.message, **response_kwargs
        )
        return shown.told_in(response)

    async def asynthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """As :meth:`synthesize`, never blocking the event loop."""
        shown = await asyncio.to_thread(self._fitted, query, nodes)
        response = await super().asynthesize(
            query, shown.nodes, additional_source_nodes, message=shown.message, **response_kwargs
        )
        return shown.told_in(response)

    def get_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """The answer from what fits; from the texts, if it is called past :meth:`synthesize`."""
        messages, options = _request(query_str, text_chunks, response_kwargs)
        if self._output_cls is not None:
            answer = self._model.as_structured_llm(self._output_cls).chat(messages, **options)
            return answer.raw  # type: ignore[no-any-return]
        if self._streaming:
            return stream_chat_response_to_tokens(self._model.stream_chat(messages, **options))
        return self._model.chat(messages, **options).message.content or ""

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """As :meth:`get_response`, never blocking the event loop."""
        messages, options = _request(query_str, text_chunks, response_kwargs)
        if self._output_cls is not None:
            structured = self._model.as_structured_llm(self._output_cls)
            return (await structured.achat(messages, **options)).raw  # type: ignore[no-any-return]
        if self._streaming:
            stream = await self._model.astream_chat(messages, **options)
            return await astream_chat_response_to_tokens(stream)
        return (await self._model.achat(messages, **options)).message.content or ""

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        if prompts_dict:
            raise ParameterError(
                "Pages are asked about without a template; write what else the model shall know "
                "into its system_prompt."
            )

    def _fitted(self, query: str | QueryBundle, nodes: Sequence[NodeWithScore]) -> _Shown:
        if not nodes:
            return _Shown()
        question = query if isinstance(query, str) else query.query_str
        seen = [_Seen.of(one, self._model.policy) for one in nodes]
        system = self._model.system_prompt
        fitted = fit_pages(
            self._model.backend_for(),
            [one.content for one in seen],
            self._question_template.replace("{question}", question),
            answer_tokens=self._answer_tokens or self._model.metadata.num_output,
            label=self._label,
            before=[Message("system", system)] if system else [],
        )
        kept, left_out = seen[: len(fitted.pages)], seen[len(fitted.pages) :]
        if left_out:
            _logger.warning(
                "%d of %d nodes do not fit into the model's context and were left out: %s",
                len(left_out),
                len(seen),
                ", ".join(node_label(one.node.node) for one in left_out),
            )
        pictures = iter([one.block for one in kept if one.block is not None])
        blocks = [
            TextBlock(text=part.text) if isinstance(part, Text) else next(pictures)
            for part in fitted.message.content
        ]
        message = ChatMessage(role="user", blocks=blocks)
        return _Shown([one.node for one in kept], [one.node for one in left_out], message)


def page_query_engine(
    source: BaseIndex[Any] | BaseRetriever,
    llm: LLaVA,
    *,
    store: PageStore | str | Path | None = None,
    policy: SourcePolicy | None = None,
    page_seconds: float | None = 30.0,
    on_error: OnError = "raise",
    similarity_top_k: int | None = None,
    node_postprocessors: Sequence[BaseNodePostprocessor] = (),
    **synthesis: Any,
) -> RetrieverQueryEngine:
    """A query engine that answers from the pixels of the pages that are found.

    >>> engine = page_query_engine(index, LLaVA(model="demo"), store="pages/")  # doctest: +SKIP
    >>> response = engine.query("What is the total of the invoice?")  # doctest: +SKIP
    >>> response.source_nodes[0].metadata["page_label"]  # doctest: +SKIP

    Args:
        source: an index, or a retriever of any kind.
        llm: the model that answers.
        store, page_seconds, on_error: see :class:`~llavakit.llama_index.PictureResolver`.
        policy: what may be opened; None is the model's own policy.
        similarity_top_k: how many nodes an index finds; a retriever knows by itself.
        node_postprocessors: what happens to nodes before their pictures are opened.
        **synthesis: see :class:`PageSynthesizer`: ``streaming``, ``output_cls``, ...

    Raises:
        ParameterError: ``similarity_top_k`` for a retriever.
    """
    if isinstance(source, BaseRetriever):
        if similarity_top_k is not None:
            raise ParameterError("A retriever has a similarity_top_k of its own; set it there.")
        retriever = source
    else:
        chosen = {} if similarity_top_k is None else {"similarity_top_k": similarity_top_k}
        retriever = source.as_retriever(**chosen)
    resolver = PictureResolver(
        policy=policy or llm.policy,
        store=to_store(store),
        page_seconds=page_seconds,
        on_error=on_error,
    )
    return RetrieverQueryEngine(
        retriever,
        response_synthesizer=PageSynthesizer(llm, **synthesis),
        node_postprocessors=[*node_postprocessors, resolver],
    )


@dataclass(frozen=True)
class _Shown:
    """The nodes that fit, those that do not, and the message that shows the former."""

    nodes: list[NodeWithScore] = field(default_factory=list)
    left_out: Sequence[NodeWithScore] = ()
    message: ChatMessage | None = None

    def told_in(self, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        for one in self.left_out:
            told = {**one.node.metadata, "left_out": True}
            response.metadata = {**(response.metadata or {}), one.node.node_id: told}
        return response


@dataclass(frozen=True)
class _Seen:
    """What the model is to see of a node: its picture, or its text."""

    node: NodeWithScore
    content: Page | str
    block: ImageBlock | None = None

    @classmethod
    def of(cls, found: NodeWithScore, policy: SourcePolicy) -> Self:
        node = resolve_node(found.node, policy)
        source = source_of(node)
        if source is None:
            return cls(found, node.get_content(metadata_mode=MetadataMode.LLM))
        data = source.source
        assert isinstance(data, bytes)  # resolved
        name = node.metadata.get("file_name") or node.node_id
        page = Page(str(name), _number(node), open_picture(data, policy))
        return cls(NodeWithScore(node=node, score=found.score), page, ImageBlock(image=data))


def _number(node: BaseNode) -> int:
    told = node.metadata.get("page") or node.metadata.get("page_label")
    try:
        return int(told)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 1  # a picture by itself


def _request(
    question: str, texts: Sequence[str], options: dict[str, Any]
) -> tuple[list[ChatMessage], dict[str, Any]]:
    message = options.pop("message", None)
    if message is None:
        message = ChatMessage(role="user", content="\n\n".join([*texts, question]))
    return [message], options
