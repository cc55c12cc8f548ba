"""Retrieved documents and a question -> a prompt with the pages' pixels in it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.runnables import Runnable
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import run_in_executor
from pydantic import Field

from llavakit._checks import check_integer, checked
from llavakit.documents import PageReference, PageStore, Tiles, ask_about, fit_pages, reopen
from llavakit.documents.context import LABEL
from llavakit.documents.text_layer import Box
from llavakit.errors import ParameterError, UnsupportedContentError
from llavakit.images import Picture
from llavakit.langchain.canonical import has_pictures
from llavakit.langchain.chat_models import ChatLLaVA
from llavakit.langchain.content_blocks import PictureId
from llavakit.langchain.messages import to_messages
from llavakit.langchain.page_documents import reference_of
from llavakit.langchain.page_loader import to_store
from llavakit.sources import DEFAULT_POLICY, SourcePolicy
from llavakit.values import Image, Message, SamplingParams, Text

logger = logging.getLogger(__name__)

MAX_PAGES = 8
"""Most pages for a model whose context length is unknown here."""


class PagePrompt(ChatPromptValue):
    """A prompt about pages, which any chat model takes: ``model.invoke(prompt)``.

    Attributes:
        messages: what came before, and the user's message of images, texts and the question.
        used: the documents that are in it, the best first.
        left_out: documents for which there was no room.
        tokens: tokens of the prompt; None where they cannot be counted.
    """

    used: list[Document] = Field(default_factory=list)
    left_out: list[Document] = Field(default_factory=list)
    tokens: int | None = None

    def to_string(self) -> str:
        """The prompt as text, as models of plain text ask for it.

        Raises:
            UnsupportedContentError: there are images in it, which would be lost.
        """
        if has_pictures(self.to_messages()):
            raise UnsupportedContentError(
                "A model of plain text sees no pages; give the prompt to a chat model, such as "
                "ChatLLaVA."
            )
        return super().to_string()


@checked
def page_messages(
    documents: Sequence[Document],
    question: str,
    *,
    model: Runnable[LanguageModelInput, Any] | None = None,
    before: Sequence[BaseMessage] = (),
    store: PageStore | str | os.PathLike[str] | None = None,
    max_pages: int | None = None,
    answer_tokens: int | None = None,
    label: str | None = LABEL,
    region: Box | None = None,
    tiles: Tiles | None = None,
    policy: SourcePolicy | None = None,
    page_seconds: float | None = 30.0,
) -> PagePrompt:
    """A prompt of the images of retrieved pages and a question about them.

    Pages come from their store, their file, or are drawn again from their document; whichever
    it is, they look as they did when they were indexed. Documents that are no pages stand in
    the prompt with their text. What does not fit is in ``left_out``, and a warning is logged.

    Args:
        documents: the best ones first, as a retriever gives them. Several of one page (chunks of
            its text) show it once.
        question: in plain words; it comes last.
        model: who is going to answer. For a ``ChatLLaVA``, also one that was bound to arguments,
            as many documents are taken as its context holds, counted exactly. For any other
            model, as many as ``max_pages`` allows.
        before: messages that stand before the question: a system message, a conversation.
        store: where images were kept; the documents know it themselves unless it has moved.
        max_pages: most pages; None is no bound for a ``ChatLLaVA`` and 8 for others.
        answer_tokens: tokens that are kept free for the answer; None takes the model's
            ``max_tokens``.
        label: what is written above each image where there are several documents, with
            ``{page}`` and ``{source}``; None writes nothing.
        region: left, top, right and bottom, as shares, of the part of each page that is shown at
            full resolution; None shows whole pages.
        tiles: what is shown is cut into these tiles, too, for small print.
        policy: which files and addresses may be opened; None takes that of a ``ChatLLaVA``.
        page_seconds: most seconds for drawing a page.

    Raises:
        DocumentError: a page looks different now, or its document is gone.
        SourceNotAllowedError: the policy forbids the only place that it could come from.
        ContextLengthError: not even the first document fits.
        ParameterError: numbers that make no sense, or documents or a question that are none.
    """
    for name, value in (("max_pages", max_pages), ("answer_tokens", answer_tokens)):
        if value is not None:
            check_integer(name, value, least=1)
    llava, bound = _llava(model)
    if llava is None and max_pages is None:
        max_pages = MAX_PAGES
    policy = policy_for(model, policy)
    passages = _merged(documents)
    within = _within(passages, max_pages)
    references = [one.content for one in within if isinstance(one.content, PageReference)]
    pages = iter(
        reopen(references, store=to_store(store), policy=policy, page_seconds=page_seconds)
    )
    items = [one.content if isinstance(one.content, str) else next(pages) for one in within]
    fitting, tokens = len(items), None
    if llava is None:
        message = ask_about(items, question, label, region=region, tiles=tiles)
    else:
        fitted = fit_pages(
            llava.backend_for(bound.get("model")),
            items,
            question,
            answer_tokens=answer_tokens or _answer_tokens(llava, bound),
            label=label,
            region=region,
            tiles=tiles,
            before=to_messages(llava.canonical(before)),
        )
        message, fitting, tokens = fitted.message, len(fitted.pages), fitted.tokens
    used = [document for one in within[:fitting] for document in one.documents]
    kept = {id(document) for document in used}
    left_out = [document for document in documents if id(document) not in kept]
    if left_out:
        logger.warning("%s", _told(used, left_out))
    block = _held if llava is not None else _encoded
    return PagePrompt(
        messages=[*before, _human(message, block)], used=used, left_out=left_out, tokens=tokens
    )


@checked
async def apage_messages(
    documents: Sequence[Document], question: str, **options: Any
) -> PagePrompt:
    """As :func:`page_messages`, never blocking the event loop."""
    return await run_in_executor(None, page_messages, documents, question, **options)


class _Passage:
    """What one image or one text of the prompt stands for."""

    def __init__(self, content: PageReference | str, document: Document) -> None:
        self.content = content
        self.documents = [document]


def _merged(documents: Sequence[Document]) -> list[_Passage]:
    """The documents in their order; those of one page are one."""
    merged: list[_Passage] = []
    known: dict[tuple[str, int, str], _Passage] = {}
    for document in documents:
        if not isinstance(document, Document):
            raise ParameterError(
                f"documents holds a {type(document).__name__}; give a list of LangChain's Document."
            )
        reference = reference_of(document)
        if reference is None:
            merged.append(_Passage(document.page_content, document))
            continue
        key = (reference.source, reference.number, reference.sha256)
        if key in known:
            known[key].documents.append(document)
            continue
        known[key] = _Passage(reference, document)
        merged.append(known[key])
    return merged


def _within(passages: list[_Passage], max_pages: int | None) -> list[_Passage]:
    """The passages of which at most so many are pages."""
    within: list[_Passage] = []
    pages = 0
    for passage in passages:
        if isinstance(passage.content, PageReference):
            pages += 1
            if max_pages is not None and pages > max_pages:
                continue
        within.append(passage)
    return within


def policy_for(model: Any, policy: SourcePolicy | None) -> SourcePolicy:
    """Return what may be opened for a model: what is given, or what a ``ChatLLaVA`` has."""
    llava, _ = _llava(model)
    return policy or (DEFAULT_POLICY if llava is None else llava.policy)


def _llava(model: Any) -> tuple[ChatLLaVA | None, dict[str, Any]]:
    """The ChatLLaVA that answers, and the arguments that it was bound to."""
    bound: dict[str, Any] = {}
    while isinstance(model, RunnableBindingBase):
        bound = {**model.kwargs, **bound}
        model = model.bound
    return (model if isinstance(model, ChatLLaVA) else None), bound


def _answer_tokens(llava: ChatLLaVA, bound: dict[str, Any]) -> int:
    asked = bound.get("max_tokens") or llava.max_tokens or SamplingParams().max_tokens
    return int(asked)


def _human(message: Message, block: Any) -> HumanMessage:
    content: list[str | dict[str, Any]] = []
    for part in message.content:
        if isinstance(part, Text):
            content.append({"type": "text", "text": part.text})
        else:
            content.append(block(part))
    return HumanMessage(content)


def _held(image: Image) -> dict[str, Any]:
    """An image on its way to our own model: traces see its digest, and nothing is encoded."""
    picture = _picture(image)
    return {"type": "image", "file_id": PictureId(picture.digest, image)}


def _encoded(image: Image) -> dict[str, Any]:
    """An image for anybody's model, in LangChain's own notation."""
    _, _, data = _picture(image).data_uri().partition(",")
    return {"type": "image", "base64": data, "mime_type": "image/png"}


def _picture(image: Image) -> Picture:
    assert isinstance(image.source, Picture)  # pages hold their pixels
    return image.source


def _told(used: Sequence[Document], left_out: Sequence[Document]) -> str:
    names = ", ".join(
        f"{document.metadata.get('source', 'a text')} p. {document.metadata.get('page', '-')}"
        for document in left_out[:5]
    )
    more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
    return (
        f"The question is asked about {len(used)} of {len(used) + len(left_out)} documents; "
        f"without {names}{more}."
    )
