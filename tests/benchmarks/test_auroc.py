"""The figure that says whether confidence separates right readings from wrong ones."""

import random

import pytest

from benchmarks.confidence import auroc


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_share_of_pairs_that_are_in_order_ties_by_half(seed):
    chance = random.Random(seed)
    scored = [(chance.random() < 0.7, chance.randrange(6) / 5) for _ in range(40)]
    pairs = [(one, other) for is_right, one in scored if is_right
             for wrong, other in scored if not wrong]  # fmt: skip
    share = sum((one > other) + (one == other) / 2 for one, other in pairs) / len(pairs)
    assert auroc(scored) == pytest.approx(share, abs=1e-4)


def test_without_a_wrong_one_there_is_none():
    assert auroc([(True, 0.5)]) is None and auroc([]) is None
