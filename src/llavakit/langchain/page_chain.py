"""From a question through a retriever to an answer that cites its pages."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Annotated, Any, NotRequired, TypedDict, cast

from langchain_core.documents import Document
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.retrievers import RetrieverLike
from langchain_core.runnables import (
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnablePassthrough,
    RunnablePick,
)

from llavakit._checks import Takes, check_integer, checked
from llavakit.documents import PageReference, PageStore, Tiles, cite_answer
from llavakit.documents.context import LABEL, check_region
from llavakit.documents.text_layer import Box
from llavakit.errors import ParameterError
from llavakit.langchain.page_documents import FILE_PATH, reference_of
from llavakit.langchain.page_messages import (
    PagePrompt,
    apage_messages,
    page_messages,
    policy_for,
)
from llavakit.sources import DEFAULT_POLICY, SourcePolicy

NOTHING_FOUND = "No page was found that concerns this question."


class Citation(TypedDict):
    """Where an answer stands; ``page`` is None for a document that is no page.

    With ``boxes=True`` also where on the page: ``boxes`` are left, top, right and bottom, as shares
    of the page, of the lines in which ``quote`` stands; ``note`` says why there are none.
    """

    source: str
    page: int | None
    quote: NotRequired[str]
    boxes: NotRequired[list[list[float]]]
    note: NotRequired[str]


class PageAnswer(TypedDict):
    """What :func:`page_question_chain` gives.

    ``documents`` were shown to the model, ``left_out`` were found and did not fit.
    """

    question: str
    answer: str
    citations: list[Citation]
    documents: list[Document]
    left_out: list[Document]


@checked
def page_question_chain(
    retriever: Annotated[RetrieverLike, Takes(RetrieverLike | Callable[..., Any])],
    model: Runnable[LanguageModelInput, BaseMessage] | Runnable[LanguageModelInput, str],
    *,
    question_template: str = "{question}",
    before: Sequence[BaseMessage] = (),
    store: PageStore | str | os.PathLike[str] | None = None,
    max_pages: int | None = None,
    answer_tokens: int | None = None,
    label: str | None = LABEL,
    region: Box | None = None,
    tiles: Tiles | None = None,
    boxes: bool = False,
    policy: SourcePolicy | None = None,
    nothing_found: str = NOTHING_FOUND,
) -> Runnable[str | dict[str, Any], dict[str, Any]]:
    """A chain that finds pages by their text and answers from their pixels.

    >>> chain = page_question_chain(vectors.as_retriever(), ChatLLaVA(model="demo"))
    >>> result = chain.invoke("What is the total on the contract of Anna?")  # doctest: +SKIP
    >>> result["answer"], result["citations"]  # doctest: +SKIP
    ('5243', [{'source': 'contracts.pdf', 'page': 12}])

    Its input is a question, or ``{"question": ..., "query": ...}`` where other words are to be
    searched than asked. Its output is a :class:`PageAnswer`. A stream begins with the
    documents and citations, and goes on with the answer piece by piece.

    Args:
        retriever: gives documents for a query, the best first: any vector store's, a hybrid
            search, several of them.
        model: who answers; a ``ChatLLaVA``, also bound to arguments, or any chat model that
            takes images.
        question_template: what the model is asked; ``{question}`` is filled in.
        before, store, max_pages, answer_tokens, label, region, tiles, policy: see
            :func:`~llavakit.langchain.page_messages`.
        boxes: find where the answer stands on its pages (see
            :func:`~llavakit.documents.cite_answer`). They are rendered once more for it, and the
            citations come behind the answer.
        nothing_found: the answer where the retriever finds nothing; no model is asked.

    Raises:
        ParameterError: at once, for a template without ``{question}``; while running, for an
            input that holds no question.
    """
    if "{question}" not in question_template:
        raise ParameterError("question_template has no {question} where the question goes.")
    for name, value in (("max_pages", max_pages), ("answer_tokens", answer_tokens)):
        if value is not None:
            check_integer(name, value, least=1)
    options: dict[str, Any] = {
        "model": model,
        "before": before,
        "store": store,
        "max_pages": max_pages,
        "answer_tokens": answer_tokens,
        "label": label,
        "region": region,
        "tiles": tiles,
        "policy": policy,
    }
    if region is not None:
        check_region(region)

    def words(asked: Mapping[str, Any]) -> tuple[list[Document], str]:
        question = question_template.replace("{question}", asked["question"])
        return asked["found"], question

    def prompt(asked: Mapping[str, Any]) -> PagePrompt:
        return page_messages(*words(asked), **options)

    async def aprompt(asked: Mapping[str, Any]) -> PagePrompt:
        return await apage_messages(*words(asked), **options)

    its_prompt: Runnable[Any, Any] = RunnableLambda(itemgetter("prompt"))
    answered: Runnable[Any, Any] = RunnableBranch(
        (itemgetter("documents"), its_prompt | model | StrOutputParser()),
        RunnableLambda(lambda asked: nothing_found),
    )
    its_citations: dict[str, Any] = {"citations": lambda asked: citations(asked["documents"])}

    def located(asked: Mapping[str, Any]) -> list[Citation]:
        return citations(asked["documents"], asked["answer"], policy_for(model, policy))

    then = RunnablePassthrough.assign(answer=answered)
    answering: Runnable[Any, Any] = RunnablePassthrough.assign(**its_citations) | then
    if boxes:
        answering = then | RunnablePassthrough.assign(citations=RunnableLambda(located))
    return (
        RunnableLambda(_asked)
        | RunnablePassthrough.assign(found=RunnableLambda(itemgetter("query")) | retriever)
        | RunnablePassthrough.assign(prompt=RunnableLambda(prompt, aprompt, name="page_messages"))
        | RunnablePassthrough.assign(
            documents=lambda asked: asked["prompt"].used,
            left_out=lambda asked: asked["prompt"].left_out,
        )
        | answering
        | RunnablePick(list(PageAnswer.__annotations__))
    ).with_config(run_name="page_question_chain")


def citations(
    documents: Sequence[Document], answer: str = "", policy: SourcePolicy = DEFAULT_POLICY
) -> list[Citation]:
    """The sources and pages of documents, each once, in their order.

    Args:
        documents: what the model was shown.
        answer: what it answered, whose places on the pages are found; "" finds none.
        policy: what may be opened for it.
    """
    found: list[Citation] = []
    pages: dict[int, PageReference] = {}
    for document in documents:
        reference = reference_of(document)
        if reference is None:
            source = document.metadata.get(FILE_PATH) or document.metadata.get("source")
            one = Citation(source=str(source or document.id or "a text"), page=None)
        else:
            one = Citation(source=reference.source, page=reference.number)
        if one not in found:
            if reference is not None:
                pages[len(found)] = reference
            found.append(one)
    if answer.strip():
        located = cite_answer(list(pages.values()), answer, policy=policy)
        for at, place in zip(pages, located, strict=True):
            found[at] |= cast("Citation", place.places())
    return found


def _asked(given: Any) -> dict[str, str]:
    asked = {"question": given} if isinstance(given, str) else given
    question = asked.get("question") if isinstance(asked, Mapping) else None
    if not (isinstance(question, str) and question.strip()):
        raise ParameterError('The chain takes a question: a string, or {"question": ...}.')
    return {"question": question, "query": asked.get("query") or question}
