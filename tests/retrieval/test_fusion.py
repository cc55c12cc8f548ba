import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit.errors import ParameterError
from llavakit.retrieval import fuse_ranks


def test_sums_of_reciprocal_ranks_worked_by_hand():
    fused = fuse_ranks([["a", "b", "c"], ["c", "a", "d"]])
    assert [one for one, _ in fused] == ["a", "c", "b", "d"]
    assert [round(score, 8) for _, score in fused] == [
        round(1 / 61 + 1 / 62, 8), round(1 / 63 + 1 / 61, 8), round(1 / 62, 8), round(1 / 63, 8),
    ]  # fmt: skip


def test_two_middling_ranks_win_over_one_first_rank_with_the_constant_of_the_paper():
    others = [f"x{number}" for number in range(9)]
    first, second = ["a", *others[:4], "b"], ["c", *others[4:], "b"]
    assert fuse_ranks([first, second])[0][0] == "b"  # 2/66 and 2/67 against 1/61
    assert fuse_ranks([first, second], constant=1)[0][0] == "a"  # 1/7 + 1/8 against 1/2


def test_equal_sums_keep_the_order_of_the_first_ranking():
    assert [one for one, _ in fuse_ranks([["a", "b"], ["b", "a"]])] == ["a", "b"]
    assert [one for one, _ in fuse_ranks([["a"], ["b"]])] == ["a", "b"]


def test_one_ranking_stays_as_it_is_and_none_gives_none():
    assert [one for one, _ in fuse_ranks([["c", "a", "b"], []])] == ["c", "a", "b"]
    assert fuse_ranks([]) == [] and fuse_ranks([[], []]) == []


@pytest.mark.parametrize("constant", [0, -1, 1.5, True])
def test_a_constant_that_makes_no_sense_is_refused(constant):
    with pytest.raises(ParameterError, match="constant is"):
        fuse_ranks([["a"]], constant)


def test_a_ranking_with_the_same_twice_is_refused():
    with pytest.raises(ParameterError, match="same result twice"):
        fuse_ranks([["a", "b", "a"]])


@given(st.lists(st.lists(st.integers(0, 20), unique=True), max_size=3))
def test_every_result_comes_once_and_in_falling_order(rankings):
    fused = fuse_ranks(rankings)
    assert {one for one, _ in fused} == {one for ranking in rankings for one in ranking}
    assert len(fused) == len({one for one, _ in fused})
    scores = [score for _, score in fused]
    assert scores == sorted(scores, reverse=True)
