"""A page that was found, and its image again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llavakit._checks import checked
from llavakit.documents import Page, PageCitation, PageReference, PageStore, cite, reopen
from llavakit.documents.passwords import Password
from llavakit.embeddings import Embedder
from llavakit.retrieval.similarity import SimilarityMap
from llavakit.sources import SourcePolicy

if TYPE_CHECKING:
    from PIL import Image as PILImage


@dataclass(frozen=True, slots=True)
class Hit:
    """A page that a question found.

    Attributes:
        reference: the page, without its pixels.
        score: what it was ranked by, the larger the better: the MaxSim of ``"pixels"``, BM25 of
            ``"text"``, the fused ranks of ``"hybrid"``. Comparable within one search only.
        text: the page's own text; "" where it has none.
        question: what was asked.
        ranks: the page's rank by ``"pixels"`` and by ``"text"``, from 1, where it has one.
    """

    reference: PageReference
    score: float
    text: str
    question: str
    ranks: dict[str, int] = field(default_factory=dict)
    _embedder: Embedder | None = field(default=None, repr=False, compare=False)
    _policy: SourcePolicy | None = field(default=None, repr=False, compare=False)
    _password: Password = field(default=None, repr=False, compare=False)

    @checked
    def page(self, policy: SourcePolicy | None = None, *, store: PageStore | None = None) -> Page:
        """Return the page with its image, as it was indexed.

        Args:
            policy: what may be opened; None takes the index's.
            store: images by their digest.

        Raises:
            DocumentError: the page looks different now, or its document is not there any more.
            SourceNotAllowedError: the policy forbids it.
        """
        allowed = policy or self._policy or SourcePolicy()
        (page,) = reopen(self.reference, store=store, policy=allowed, password=self._password)
        return page

    @checked
    def cite(self, quote: str = "", policy: SourcePolicy | None = None) -> PageCitation:
        """Return where quoted words stand on the page (see :func:`llavakit.documents.cite`)."""
        allowed = policy or self._policy or SourcePolicy()
        return cite(self.reference, quote, policy=allowed, password=self._password)

    @checked
    def similarity(
        self, policy: SourcePolicy | None = None, *, store: PageStore | None = None
    ) -> SimilarityMap:
        """Return how alike each place of the page is to each word of the question.

        The page is embedded once more, with all of its vectors: the index keeps fewer, and not
        where they stand. Arguments and errors are those of :meth:`page`.
        """
        assert self._embedder is not None  # a search gave it
        page = self.page(policy, store=store)
        (embedded,) = self._embedder.embed(images=[page.picture])
        (question,) = self._embedder.embed(texts=[self.question])
        return SimilarityMap.of(page.picture, embedded, question)

    @checked
    def heatmap(
        self,
        word: int | str | None = None,
        policy: SourcePolicy | None = None,
        *,
        store: PageStore | None = None,
    ) -> PILImage.Image:
        """Return the page with what it was found by drawn over it.

        Args:
            word: one word of the question; None draws all together (see
                :meth:`~llavakit.retrieval.similarity.SimilarityMap.draw`).
            policy: as in :meth:`page`.
            store: as in :meth:`page`.

        Raises:
            ParameterError: the question has no such word, or the embedder gives no places.
            DocumentError, SourceNotAllowedError: as in :meth:`page`.
        """
        return self.similarity(policy, store=store).draw(word)
