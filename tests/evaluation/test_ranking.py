"""Measures of rankings against cases that were worked out by hand, and trec_eval's conventions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit.errors import ParameterError
from llavakit.evaluation import ndcg, ranking, recall

ABC = ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize(
    "rank, expected",
    # 1 / log2(rank + 1): the only relevant page, found at each rank.
    [(1, 1.0), (2, 0.6309297536), (3, 0.5), (4, 0.4306765581), (5, 0.3868528072), (6, 0.0)],
)
def test_ndcg_at_5_of_one_relevant_page_is_the_discount_of_its_rank(rank, expected):
    assert ndcg(ABC, {ABC[rank - 1]: 1}, 5) == pytest.approx(expected, abs=1e-9)


def test_ndcg_of_grades_is_linear_in_them():
    # Found: 1 at rank 1, 0, 3 at rank 3, 0, 2 at rank 5. Ideal: 3, 2, 1.
    found = 1 / 1 + 3 / 2 + 2 / math.log2(6)
    ideal = 3 / 1 + 2 / math.log2(3) + 1 / 2
    grades = {"a": 1, "c": 3, "e": 2}
    assert (found, ideal) == (pytest.approx(3.2737056145), pytest.approx(4.7618595071))
    assert ndcg(ABC, grades, 5) == pytest.approx(0.6874847125, abs=1e-9)
    # With exponential gains (2^grade - 1), which trec_eval does not have, it would be 0.5827.
    exponential = (1 + 7 / 2 + 3 / math.log2(6)) / (7 + 3 / math.log2(3) + 1 / 2)
    assert ndcg(ABC, grades, 5) != pytest.approx(exponential, abs=0.05)


def test_the_ideal_holds_relevant_pages_that_were_not_ranked_and_ends_at_the_depth():
    assert ndcg(["a"], {"a": 1, "x": 1}, 5) == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert ndcg(["x", "a"], {"a": 1, "b": 1, "c": 1}, 1) == 0.0
    assert ndcg(["a", "x"], {"a": 1, "b": 1, "c": 1}, 1) == 1.0
    assert ndcg(ABC, dict.fromkeys("abcdef", 1), 5) == 1.0


def test_grades_below_one_gain_nothing_and_are_no_part_of_the_ideal():
    assert ndcg(["a", "b"], {"a": 0, "b": 1}, 5) == pytest.approx(1 / math.log2(3))
    assert ndcg(["a", "b"], {"a": -2, "b": 1}, 5) == pytest.approx(1 / math.log2(3))
    assert ndcg(["a"], {"a": 0}, 5) == ndcg(["a"], {}, 5) == ndcg([], {"a": 1}, 5) == 0.0


def test_recall_is_the_share_of_all_relevant_pages():
    grades = {"a": 1, "c": 3, "z": 2, "b": 0}
    assert recall(ABC, grades, 1) == pytest.approx(1 / 3)
    assert recall(ABC, grades, 3) == pytest.approx(2 / 3)
    assert recall(ABC, grades, 5) == pytest.approx(2 / 3)
    assert recall(["b"], grades, 5) == 0.0 and recall(ABC, {}, 5) == 0.0


def test_equal_scores_are_ranked_by_the_last_id_first():
    # As strings: "9" is behind "10".
    assert ranking({"10": 0.5, "9": 0.5, "2": 0.5, "1": 0.7}) == ["1", "9", "2", "10"]


def test_scores_are_compared_in_single_precision():
    assert ranking({"a": 1.0 + 1e-9, "b": 1.0}) == ["b", "a"]
    assert ranking({"a": 1.0 + 1e-6, "b": 1.0}) == ["a", "b"]
    assert ranking({"a": -1.0, "b": 0.0, "c": -2.0}) == ["b", "a", "c"]


@pytest.mark.parametrize("depth", [0, -1, 2.5, True])
def test_a_depth_that_is_none_is_refused(depth):
    for measure in (ndcg, recall):
        with pytest.raises(ParameterError):
            measure(ABC, {"a": 1}, depth)


@given(
    st.dictionaries(st.sampled_from(ABC), st.integers(-1, 4)),
    st.permutations(ABC),
    st.integers(1, 7),
)
def test_no_ranking_is_better_than_the_ideal_and_a_swap_towards_it_helps(grades, ranked, depth):
    ideal = sorted(ABC, key=lambda one: -grades.get(one, 0))
    best = 1.0 if any(grade > 0 for grade in grades.values()) else 0.0
    assert ndcg(ideal, grades, depth) == pytest.approx(best)
    for at in range(len(ranked) - 1):
        if grades.get(ranked[at], 0) < grades.get(ranked[at + 1], 0):
            swapped = list(ranked)
            swapped[at], swapped[at + 1] = swapped[at + 1], swapped[at]
            assert ndcg(ranked, grades, depth) <= ndcg(swapped, grades, depth) + 1e-12
            assert recall(ranked, grades, depth) <= recall(swapped, grades, depth)
