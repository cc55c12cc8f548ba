"""Multi-vector embeddings of images and texts, and the score of one against the other.

An image has a vector for each of its tokens and a query one for each of its words' tokens; their
score is late interaction (MaxSim: ColBERT, https://arxiv.org/abs/2004.12832; over page images:
ColPali, https://arxiv.org/abs/2407.01449). Knows numpy and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llavakit._checks import check_integer, refused
from llavakit.errors import ParameterError

Vectors = npt.NDArray[np.float32]
Places = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """One image or one text.

    Attributes:
        vectors: [tokens, dimensions], fp32, each of length 1.
        places: of an image, [tokens, 4]: the box that each vector stands for, as left, top, right
            and bottom in shares of the image (0 to 1). A vector of no one place (a newline, a view
            of several) has the box of what it summarises. None for a text.
        words: of a text, the token behind each vector, as it reads. Empty for an image.
    """

    vectors: Vectors
    places: Places | None = None
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or not len(self.vectors):
            raise ParameterError(
                f"An embedding's vectors have the shape {self.vectors.shape}; it must be "
                "[tokens, dimensions], with at least one token."
            )

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dense(self) -> Vectors:
        """One vector, [dimensions], of length 1: the mean of all, for stores of single vectors."""
        return _normalised(self.vectors.mean(axis=0))

    def pooled(self, factor: int = 3) -> Embedding:
        """Return a smaller embedding, with one vector for about ``factor`` that are alike.

        Clusters by Ward's method over cosine distances, and the mean of each, as ColPali's
        engine pools tokens (https://arxiv.org/abs/2409.14683). A cluster's box holds all of its
        boxes.

        Args:
            factor: 1 changes nothing.
        """
        check_integer("factor", factor, least=1)
        wanted = max(1, math.ceil(len(self) / factor))
        if wanted == len(self):
            return self
        labels = _clusters(self.vectors, wanted)
        groups = [labels == number for number in np.unique(labels)]
        vectors = np.stack([self.vectors[group].mean(axis=0) for group in groups])
        places = None
        if self.places is not None:
            places = np.stack([_around(self.places[group]) for group in groups])
        return Embedding(_normalised(vectors), places)


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """What embeddings must have in common to be compared.

    Attributes:
        fingerprint: names the weights and the adapter.
        dimensions: length of a vector.
    """

    fingerprint: str
    dimensions: int


class Embedder(Protocol):
    """Embeds images and texts into one space.

    Attributes:
        fingerprint: names the weights and the adapter: embeddings of two fingerprints must not
            be compared.
        dimensions: length of a vector.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def embed(
        self, *, images: Sequence[Any] | None = None, texts: Sequence[str] | None = None
    ) -> list[Embedding]:
        """Embed images (whatever ``llavakit.Image`` takes) or queries; one of the two is given."""


def check_embedder(embedder: Any) -> None:
    """Refuse what is not an :class:`Embedder`."""
    names = ("embed", "fingerprint", "dimensions")
    if isinstance(embedder, type) or not all(hasattr(embedder, name) for name in names):
        raise refused("embedder", embedder, 'an embedder, such as load_embedder("demo") gives')


def maxsim(query: Embedding, page: Embedding) -> float:
    """Return the sum, over the query's vectors, of the best product with one of the page's."""
    return float((query.vectors @ page.vectors.T).max(axis=1).sum())


def _normalised(vectors: npt.NDArray[Any]) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return result


def _around(boxes: Places) -> Places:
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def _clusters(vectors: Vectors, count: int) -> npt.NDArray[np.int64]:
    """Labels of ``count`` clusters of unit vectors: Ward's method on ``1 - cosine``.

    A nearest-neighbour chain over the matrix of distances (Murtagh 1983), with the update of
    Lance and Williams, in O(n^2): tokens of a page are at most some thousands.
    """
    size = len(vectors)
    distance = np.maximum(1.0 - vectors @ vectors.T, 0.0).astype(np.float64) ** 2
    np.fill_diagonal(distance, np.inf)
    weight = np.ones(size)
    alive = np.ones(size, dtype=bool)
    merges: list[tuple[float, int, int]] = []
    chain: list[int] = []
    for _ in range(size - 1):
        if not chain:
            chain.append(int(alive.argmax()))
        while True:
            tip = chain[-1]
            nearest = int(distance[tip].argmin())
            if len(chain) > 1 and distance[tip, chain[-2]] <= distance[tip, nearest]:
                nearest = chain[-2]
                break
            chain.append(nearest)
        one, other = chain.pop(), chain.pop()
        height = distance[one, other]
        merges.append((float(height), one, other))
        first, second = weight[one], weight[other]
        rest = alive.copy()
        rest[[one, other]] = False
        total = first + second + weight[rest]
        joined = (
            (first + weight[rest]) * distance[one, rest]
            + (second + weight[rest]) * distance[other, rest]
            - weight[rest] * height
        ) / total
        distance[other, rest] = distance[rest, other] = joined
        distance[one, :] = distance[:, one] = np.inf
        alive[one] = False
        weight[other] += first
    return _cut(merges, size, count)


def _cut(merges: Sequence[tuple[float, int, int]], size: int, count: int) -> npt.NDArray[np.int64]:
    """Labels after the ``size - count`` lowest merges."""
    leader = np.arange(size)

    def find(one: int) -> int:
        while leader[one] != one:
            leader[one] = leader[leader[one]]
            one = int(leader[one])
        return one

    for _, one, other in sorted(merges, key=lambda merge: merge[0])[: size - count]:
        leader[find(one)] = find(other)
    return np.array([find(one) for one in range(size)], dtype=np.int64)
