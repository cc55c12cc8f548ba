"""Drawing tokens, against a slow and obvious reference in numpy."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit import SamplingParams
from llavakit.engine.sampler import Draw, Drawn, Sampler, Seen, _choose

Floats = npt.NDArray[np.float64]
CPU = torch.device("cpu")
LOGITS = np.random.default_rng(7).normal(0, 2, 14).astype(np.float32)
SEEN = [0, 3, 3, 9]


def reference(logits: npt.ArrayLike, params: SamplingParams, seen: list[int]) -> Floats:
    """Each token's probability, by the definitions, one after the other.

    ``seen`` is the prompt, and without its first token the answer.
    """
    scores = np.asarray(logits, dtype=np.float64).copy()
    for token, bias in params.logit_bias:
        scores[token] += bias
    for token in set(seen):
        penalty = params.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token in set(seen[1:]):
        scores[token] -= params.presence_penalty + params.frequency_penalty * seen[1:].count(token)
    if params.temperature == 0:
        return np.eye(len(scores))[int(scores.argmax())]
    powers = np.exp((scores - scores.max()) / params.temperature)
    kept = powers / powers.sum()
    kept[kept < params.min_p * kept.max()] = 0
    ranked = sorted(range(len(kept)), key=lambda token: (-kept[token], token))
    if params.top_k:
        kept[ranked[params.top_k :]] = 0
    kept /= kept.sum()
    before = 0.0
    for token in ranked:
        share = kept[token]
        if before >= params.top_p:
            kept[token] = 0
        before += share
    return kept / kept.sum()


def draw(
    rows: npt.ArrayLike,
    params: list[SamplingParams],
    seen: list[int] | None = None,
    forbidden: tuple[int, ...] = (),
    allowed: torch.Tensor | None = None,
) -> list[Drawn]:
    logits = torch.tensor(np.asarray(rows), dtype=torch.float32)
    sampler = Sampler(forbidden, CPU)
    tokens = None if seen is None else Seen(seen, seen[1:])
    return sampler(logits, [Draw(one) for one in params], [tokens] * len(params), allowed)


def test_choosing_never_asks_the_device_for_a_number():
    """On the meta device there are no numbers; the host waits once, for the tokens."""
    logits = torch.empty(4, 14, device="meta")
    params = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=1.0, min_p=0.1),
        SamplingParams(temperature=0.5, top_k=3),
        SamplingParams(temperature=0.5, top_p=0.5, seed=1),
    ]
    chosen, best = _choose(logits, [Draw(one) for one in params])
    assert (chosen.device.type, tuple(chosen.shape)) == ("meta", (4,))
    assert (best.device.type, tuple(best.shape)) == ("meta", (4,))


SETTINGS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 3},
    {"top_k": 1},
    {"top_k": 500},
    {"top_p": 0.6},
    {"top_p": 1e-6},
    {"min_p": 0.2},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.6, "temperature": 0.7},
    {"temperature": 1.4, "top_k": 6, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3},
    {"presence_penalty": 1.5},
    {"frequency_penalty": -0.8, "temperature": 0.7},
    {"logit_bias": {0: 2.5, 4: -100, 9: -1}},
    {
        "logit_bias": {3: 4, 5: 1},
        "repetition_penalty": 1.7,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.9,
        "top_k": 8,
    },
]


@pytest.mark.parametrize("given", SETTINGS, ids=str)
def test_frequencies_are_those_of_the_reference(given: dict):
    params = SamplingParams(**{"temperature": 1.0, **given})
    draws = 6000
    drawn = draw(np.tile(LOGITS, (draws, 1)), [replace(params, seed=s) for s in range(draws)], SEEN)
    counts = np.bincount([one.token for one in drawn], minlength=len(LOGITS))
    expected = reference(LOGITS, params, SEEN) * draws
    assert not counts[expected == 0].any()
    likely = expected > 5
    # Pearson's chi-square lies below mean + 4 standard deviations, seeds being fixed.
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    freedom = likely.sum() - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom) + 1e-9


@settings(max_examples=200, deadline=None)
@given(
    logits=st.lists(st.floats(-8, 8, width=16), min_size=2, max_size=9),
    temperature=st.sampled_from([0, 0.2, 1.0, 3.0]),
    top_k=st.integers(0, 4),
    top_p=st.sampled_from([0.1, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0, 0.1, 0.7]),
    penalty=st.sampled_from([1.0, 1.5]),
    seed=st.integers(0, 100),
)
def test_no_token_is_drawn_that_the_reference_rules_out(
    logits, temperature, top_k, top_p, min_p, penalty, seed
):
    params = SamplingParams(1, temperature, top_p, top_k, min_p, penalty, seed)
    [drawn] = draw([logits], [params], [0])
    # Ties and sums that meet a bound exactly are decided by rounding: allow for both sides.
    loose = replace(params, top_p=min(1.0, top_p * 1.0001), min_p=min_p * 0.9999)
    assert reference(logits, loose, [0])[drawn.token] > 0


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 1000),
    own=st.sampled_from(SETTINGS),
    beside=st.lists(st.sampled_from([*SETTINGS, {"temperature": 0}]), max_size=4),
)
def test_seed_gives_the_same_token_whatever_is_in_the_batch(seed: int, own: dict, beside: list):
    params = SamplingParams(**{"temperature": 1.0, "seed": seed, **own})
    others = [SamplingParams(**{"temperature": 1.0, "seed": 5, **one}) for one in beside]
    alone = draw([LOGITS], [params], SEEN)[0]
    together = draw([*([LOGITS + 1] * len(others)), LOGITS], [*others, params], SEEN)
    assert together[-1] == alone


def test_next_random_number_of_a_sequence_is_its_own():
    sampler = Sampler((), CPU)
    one = Draw(SamplingParams(temperature=1.0, seed=4))
    alone = Draw(SamplingParams(temperature=1.0, seed=4))
    rows = torch.tensor(LOGITS).repeat(2, 1)
    expected = [sampler(rows[:1].clone(), [alone], [None])[0].token for _ in range(20)]
    other = Draw(SamplingParams(temperature=1.0, seed=9))
    drawn = [sampler(rows.clone(), [other, one], [None, None])[1].token for _ in range(20)]
    assert drawn == expected


def test_greedy_takes_the_likeliest_token_and_the_first_of_equals():
    rows = [[0.0, 3.0, 3.0], [2.0, 1.0, 0.0]]
    greedy = SamplingParams(temperature=0)
    assert [one.token for one in draw(rows, [greedy] * 2)] == [1, 0]


def test_repetition_penalty_holds_for_greedy_too():
    params = SamplingParams(temperature=0, repetition_penalty=2.0)
    assert draw([[3.0, 2.0, -1.0]], [params], [0])[0].token == 1
    assert draw([[-1.0, -1.5, -9.0]], [params], [0])[0].token == 1


def test_forbidden_tokens_are_never_drawn():
    best = int(LOGITS.argmax())
    params = [SamplingParams(temperature=t, seed=s) for s in range(200) for t in (0, 5.0)]
    drawn = draw(np.tile(LOGITS, (len(params), 1)), params, forbidden=(best, 2))
    assert not {best, 2} & {one.token for one in drawn}


def test_tokens_that_a_grammar_does_not_allow_are_never_drawn():
    allowed = torch.zeros(3, len(LOGITS), dtype=torch.bool)
    allowed[0, [1, 5]] = True
    allowed[1] = True
    allowed[2, 6] = True
    for seed in range(50):
        params = [SamplingParams(temperature=4.0, seed=seed)] * 3
        tokens = [one.token for one in draw([LOGITS] * 3, params, allowed=allowed)]
        assert tokens[0] in (1, 5) and tokens[2] == 6


class _AlmostOne(random.Random):
    def random(self) -> float:
        return 1 - 2**-53


@pytest.mark.parametrize("given", [{}, {"top_k": 2}, {"top_p": 0.9}], ids=str)
def test_largest_random_number_gives_a_token_that_is_possible(given: dict):
    """In fp32 it would be 1.0, which lies behind the last token."""
    one = Draw(SamplingParams(temperature=1.0, **given))
    one.numbers = _AlmostOne()
    sampler = Sampler((3,), CPU)
    assert sampler(torch.tensor([[1.0, 2.0, 0.5, 9.0]]), [one], [None])[0].token != 3


def test_log_probabilities_are_those_of_the_model_before_any_setting():
    params = SamplingParams(temperature=5.0, top_k=2, seed=1, logprobs=3)
    [drawn] = draw([LOGITS], [params], SEEN, forbidden=(2,))
    scores = LOGITS.astype(np.float64)
    scores[2] = -np.inf
    expected = scores - np.log(np.exp(scores).sum())
    assert drawn.logprob == pytest.approx(expected[drawn.token], abs=1e-5)
    assert [token for token, _ in drawn.top] == list(np.argsort(-expected)[:3])
    assert [value for _, value in drawn.top] == pytest.approx(np.sort(expected)[::-1][:3], abs=1e-5)


def test_alternatives_are_given_only_where_they_were_asked_for():
    rows = [SamplingParams(temperature=0, logprobs=n) for n in (None, 0, 2)]
    drawn = draw([LOGITS] * 3, rows)
    assert drawn[0].logprob is None
    assert drawn[1].logprob is not None and drawn[1].top == ()
    assert len(drawn[2].top) == 2


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-9, 1e9, 1e308])
def test_extreme_temperatures_stay_finite(temperature: float):
    params = [SamplingParams(temperature=temperature, seed=s) for s in range(50)]
    tokens = {one.token for one in draw(np.tile(LOGITS * 100, (50, 1)), params)}
    assert len(tokens) == 1 if temperature < 1 else len(tokens) > 3


def test_what_is_never_drawn_is_not_drawn_at_any_temperature_either():
    best = int(LOGITS.argmax())
    params = [SamplingParams(temperature=1e308, seed=seed) for seed in range(50)]
    drawn = {one.token for one in draw(np.tile(LOGITS, (50, 1)), params, forbidden=(best,))}
    assert best not in drawn and len(drawn) > 3


def test_a_top_k_that_no_float_holds_keeps_all_tokens():
    params = [SamplingParams(temperature=1, top_k=k, seed=3) for k in (len(LOGITS), 10**400)]
    assert len({one.token for one in draw(np.tile(LOGITS, (2, 1)), params)}) == 1


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e300])
def test_extreme_penalties_draw_tokens_that_exist_and_none_that_are_forbidden(
    penalty: float, temperature: float
):
    params = [
        SamplingParams(temperature=temperature, repetition_penalty=penalty, seed=seed)
        for seed in range(20)
    ]
    seen = list(range(len(LOGITS)))
    drawn = draw(np.tile(LOGITS, (20, 1)), params, seen, forbidden=(int(LOGITS.argmax()),))
    assert {one.token for one in drawn} <= set(seen) - {int(LOGITS.argmax())}


def test_a_row_of_nan_harms_no_other_row():
    params = [SamplingParams(temperature=1, seed=1), SamplingParams(temperature=1, seed=1)]
    alone = draw([LOGITS], params[:1])
    broken, beside = draw([LOGITS * np.nan, LOGITS], params)
    assert 0 <= broken.token < len(LOGITS)
    assert beside == alone[0]
