"""Answers from the images of pages: a response synthesizer.

The framework's synthesizers plan with estimates, and answer in rounds, page by page, where an
estimate says that the pages are too many. This one counts exactly, and asks once about as many
pages as the model can hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponseAsyncGen,
    ChatResponseGen,
    ImageBlock,
    TextBlock,
)
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.prompts import BasePromptTemplate, RichPromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.types import RESPONSE_TEXT_TYPE, TokenAsyncGen, TokenGen
from llama_index.core.utils import print_text
from pydantic import BaseModel

from llavakit._checks import check_integer, checked
from llavakit.documents import Page, Tiles, fit_pages
from llavakit.documents.context import LABEL, check_region
from llavakit.documents.text_layer import Box
from llavakit.errors import ParameterError
from llavakit.images import Picture, open_picture
from llavakit.llama_index.content_blocks import source_of
from llavakit.llama_index.llm import LLaVA
from llavakit.llama_index.messages import to_messages
from llavakit.llama_index.nodes import resolve_node, scored
from llavakit.llama_index.pages import node_label
from llavakit.llama_index.places import with_boxes
from llavakit.llama_index.wording import Wording
from llavakit.sources import SourcePolicy
from llavakit.values import Message, Part, Text

_logger = logging.getLogger(__name__)

PAGES_TEMPLATE = RichPromptTemplate(
    '{% chat role="user" %}{% for message in context_messages %}{% for block in message.blocks %}'
    "{% if block.block_type == 'image' %}{{ block.inline_url() | image }}{% endif %}"
    "{% endfor %}{% endfor %}{{ query_str }}{% endchat %}"
)
"""For the framework's own engines (``chat_content_qa_template=``): the images of what was
found, then the question, and nothing else."""


class PageSynthesizer(BaseSynthesizer):
    """Answers a question from the images of nodes, in one request.

    As many nodes are shown as the context holds beside the answer, the first (best) ones first.
    Those that are left out are logged as a warning, and are not among the response's
    ``source_nodes``; its ``metadata`` have them with ``left_out`` set. Of a node with an image
    only the image is shown, and where there are several, a label above each. Nodes without
    one are shown as text.

    Args:
        llm: the model; what it may open holds for images that are not opened yet.
        streaming: give the answer piece by piece.
        output_cls: a pydantic class to answer with, instead of words.
        answer_tokens: tokens that are kept free for the answer; None takes the model's
            ``max_tokens``.
        label: what is written above each image (see :func:`~llavakit.documents.ask_about`).
        question_template: what the model is asked, with ``{question}`` in it.
        text_qa_template: a prompt template of the framework's instead, with ``{query_str}`` in
            it. The pages stand above the words of its user; ``{context_str}`` says so.
        verbose: print which nodes are shown.
        region: left, top, right and bottom, as shares, of the part of each image that is shown at
            full resolution; None shows whole images.
        tiles: what is shown is cut into these tiles, too, for small print.
        boxes: find where the answer stands on its pages: the metadata of the response's source
            nodes have ``quote``, ``boxes`` and ``note`` (see
            :func:`~llavakit.documents.cite_answer`). Pages are rendered once more for it.
        policy: what may be opened for that; None is the model's own.

    Raises:
        ParameterError: an argument that makes no sense, or goes with another one badly.
    """

    @checked
    def __init__(
        self,
        llm: LLaVA,
        *,
        streaming: bool = False,
        output_cls: type[BaseModel] | None = None,
        answer_tokens: int | None = None,
        label: str | None = LABEL,
        question_template: str | None = None,
        text_qa_template: BasePromptTemplate | None = None,
        verbose: bool = False,
        region: Box | None = None,
        tiles: Tiles | None = None,
        boxes: bool = False,
        policy: SourcePolicy | None = None,
    ) -> None:
        wording = Wording(question_template, text_qa_template)
        if answer_tokens is not None:
            check_integer("answer_tokens", answer_tokens, least=1)
        if streaming and output_cls is not None:
            raise ParameterError("An object cannot be streamed; give streaming or output_cls.")
        if streaming and boxes:
            raise ParameterError(
                "Where an answer stands is known when it is complete; give streaming or boxes."
            )
        if region is not None:
            check_region(region)
        # Not `multimodal`: the framework would build content blocks that are never used.
        super().__init__(llm=llm, streaming=streaming, output_cls=output_cls)
        self._model = llm
        self._answer_tokens = answer_tokens
        self._label = label
        self._wording = wording
        self._verbose = verbose
        self._region = region
        self._tiles = tiles
        self._boxes = boxes
        self._opened_by = policy or llm.policy

    def synthesize(
        self,
        query: str | QueryBundle,
        nodes: Sequence[NodeWithScore | BaseNode],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """The answer.

        Args:
            query: the question.
            nodes: what was found, the best first.
            additional_source_nodes: what the response shall name as its sources besides.
            **response_kwargs: arguments of the call to the model, such as ``temperature``.

        Raises:
            ContextLengthError: not even the first page fits.
            InputError: an image cannot be opened.
        """
        shown = self._fitted(query, nodes)
        response = super().synthesize(
            query, shown.nodes, additional_source_nodes, messages=shown.messages, **response_kwargs
        )
        return self._located(shown.noted_in(response))

    async def asynthesize(
        self,
        query: str | QueryBundle,
        nodes: Sequence[NodeWithScore | BaseNode],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """As :meth:`synthesize`, never blocking the event loop."""
        shown = await asyncio.to_thread(self._fitted, query, nodes)
        response = await super().asynthesize(
            query, shown.nodes, additional_source_nodes, messages=shown.messages, **response_kwargs
        )
        return await asyncio.to_thread(self._located, shown.noted_in(response))

    def _located(self, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        """The response; its sources say where the answer stands, if that is wanted."""
        answer = getattr(response, "response", None)  # words, or an object
        if self._boxes and answer:
            response.source_nodes = with_boxes(response.source_nodes, answer, self._opened_by)
        return response

    @checked
    def get_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """The answer from what fits; from the texts, if it is called past :meth:`synthesize`."""
        messages, options = self._request(query_str, text_chunks, response_kwargs)
        if self._output_cls is not None:
            answer = self._model.as_structured_llm(self._output_cls).chat(messages, **options)
            return answer.raw  # type: ignore[no-any-return]
        if self._streaming:
            return _tokens(self._model.stream_chat(messages, **options))
        return self._model.chat(messages, **options).message.content or ""

    @checked
    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """As :meth:`get_response`, never blocking the event loop."""
        messages, options = self._request(query_str, text_chunks, response_kwargs)
        if self._output_cls is not None:
            structured = self._model.as_structured_llm(self._output_cls)
            return (await structured.achat(messages, **options)).raw  # type: ignore[no-any-return]
        if self._streaming:
            stream = await self._model.astream_chat(messages, **options)
            return _atokens(stream)
        return (await self._model.achat(messages, **options)).message.content or ""

    def _get_prompts(self) -> PromptDictType:
        template = self._wording.text_qa_template
        return {} if template is None else {"text_qa_template": template}

    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        if prompts_dict.keys() - {"text_qa_template"}:
            raise ParameterError(
                "Pages are asked about with one template, text_qa_template; write what else the "
                "model shall know into its system_prompt."
            )
        if prompts_dict:
            self._wording = Wording(text_qa_template=prompts_dict["text_qa_template"])

    def _request(
        self, question: str, texts: Sequence[str], options: dict[str, Any]
    ) -> tuple[list[ChatMessage], dict[str, Any]]:
        messages = options.pop("messages", None)
        if messages is None:
            before, text = self._wording.worded(question, "\n\n".join(texts))
            if self._wording.text_qa_template is None:
                text = "\n\n".join([*texts, text])
            messages = [*before, ChatMessage(role="user", content=text)]
        return messages, options

    @checked
    def _fitted(
        self, query: str | QueryBundle, nodes: Sequence[NodeWithScore | BaseNode]
    ) -> _Shown:
        if not nodes:
            return _Shown()
        question = query if isinstance(query, str) else query.query_str
        before, text = self._wording.worded(question)
        seen = [_NodeContent.of(one, self._model.policy) for one in scored(nodes)]
        system = self._model.system_prompt
        fitted = fit_pages(
            self._model.backend_for(),
            [one.content for one in seen],
            text,
            answer_tokens=self._answer_tokens or self._model.metadata.num_output,
            label=self._label,
            region=self._region,
            tiles=self._tiles,
            before=[*([Message("system", system)] if system else []), *to_messages(before)],
        )
        kept, left_out = seen[: len(fitted.pages)], seen[len(fitted.pages) :]
        if left_out:
            _logger.warning(
                "%d of %d nodes do not fit into the model's context and were left out: %s",
                len(left_out),
                len(seen),
                ", ".join(node_label(one.node) for one in left_out),
            )
        if self._verbose:
            print_text(f"{len(kept)} shown: {', '.join(node_label(one.node) for one in kept)}\n")
        if self._region or self._tiles:
            blocks = list(map(_cropped, fitted.message.content))
        else:
            images = iter([one.block for one in kept if one.block is not None])
            blocks = [
                TextBlock(text=part.text) if isinstance(part, Text) else next(images)
                for part in fitted.message.content
            ]
        messages = [*before, ChatMessage(role="user", blocks=blocks)]
        return _Shown([one.node for one in kept], [one.node for one in left_out], messages)


def _cropped(part: Part) -> TextBlock | ImageBlock:
    """A part of a question about parts of pages."""
    if isinstance(part, Text):
        return TextBlock(text=part.text)
    assert isinstance(part.source, Picture)  # pages hold their pixels
    png = io.BytesIO()
    part.source.rgb.save(png, "PNG", compress_level=1)
    return ImageBlock(image=png.getvalue(), image_mimetype="image/png")


@dataclass(frozen=True)
class _Shown:
    """The nodes that fit, those that do not, and the messages that show the former."""

    nodes: list[NodeWithScore] = field(default_factory=list)
    left_out: Sequence[NodeWithScore] = ()
    messages: list[ChatMessage] | None = None

    def noted_in(self, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        for one in self.left_out:
            left_out = {**one.node.metadata, "left_out": True}
            response.metadata = {**(response.metadata or {}), one.node.node_id: left_out}
        return response


@dataclass(frozen=True)
class _NodeContent:
    """What the model is to see of a node: its image, or its text."""

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
    label = node.metadata.get("page") or node.metadata.get("page_label")
    try:
        return int(label)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 1  # an image by itself


def _tokens(answers: ChatResponseGen) -> TokenGen:
    """The texts of a streamed answer; closing this closes that, as the framework's own does not
    do on every Python.
    """
    with contextlib.closing(answers):
        for answer in answers:
            yield answer.delta or ""


async def _atokens(answers: ChatResponseAsyncGen) -> TokenAsyncGen:
    async with contextlib.aclosing(answers):
        async for answer in answers:
            yield answer.delta or ""
