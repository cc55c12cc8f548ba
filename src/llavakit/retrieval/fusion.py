"""Two rankings made one: reciprocal rank fusion.

Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
Learning Methods", SIGIR 2009. It looks at ranks alone, so that a MaxSim and a BM25 need no common
scale.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

from llavakit._checks import check_integer, checked
from llavakit.errors import ParameterError

K = 60
"""The constant of the paper: how little the first ranks differ."""

One = TypeVar("One", bound=Hashable)


@checked
def fuse_ranks(rankings: Sequence[Sequence[One]], constant: int = K) -> list[tuple[One, float]]:
    """Return everything that is ranked, with ``sum(1 / (constant + rank))``, the best first.

    Args:
        rankings: each the best first, its first rank being 1, and none with the same twice. What
            a ranking does not have gets nothing from it.
        constant: K of the paper.

    Equal sums stand in the order of the first ranking that has one of them.

    Raises:
        ParameterError: a ranking holds the same twice.
    """
    check_integer("constant", constant, least=1)
    sums: dict[One, float] = {}
    for ranking in rankings:
        if len(set(ranking)) != len(ranking):
            raise ParameterError("A ranking holds the same result twice.")
        for rank, one in enumerate(ranking, 1):
            sums[one] = sums.get(one, 0.0) + 1.0 / (constant + rank)
    return sorted(sums.items(), key=lambda item: -item[1])
