"""Where a model looked: how alike each place of a page is to each word of a question, as an image.

The products that MaxSim takes the best of, before it takes it (ColPali's interpretability maps,
https://arxiv.org/abs/2407.01449, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llavakit._checks import check_integer, checked
from llavakit.documents.text_layer import Box
from llavakit.embeddings import Embedding
from llavakit.errors import ParameterError
from llavakit.images import Picture

if TYPE_CHECKING:
    from PIL import Image as PILImage

_GRID = 256  # cells along the longer side, at which boxes are drawn before they are smoothed
_BLUR = 0.4  # of a place's side: the edges between places are none of the page's
_OPACITY = 0.6
_EDGES = "\"'.,;:!?()[]{}<>„“”‚‘’«»¿¡"
_COLD, _WARM, _HOT = (40, 60, 160), (255, 200, 40), (220, 30, 30)


@dataclass(frozen=True, slots=True, eq=False)
class SimilarityMap:
    """A question's words, and how alike each place of a page is to each of them.

    Attributes:
        picture: the page.
        words: the question's tokens, as they read.
        products: [words, places]: cosines.
        places: [places, 4]: left, top, right and bottom, as shares of the image.
    """

    picture: Picture
    words: tuple[str, ...]
    products: npt.NDArray[np.float32]
    places: npt.NDArray[np.float32]

    @classmethod
    @checked
    def of(cls, picture: Picture, page: Embedding, question: Embedding) -> SimilarityMap:
        """Return the map of a page and a question that were embedded by one embedder.

        Raises:
            ParameterError: the embedder does not say which place a vector stands for.
        """
        if page.places is None:
            raise ParameterError(
                "This embedder does not say which places of an image its vectors stand for, so "
                "there is no map of them."
            )
        products = question.vectors @ page.vectors.T
        words = question.words or tuple(map(str, range(1, 1 + len(question))))
        return cls(picture, words, products, page.places)

    @property
    def score(self) -> float:
        """The MaxSim of question and page that the map is made of."""
        return float(self.products.max(axis=1).sum())

    @checked
    def words_in(self, text: str) -> list[str]:
        """Return the words of a text for which there is a map, in their order, none twice."""
        found: dict[str, None] = {}
        for word in text.split():
            if any(map(str.isalnum, word)) and self._has(word):
                found.setdefault(word.strip(_EDGES), None)
        return list(found)

    @checked
    def best_places(self, word: int | str | None = None, count: int = 3) -> list[Box]:
        """Return the boxes that are most alike, the best first; arguments as in :meth:`draw`."""
        check_integer("count", count, least=1)
        values = self._values(word)
        best = np.argsort(-values, kind="stable")[:count]
        return [(float(x), float(y), float(r), float(b)) for x, y, r, b in self.places[best]]

    @checked
    def draw(self, word: int | str | None = None) -> PILImage.Image:
        """Return the page with the map over it: blue where it is least alike, red where most.

        Args:
            word: a word of the question, or the place of a token in :attr:`words`; None draws all
                of them together, each token's likeness from its lowest to its highest.

        Raises:
            ParameterError: the question has no such word.
        """
        from PIL import Image as PILImage
        from PIL import ImageFilter

        heat = PILImage.fromarray(np.rint(self._canvas(self._values(word)) * 255).astype(np.uint8))
        heat = heat.filter(ImageFilter.GaussianBlur(_BLUR * self._cell(heat.size)))
        heat = heat.resize(self.picture.size, PILImage.Resampling.BICUBIC)
        share = (np.asarray(heat)[..., None] / 255).astype(np.float32)
        page = np.asarray(self.picture.rgb, dtype=np.float32)
        # What is alike shows its colour, and what is not stays readable.
        mixed = page + (_colours(share) - page) * (_OPACITY * np.maximum(share, 0.25))
        return PILImage.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8))

    def _values(self, word: int | str | None) -> npt.NDArray[np.float32]:
        """How alike each place is, from 0 to 1."""
        spread = np.stack([_stretched(row) for row in self.products[self._tokens(word)]])
        return _stretched(spread.mean(axis=0))

    def _tokens(self, word: int | str | None) -> list[int]:
        if word is None:
            # Some models pad a question with tokens that stand for no word of it.
            spoken = [at for at, one in enumerate(self.words) if any(map(str.isalnum, one))]
            return spoken or list(range(len(self.words)))
        if isinstance(word, int):
            return [check_integer("word", word, least=0, most=len(self.words) - 1)]
        wanted = _plain(word)
        plain = [_plain(one) for one in self.words]
        for begin in range(len(plain)):
            for end in range(begin + 1, len(plain) + 1):
                joined = "".join(plain[begin:end])
                if joined == wanted and wanted and plain[begin]:
                    return [at for at in range(begin, end) if plain[at]]
                if not wanted.startswith(joined):
                    break
        raise ParameterError(
            f"The question has no word {word!r}; its tokens are "
            f"{', '.join(repr(one) for one in self.words)}."
        )

    def _has(self, word: str) -> bool:
        try:
            self._tokens(word)
        except ParameterError:
            return False
        return True

    def _cell(self, canvas: tuple[int, int]) -> float:
        """The side of the smaller places, in pixels of a canvas."""
        sides = (self.places[:, 2:] - self.places[:, :2]) * np.array(canvas)
        return float(np.percentile(sides, 10))  # views of the whole page are among them

    def _canvas(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Values drawn in their boxes, the smallest boxes last: they say the most."""
        width, height = self.picture.size
        scale = _GRID / max(width, height)
        across, down = max(1, round(width * scale)), max(1, round(height * scale))
        canvas = np.zeros((down, across), dtype=np.float32)
        areas = np.prod(self.places[:, 2:] - self.places[:, :2], axis=1)
        size = np.array([across, down, across, down])
        for at in np.argsort(-areas, kind="stable"):
            left, top, right, bottom = np.rint(self.places[at] * size).astype(int)
            canvas[top : max(bottom, top + 1), left : max(right, left + 1)] = values[at]
        return canvas


def _stretched(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    low, high = values.min(), values.max()
    result: npt.NDArray[np.float32] = (values - low) / max(float(high - low), 1e-12)
    return result


def _colours(share: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """A colour for each share: from blue over yellow to red."""
    cold, warm, hot = (np.array(one, dtype=np.float32) for one in (_COLD, _WARM, _HOT))
    lower = cold + (warm - cold) * np.minimum(2 * share, 1)
    colours: npt.NDArray[Any] = lower + (hot - warm) * np.maximum(2 * share - 1, 0)
    return colours


def _plain(word: str) -> str:
    return "".join(filter(str.isalnum, word.casefold()))
