"""``page_query_engine``: a query engine that answers from the images of pages.

It takes what ``index.as_query_engine`` and ``RetrieverQueryEngine.from_args`` take, by the same
names, and says so where something cannot be done with images.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.base import BaseIndex
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import (
    BaseSynthesizer,
    ResponseMode,
    get_response_synthesizer,
)
from llama_index.core.response_synthesizers.context_only import ContextOnly
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQueryMode
from pydantic import BaseModel

from llavakit._checks import check_integer, checked, known, refused
from llavakit.documents import PageStore, Tiles
from llavakit.documents.context import LABEL
from llavakit.documents.text_layer import Box
from llavakit.errors import ParameterError
from llavakit.llama_index.llm import LLaVA
from llavakit.llama_index.nodes import ImageResolver
from llavakit.llama_index.pages import OnError, to_store
from llavakit.llama_index.synthesis import PageSynthesizer
from llavakit.sources import SourcePolicy

_AT_ONCE = (ResponseMode.COMPACT, ResponseMode.SIMPLE_SUMMARIZE)
"""The modes that put as much as there is room for into one request, as PageSynthesizer does."""

_ASKING_NOBODY: Mapping[ResponseMode, type[BaseSynthesizer]] = {
    ResponseMode.NO_TEXT: NoText,
    ResponseMode.CONTEXT_ONLY: ContextOnly,
}
"""The modes whose response is what was found."""


@checked
def page_query_engine(
    source: BaseIndex[Any] | BaseRetriever,
    llm: LLaVA,
    *,
    store: PageStore | str | Path | None = None,
    policy: SourcePolicy | None = None,
    page_seconds: float | None = 30.0,
    on_error: OnError = "raise",
    node_postprocessors: BaseNodePostprocessor | Sequence[BaseNodePostprocessor] | None = None,
    response_synthesizer: BaseSynthesizer | None = None,
    callback_manager: CallbackManager | None = None,
    **options: Any,
) -> RetrieverQueryEngine:
    """A query engine that answers from the pixels of the pages that are found.

    >>> engine = page_query_engine(index, LLaVA(model="demo"), store="pages/")  # doctest: +SKIP
    >>> response = engine.query("What is the total of the invoice?")  # doctest: +SKIP
    >>> response.source_nodes[0].metadata["page_label"]  # doctest: +SKIP

    Args:
        source: an index, or a retriever of any kind.
        llm: the model that answers.
        store, page_seconds, on_error: see :class:`~llavakit.llama_index.ImageResolver`.
        policy: what may be opened; None is the model's own policy.
        node_postprocessors: what happens to nodes before their images are opened, one or
            several.
        response_synthesizer: answers instead; it should be a multimodal one.
        callback_manager: receives the events of queries.
        **options: how an index finds (:class:`Finding`: ``similarity_top_k``, ``filters``,
            ...), and how the answer is made (:class:`AnswerSettings`: ``response_mode``,
            ``streaming``, ``output_cls``, ``text_qa_template``, ...). None is the default.

    Raises:
        ParameterError: what cannot be honoured: settings of a retriever beside a retriever,
            templates for texts, ``multimodal=False``, an unknown argument.
    """
    finding, answering = _names(Finding), _names(AnswerSettings)
    known(options, (*finding, *answering), "page_query_engine")
    found_by = Finding(**{name: options[name] for name in finding if name in options})
    answered_by = AnswerSettings(**{name: options[name] for name in answering if name in options})
    resolver = ImageResolver(
        policy=policy or llm.policy,
        store=to_store(store),
        page_seconds=page_seconds,
        on_error=on_error,
    )
    return RetrieverQueryEngine(
        found_by.retriever(source),
        response_synthesizer=answered_by.synthesizer(llm, response_synthesizer, policy),
        node_postprocessors=[*_several(node_postprocessors), resolver],
        callback_manager=callback_manager,
    )


@checked
@dataclass(frozen=True)
class Finding:
    """The settings of an index's retriever; a retriever that is given has its own.

    The names and meanings are those of ``index.as_retriever``; None leaves it to the index.
    """

    similarity_top_k: int | None = None
    filters: MetadataFilters | None = None
    image_similarity_top_k: int | None = None
    vector_store_query_mode: VectorStoreQueryMode | str | None = None
    alpha: float | None = None
    doc_ids: Sequence[str] | None = None
    sparse_top_k: int | None = None
    hybrid_top_k: int | None = None
    vector_store_kwargs: Mapping[str, Any] | None = None
    embed_model: BaseEmbedding | None = None

    def __post_init__(self) -> None:
        for name, value in _given(self).items():
            if name.endswith("top_k"):
                check_integer(name, value, least=1)
        modes = [mode.value for mode in VectorStoreQueryMode]
        if self.vector_store_query_mode not in (None, *modes):
            words = f"one of {', '.join(modes)}"
            raise refused("vector_store_query_mode", self.vector_store_query_mode, words)

    def retriever(self, source: BaseIndex[Any] | BaseRetriever) -> BaseRetriever:
        """The retriever that finds.

        Raises:
            ParameterError: the retriever exists already, or it would silently drop a setting.
        """
        given = _given(self)
        if isinstance(source, BaseRetriever):
            _refuse(given, "is the retriever's own; set it there")
            return source
        retriever = source.as_retriever(**given)
        dropped = [name for name in given if not _takes(retriever, name)]
        _refuse(
            dropped,
            f"means nothing to the retriever of a {type(source).__name__}; give page_query_engine "
            "a retriever instead of the index",
        )
        return retriever


@checked
@dataclass(frozen=True)
class AnswerSettings:
    """How the answer is made; the names are those of ``RetrieverQueryEngine.from_args``.

    Attributes:
        response_mode: ``"compact"`` (the default) and ``"simple_summarize"`` ask once, about as
            many pages as fit (see :class:`PageSynthesizer`). ``"refine"``,
            ``"tree_summarize"``, ``"accumulate"`` and ``"compact_accumulate"`` are the
            framework's own rounds over the images; ``"no_text"`` and ``"context_only"`` do
            not ask the model.
        streaming, output_cls, verbose: as the framework has them.
        use_async: whether rounds go on beside each other; one request has nothing beside it.
        multimodal: always; False is refused.
        answer_tokens, label, question_template, text_qa_template, region, tiles, boxes: see
            :class:`PageSynthesizer`.
        chat_content_qa_template, chat_content_refine_template: the prompts of the framework's
            rounds, with which ``"compact"`` is the framework's, too.
        refine_template, summary_template, simple_template: are refused; they are for texts.
    """

    response_mode: ResponseMode | str | None = None
    streaming: bool | None = None
    output_cls: type[BaseModel] | None = None
    verbose: bool | None = None
    use_async: bool | None = None
    multimodal: bool | None = None
    answer_tokens: int | None = None
    label: str | None = LABEL
    question_template: str | None = None
    text_qa_template: BasePromptTemplate | None = None
    region: Box | None = None
    tiles: Tiles | None = None
    boxes: bool | None = None
    chat_content_qa_template: BasePromptTemplate | None = None
    chat_content_refine_template: BasePromptTemplate | None = None
    refine_template: BasePromptTemplate | None = None
    summary_template: BasePromptTemplate | None = None
    simple_template: BasePromptTemplate | None = None

    def __post_init__(self) -> None:
        modes = [mode.value for mode in ResponseMode]
        if self.response_mode not in (None, *modes):
            raise refused("response_mode", self.response_mode, f"one of {', '.join(modes)}")
        if self.response_mode == ResponseMode.GENERATION:
            raise ParameterError(
                'response_mode="generation" answers without what was found; ask the model itself: '
                "llm.chat([...])."
            )
        if self.multimodal is False:
            raise ParameterError(
                "multimodal=False would answer from texts alone; take index.as_query_engine(...)."
            )
        _refuse(
            _given(self, "refine_template", "summary_template", "simple_template"),
            "is for texts, and pages are shown as images; word the question by "
            "text_qa_template, or the rounds by chat_content_qa_template and "
            "chat_content_refine_template",
        )

    def synthesizer(
        self,
        llm: LLaVA,
        instead: BaseSynthesizer | None = None,
        policy: SourcePolicy | None = None,
    ) -> BaseSynthesizer:
        """What makes the answer.

        Args:
            llm: the model.
            instead: another synthesizer, which knows everything by itself.
            policy: what may be opened to find boxes; None is the model's own.

        Raises:
            ParameterError: settings that it cannot honour.
        """
        mode = ResponseMode(self.response_mode or ResponseMode.COMPACT)
        if instead is not None:
            settings = [name for name in _given(self) if name != "multimodal"]
            _refuse(settings, "belongs to the response_synthesizer that is given; set it there")
            return instead
        if mode in _ASKING_NOBODY:
            return self._asking_nobody(llm, mode)
        rounds = _given(self, "chat_content_qa_template", "chat_content_refine_template")
        if mode in _AT_ONCE and not rounds:
            return PageSynthesizer(
                llm,
                **_given(self, "streaming", "output_cls", "verbose", "answer_tokens", "label"),
                **_given(self, "question_template", "text_qa_template"),
                **_given(self, "region", "tiles", "boxes"),
                policy=policy,
            )
        return self._in_rounds(llm, mode, rounds)

    def _asking_nobody(self, llm: LLaVA, mode: ResponseMode) -> BaseSynthesizer:
        heard = {"response_mode", "streaming", "verbose", "use_async", "multimodal"}
        unheard = [name for name in _given(self) if name not in heard]
        _refuse(unheard, f"has no place with response_mode={mode.value!r}, which asks no model")
        # With the model, or the framework looks for one of its own choice.
        return _ASKING_NOBODY[mode](llm=llm, streaming=bool(self.streaming))

    def _in_rounds(
        self, llm: LLaVA, mode: ResponseMode, templates: Mapping[str, Any]
    ) -> BaseSynthesizer:
        ours = _given(self, "answer_tokens", "label", "question_template", "text_qa_template")
        ours |= _given(self, "region", "tiles", "boxes")
        asked = f"response_mode={mode.value!r}" + "".join(f" with {name}" for name in templates)
        _refuse(ours, f"cannot go with {asked}; say it in chat_content_qa_template")
        return get_response_synthesizer(
            llm=llm,
            response_mode=mode,
            multimodal=True,
            chat_prompt_helper=llm.chat_prompt_helper(),
            **templates,
            **_given(self, "streaming", "output_cls", "verbose", "use_async"),
        )


def _several(
    postprocessors: BaseNodePostprocessor | Sequence[BaseNodePostprocessor] | None,
) -> Sequence[BaseNodePostprocessor]:
    if isinstance(postprocessors, BaseNodePostprocessor):
        return [postprocessors]
    return postprocessors or []


def _names(settings: type[Finding | AnswerSettings]) -> list[str]:
    return [field.name for field in fields(settings)]


def _given(settings: Finding | AnswerSettings, *among: str) -> dict[str, Any]:
    """What was set, of some or all settings."""
    return {
        field.name: value
        for field in fields(settings)
        if (value := getattr(settings, field.name)) != field.default
        and (not among or field.name in among)
    }


def _refuse(names: Iterable[str], why: str) -> None:
    for name in names:
        raise ParameterError(f"{name} {why}.")


def _takes(retriever: BaseRetriever, name: str) -> bool:
    """Whether a retriever looks at an argument; most drop in silence what they do not know."""
    if name == "vector_store_kwargs":  # they take it out of what they have no name for
        return hasattr(retriever, "_vector_store")
    makers = [vars(one).get("__init__") for one in type(retriever).__mro__]
    return any(name in inspect.signature(make).parameters for make in makers if callable(make))
