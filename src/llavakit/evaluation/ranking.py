"""Measures of a ranking, as trec_eval counts them (https://github.com/usnistgov/trec_eval).

ViDoRe's own figures come from there, by pytrec_eval: gains are the judged grades themselves
(linear), the discount is log2 of the rank + 1, and equal scores are ranked by the page's id, the
last in the order of strings first. Scores are compared in single precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from llavakit._checks import check_integer, checked


@checked
def ranking(scores: Mapping[str, float]) -> list[str]:
    """Return ids from the best score to the worst; of equal scores, the last id comes first."""
    by_id = sorted(scores, reverse=True)
    return sorted(by_id, key=lambda one: -np.float32(scores[one]))


@checked
def ndcg(ranked: Sequence[str], relevance: Mapping[str, int], depth: int) -> float:
    """Return the normalised discounted cumulative gain of the first ranks, from 0 to 1.

    Relevant pages that are not ranked at all count in the ideal, and grades below 1 nowhere.

    Args:
        ranked: ids of pages, the best first, each once.
        relevance: grades of pages by their ids.
        depth: ranks that count, at least 1.

    Returns:
        0 where no page is relevant.
    """
    check_integer("depth", depth, least=1)
    ideal = sorted((grade for grade in relevance.values() if grade > 0), reverse=True)
    best = _discounted(ideal[:depth])
    if not best:
        return 0.0
    return _discounted([max(0, relevance.get(one, 0)) for one in ranked[:depth]]) / best


@checked
def recall(ranked: Sequence[str], relevance: Mapping[str, int], depth: int) -> float:
    """Return the share of all relevant pages that the first ranks hold; 0 where there are none.

    Args:
        ranked: ids of pages, the best first, each once.
        relevance: grades of pages by their ids; from 1 on a page is relevant.
        depth: ranks that count, at least 1.
    """
    check_integer("depth", depth, least=1)
    relevant = {one for one, grade in relevance.items() if grade > 0}
    return len(relevant.intersection(ranked[:depth])) / len(relevant) if relevant else 0.0


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
