"""An answer from the pages that were found, and where on them it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llavakit._checks import check_integer, checked
from llavakit.backend import Backend
from llavakit.documents import PageCitation, PageReference, fit_pages
from llavakit.errors import ParameterError
from llavakit.retrieval.hits import Hit
from llavakit.sources import SourcePolicy
from llavakit.values import FinishReason, SamplingParams


@dataclass(frozen=True, slots=True)
class FoundAnswer:
    """An answer, and the pages that it was given from.

    Attributes:
        text: what the model said.
        citations: the pages that the model saw, the best first, each with the boxes of the
            answer's words where its text layer has them.
        finish_reason: ``"stop"``, or ``"length"`` where ``max_tokens`` cut the answer.
    """

    text: str
    citations: tuple[PageCitation, ...]
    finish_reason: FinishReason

    @property
    def references(self) -> list[PageReference]:
        """The pages that the model saw."""
        return [one.reference for one in self.citations]


@checked
def answer_from(
    backend: Backend,
    hits: Sequence[Hit],
    question: str,
    *,
    max_tokens: int = 512,
    policy: SourcePolicy | None = None,
) -> FoundAnswer:
    """Answer a question from as many of the pages as the model can take, the best first.

    Args:
        backend: what answers, greedily.
        hits: what was found, the best first.
        question: in plain words.
        max_tokens: most tokens of the answer.
        policy: what may be opened; None takes the index's.

    Raises:
        ParameterError: nothing was found.
        DocumentError: a page looks different now, or its document is not there any more.
        ContextLengthError: not even the first page fits.
        EngineError, ModelError: the model failed.
    """
    check_integer("max_tokens", max_tokens, least=1)
    if not hits:
        raise ParameterError("No page was found, so that there is none to answer from.")
    pages = [hit.page(policy) for hit in hits]
    shown = fit_pages(backend, pages, question, answer_tokens=max_tokens)
    params = SamplingParams(max_tokens=max_tokens, temperature=0)
    answer = backend.generate([shown.message], params)
    text = answer.text.strip()
    citations = tuple(hit.cite(text, policy) for hit in hits[: len(shown.pages)])
    return FoundAnswer(text, citations, answer.finish_reason)
