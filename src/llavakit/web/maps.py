"""Where a model looked on the images of a question: computed when a visitor asks for it.

The images are ranked by how well they match the question (late interaction, by the retrieval
adapter that came with the model), and the one that is looked at is drawn with the similarity map
of the question or of one of its words. It runs in the engine that answers, a few at a time.
"""

from __future__ import annotations

import asyncio
import io
from base64 import b64encode
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from llavakit.backend import Backend
from llavakit.errors import InputError, QueueFullError
from llavakit.images import Picture, open_picture
from llavakit.web.model_cache import ModelCache
from llavakit.web.pictures import AttachedImage

if TYPE_CHECKING:
    from llavakit.embeddings import Embedding
    from llavakit.retrieval.similarity import SimilarityMap

AT_ONCE = 2
"""Maps that are computed at once, of all visitors."""
WAITING = 16
"""Visitors who may wait for theirs; one more is asked to try again."""
SIDE = 1024
"""Pixels of the longer side of a map."""
KEPT_BYTES = 64 << 20
"""Of maps that are kept, so that another word of a question costs no model."""

_Key: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class RankedImage:
    """An image of a question.

    Attributes:
        number: its place among the images, from 0.
        name: the file's name, with the page's number for documents.
        score: how well it matches the question (MaxSim); comparable within one question.
    """

    number: int
    name: str
    score: float


@dataclass(frozen=True, slots=True)
class ShownMap:
    """Where a model looked.

    Attributes:
        ranking: the images, the best match first.
        number: the image that is drawn.
        words: the question's words of which there are maps.
        word: the one that is drawn; "" for the question as a whole.
        image: the image with the map over it, as a data URI.
    """

    ranking: tuple[RankedImage, ...]
    number: int
    words: tuple[str, ...]
    word: str
    image: str


class PageMaps:
    """Maps of all visitors. Belongs to one event loop.

    Args:
        model_cache: where the models are.
        timeout: seconds for each embedding.
    """

    def __init__(self, model_cache: ModelCache, timeout: float | None = None) -> None:
        self._model_cache = model_cache
        self._timeout = timeout
        self._seats = asyncio.Semaphore(AT_ONCE)
        self._asked = 0
        self._kept: OrderedDict[_Key, SimilarityMap] = OrderedDict()

    async def show(
        self,
        images: Sequence[AttachedImage],
        question: str,
        model: str,
        number: int | None = None,
        word: str = "",
    ) -> ShownMap:
        """Return the map of a question over one of its images; cancelling it frees the model.

        Args:
            images: what the model was shown.
            question: the words that are looked for.
            model: the name of the offer that answered.
            number: the image that is drawn, from 0; None draws the best match.
            word: one word of the question; "" takes all together.

        Raises:
            InputError: there is no such image or word, or the model cannot show it.
            QueueFullError: too many visitors wait for maps.
        """
        if not images or not (number is None or 0 <= number < len(images)):
            raise InputError("There is no such image here.")
        if not self._model_cache.has_maps(model):
            raise InputError(
                "The model that answered cannot show where it looked, or is not in memory any "
                "more; ask again."
            )
        async with self._seat():
            with self._model_cache.using(model) as backend:
                maps = await self._maps(backend, model, images, question)
            scores = [one.score for one in maps]
            ranking = tuple(
                RankedImage(at, images[at].name, scores[at])
                for at in sorted(range(len(images)), key=lambda at: -scores[at])
            )
            chosen = ranking[0].number if number is None else number
            return await asyncio.to_thread(
                _shown, ranking, maps[chosen], images[chosen], question, chosen, word
            )

    @asynccontextmanager
    async def _seat(self) -> AsyncIterator[None]:
        if self._asked >= AT_ONCE + WAITING:
            raise QueueFullError("Too many visitors look at maps just now; try again in a moment.")
        self._asked += 1
        try:
            async with self._seats:
                yield
        finally:
            self._asked -= 1

    async def _maps(
        self, backend: Backend, model: str, images: Sequence[AttachedImage], question: str
    ) -> list[SimilarityMap]:
        """The maps of all images; those that are kept need no model."""
        name = f"{model} {backend.info.revision}"
        keys = [(name, question, image.digest) for image in images]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: image for key, image in zip(keys, images, strict=True) if key not in found}
        if missing:
            (words,) = await backend.aembed(texts=[question], timeout=self._timeout)
            pages = await backend.aembed(
                images=[image.image for image in missing.values()], timeout=self._timeout
            )
            made = await asyncio.to_thread(_compared, list(missing.values()), pages, words)
            found.update(zip(missing, made, strict=True))
        self._keep(found)
        return [found[key] for key in keys]

    def _keep(self, maps: dict[_Key, SimilarityMap]) -> None:
        for key, one in maps.items():
            self._kept[key] = one
            self._kept.move_to_end(key)
        size = sum(map(_size, self._kept.values()))
        while size > KEPT_BYTES:
            _, old = self._kept.popitem(last=False)
            size -= _size(old)


def _size(one: SimilarityMap) -> int:
    width, height = one.picture.size
    return one.products.nbytes + one.places.nbytes + 3 * width * height


def _compared(
    images: Sequence[AttachedImage], pages: Sequence[Embedding], question: Embedding
) -> list[SimilarityMap]:
    from llavakit.retrieval.similarity import SimilarityMap

    return [
        SimilarityMap.of(_small(image), page, question)
        for image, page in zip(images, pages, strict=True)
    ]


def _small(image: AttachedImage) -> Picture:
    """An image at the size at which it is shown."""
    rgb = open_picture(image.image.source).rgb.copy()
    rgb.thumbnail((SIDE, SIDE))
    return Picture(rgb)


def _shown(
    ranking: tuple[RankedImage, ...],
    found: SimilarityMap,
    image: AttachedImage,
    question: str,
    number: int,
    word: str,
) -> ShownMap:
    jpeg = io.BytesIO()
    found.draw(word or None).save(jpeg, "JPEG", quality=85)
    shown = "data:image/jpeg;base64," + b64encode(jpeg.getvalue()).decode("ascii")
    return ShownMap(ranking, number, tuple(found.words_in(question)), word, shown)
