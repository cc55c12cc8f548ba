"""MaxSim of one query with many pages, and a coarse form of it that reads a hundredth of the bytes.

A page's vectors are coded by the nearest of some thousand centroids, two bytes a vector. A query's
products with the centroids then stand for those with the vectors: the first stage of PLAID
(Santhanam et al., https://arxiv.org/abs/2205.09707), without its inverted lists: the codes of
100,000 pages are scored in a fraction of a second. The best of them are scored again by their
vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llavakit.embeddings import Vectors

Codes = npt.NDArray[np.uint16]
Ends = npt.NDArray[np.int64]
"""Where the vectors of each page end, in those of all pages."""

_ROUNDS = 4  # of k-means: more of them move no page among the candidates
_AT_ONCE = 2048  # vectors whose products with all centroids are in memory


def score_pages(query: Vectors, vectors: npt.NDArray[Any], ends: Ends) -> npt.NDArray[np.float32]:
    """Return the MaxSim of a query with each of some pages.

    Args:
        query: [words, dimensions].
        vectors: [vectors, dimensions], those of all pages, one page behind the other.
        ends: [pages], rising: each page has at least one vector.
    """
    products = vectors.astype(np.float32) @ query.T
    begins = np.concatenate([[0], ends[:-1]])
    best: npt.NDArray[np.float32] = np.maximum.reduceat(products, begins, axis=0).sum(axis=1)
    return best


def train_centroids(sample: Vectors, count: int, seed: int = 0) -> Vectors:
    """Return ``count`` centroids of a sample of unit vectors: spherical k-means, a few rounds."""
    chosen = np.random.default_rng(seed).choice(len(sample), count, replace=False)
    centroids = sample[np.sort(chosen)].astype(np.float32)
    for _ in range(_ROUNDS):
        nearest = encode(sample, centroids)
        order = np.argsort(nearest, kind="stable")
        present, begins = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(sample[order], begins, axis=0)
        centroids[present] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return centroids


def encode(vectors: npt.NDArray[Any], centroids: Vectors) -> Codes:
    """Return the number of the nearest centroid of each vector."""
    codes = np.empty(len(vectors), dtype=np.uint16)
    for at in range(0, len(vectors), _AT_ONCE):
        part = vectors[at : at + _AT_ONCE].astype(np.float32)
        codes[at : at + len(part)] = (part @ centroids.T).argmax(axis=1)
    return codes


class CoarseScores:
    """A query's products with centroids, as bytes: to order pages, and not to be shown."""

    def __init__(self, query: Vectors, centroids: Vectors) -> None:
        products = centroids @ query.T
        low, high = products.min(axis=0), products.max(axis=0)
        # One scale for all words, or a word without a match would count as much as one with it.
        step = max(float((high - low).max()) / 255, 1e-12)
        self._bytes = np.rint((products - low) / step).astype(np.uint8)

    def of(self, codes: Codes, ends: Ends) -> npt.NDArray[np.int32]:
        """Return a score for each page; arguments as in :func:`score_pages`, codes for vectors."""
        begins = np.concatenate([[0], ends[:-1]])
        lengths = ends - begins
        # Vector by vector for all pages at once, those with most vectors first: the pages that
        # still have one are then a beginning of the rest.
        order = np.argsort(-lengths, kind="stable")
        begins, lengths = begins[order], lengths[order]
        numbers = codes.astype(np.intp)
        # No code is out of range; asking numpy to clip saves it the question, and most of the time.
        best = np.take(self._bytes, numbers[begins], axis=0, mode="clip")
        room = np.empty_like(best)
        left = np.searchsorted(-lengths, -np.arange(1, int(lengths[0])), side="left")
        for place, pages in enumerate(left.tolist(), 1):
            one = room[:pages]
            np.take(self._bytes, numbers[begins[:pages] + place], axis=0, mode="clip", out=one)
            np.maximum(best[:pages], one, out=best[:pages])
        scores = np.empty(len(ends), dtype=np.int32)
        scores[order] = best.sum(axis=1, dtype=np.int32)
        return scores
