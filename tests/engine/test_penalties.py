"""Penalties and biases, against the same sums over the reference's logits, token by token."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from llavakit import Message, SamplingParams
from llavakit.engine import sequence as records
from llavakit.engine.config import EngineConfig
from llavakit.engine.engine import Engine
from llavakit.errors import ParameterError
from llavakit.model.llava import Llava
from llavakit.model.loader import Reader, load_reader, load_weights
from llavakit.streams import gather
from llavakit.values import Completion, Request
from tests.tiny import TinyModel

GREEDY = SamplingParams(temperature=0, max_tokens=16)
SETTINGS = [
    {},
    {"presence_penalty": 1.3},
    {"presence_penalty": -2},
    {"frequency_penalty": 0.7},
    {"frequency_penalty": -1.1, "presence_penalty": 2},
    {"logit_bias": {100: 3.5, "104": -9, 2: 1}},
    {
        "logit_bias": {n: n % 7 - 3 for n in range(5, 200)},
        "repetition_penalty": 1.4,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.9,
    },
]
QUESTIONS = ["hi", "What is it?", "And now\nin two lines", "a" * 40]


@pytest.fixture(scope="module")
def reader(tiny: TinyModel) -> Reader:
    return load_reader(tiny.path)


@pytest.fixture(scope="module")
def llava(reader: Reader) -> Llava:
    return load_weights(reader, device="cpu", dtype="float32")


Make = Callable[..., Engine]


@pytest.fixture
def make(reader: Reader, llava: Llava) -> Iterator[Make]:
    made = []

    def make(**settings: Any) -> Engine:
        made.append(Engine(reader, EngineConfig("tiny", max_concurrency=8, **settings), llava))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


class Asked:
    """A request under way, and the engine's own record of it."""

    def __init__(self, engine: Engine, text: str, params: SamplingParams) -> None:
        caught: list[records.Sequence] = []
        submit = engine._loop.submit

        def watch(sequence: records.Sequence) -> None:
            caught.append(sequence)
            submit(sequence)

        engine._loop.submit = watch  # type: ignore[method-assign]
        request = Request((Message("user", [text]),), params)
        try:
            self._stream = engine.submit(request, lambda image: pytest.fail("no pictures here"))
        finally:
            del engine._loop.submit
        [self.record] = caught

    def completion(self) -> Completion:
        return gather(self._stream)

    @property
    def prompt(self) -> list[int]:
        return self.record.tokens[: self.record.prompt_length]

    def tokens(self) -> list[int]:
        """Of the answer, when it has ended."""
        self.completion()
        return self.record.tokens[self.record.prompt_length :]


def tokens(engine: Engine, params: SamplingParams, text: str = "hi") -> list[int]:
    return Asked(engine, text, params).tokens()


def reference(tiny: TinyModel, prompt: list[int], params: SamplingParams) -> list[int]:
    """Greedy tokens by the definitions, over the logits of transformers' model."""
    answer: list[int] = []
    while len(answer) < params.max_tokens and 2 not in answer:
        with torch.no_grad():
            scores = tiny.model(input_ids=torch.tensor([prompt + answer])).logits[0, -1].double()
        scores[tiny.forbidden] = -torch.inf
        for token, bias in dict(params.logit_bias).items():
            scores[token] += bias
        for token in {*prompt, *answer}:
            penalty = params.repetition_penalty
            scores[token] = (
                scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
            )
        for token, count in Counter(answer).items():
            scores[token] -= params.presence_penalty + params.frequency_penalty * count
        answer.append(int(scores.argmax()))
    return answer


@pytest.mark.parametrize(
    "settings",
    [{}, {"lookahead": True}, {"lookahead": True, "static_decode": True}],
    ids=["plain", "ahead", "ahead in static shapes"],
)
def test_greedy_tokens_of_a_mixed_batch_are_those_of_the_definitions(
    tiny: TinyModel, make: Make, settings: dict[str, Any]
) -> None:
    engine = make(**settings)
    params = [replace(GREEDY, **one) for one in SETTINGS]
    asked = [
        Asked(engine, QUESTIONS[number % len(QUESTIONS)], one) for number, one in enumerate(params)
    ]
    drawn = [one.tokens() for one in asked]
    assert drawn == [reference(tiny, one.prompt, p) for one, p in zip(asked, params, strict=True)]
    assert len({tuple(one) for one in drawn}) == len(drawn)


def test_tokens_of_the_prompt_are_not_penalised(tiny: TinyModel, make: Make) -> None:
    engine = make()
    penalised = replace(GREEDY, presence_penalty=2, frequency_penalty=2, max_tokens=1)
    for text in QUESTIONS:
        assert tokens(engine, penalised, text) == tokens(
            engine, replace(GREEDY, max_tokens=1), text
        )


def test_a_frequency_penalty_ends_repetition(make: Make) -> None:
    engine = make()
    rewarded = replace(GREEDY, frequency_penalty=-2, presence_penalty=-2, max_tokens=40)
    most = [
        max(Counter(tokens(engine, one)).values())
        for one in (rewarded, replace(rewarded, frequency_penalty=2, presence_penalty=2))
    ]
    assert most[0] > 3 * most[1]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_bias_of_100_forces_a_token_and_of_minus_100_forbids_it(
    make: Make, temperature: float
) -> None:
    engine = make()
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=12)
    assert tokens(engine, replace(params, logit_bias={"110": 100})) == [110] * 12
    free = set(tokens(engine, params))
    banned = replace(params, logit_bias=dict.fromkeys(free, -100))
    assert not free & set(tokens(engine, banned))


def test_a_bias_for_the_stop_token_ends_the_answer(make: Make) -> None:
    answer = Asked(make(), "hi", replace(GREEDY, logit_bias={2: 100})).completion()
    assert (answer.text, answer.finish_reason) == ("", "stop")


def test_a_grammar_holds_whatever_is_biased(make: Make, reader: Reader) -> None:
    engine = make()
    y, n, z = (reader.tokenizer.tokenizer.convert_tokens_to_ids(f"<0x{ord(c):02X}>") for c in "ynz")
    biased = {
        "no": {y: -100, n: 5},
        "yes": {y: 100},
        "(yes|no)": {y: -100, n: -100, z: 100, 2: 100},
    }
    for expected, bias in biased.items():
        params = replace(GREEDY, grammar="(yes|no)", logit_bias=bias, presence_penalty=2)
        text = Asked(engine, "hi", params).completion().text
        assert re.fullmatch(expected, text), (bias, text)


def test_log_probabilities_are_the_models_own(make: Make) -> None:
    engine = make()
    plain = replace(GREEDY, max_tokens=1, logprobs=3)
    shifted = replace(plain, logit_bias={110: 100}, presence_penalty=1, frequency_penalty=1)
    one, other = (
        Asked(engine, "hi", params).completion().logprobs[0] for params in (plain, shifted)
    )
    assert [score for _, score in one.top] == pytest.approx([score for _, score in other.top])
    assert other.logprob < one.logprob - 1e-3


def test_only_penalties_keep_a_step_from_being_launched_ahead(make: Make) -> None:
    engine = make(lookahead=True)

    def looks_back(**given: Any) -> bool:
        return bool(
            Asked(engine, "hi", replace(GREEDY, max_tokens=1, **given)).record.answer.looks_back
        )

    assert not looks_back()
    assert not looks_back(presence_penalty=0, frequency_penalty=0.0, logit_bias={})
    assert not looks_back(logit_bias={5: 1})
    assert looks_back(presence_penalty=0.1)
    assert looks_back(frequency_penalty=-0.1)


def test_a_seed_gives_the_same_answer_whatever_is_penalised_beside_it(make: Make) -> None:
    engine = make()
    own = [
        SamplingParams(temperature=1.2, seed=number, max_tokens=14, **given)
        for number, given in enumerate(SETTINGS)
    ]
    alone = [tokens(engine, one) for one in own]
    together = [Asked(engine, "hi", one) for one in own]
    assert [one.tokens() for one in together] == alone


def test_a_token_beyond_the_vocabulary_is_refused_before_anything_runs(make: Make) -> None:
    engine = make()
    with pytest.raises(ParameterError, match=r"logit_bias names the token 264.*ends at 263"):
        tokens(engine, replace(GREEDY, logit_bias={264: 1}))
    assert tokens(engine, replace(GREEDY, logit_bias={263: 1}, max_tokens=1))
    assert engine.stats()["requests"] == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"presence_penalty": 2.1}, "presence_penalty is 2.1"),
        ({"frequency_penalty": "1"}, "frequency_penalty is '1'"),
        ({"logit_bias": {"x": 1}}, "token id of logit_bias is 'x'"),
        ({"logit_bias": {-1: 1}}, "token id of logit_bias is -1"),
        ({"logit_bias": {True: 1}}, "token id of logit_bias is True"),
        ({"logit_bias": {"3": 1, 3: 2}}, "names the token 3 twice"),
        ({"logit_bias": {3: 101}}, "logit_bias of the token 3 is 101"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias of the token 3 is nan"),
        ({"logit_bias": {"9" * 5000: 1}}, "token id of logit_bias is"),
        ({"logit_bias": [3]}, "logit_bias is"),
        ({"logit_bias": "3"}, "logit_bias is '3'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_penalty_or_bias_is_refused_by_name(
    given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ParameterError, match=sentence):
        SamplingParams(**given)


def test_equal_biases_are_equal_however_they_are_written() -> None:
    params = SamplingParams(logit_bias={"5": 1, 3: -100})
    assert params == SamplingParams(logit_bias={3: -100, 5: 1})
    assert hash(params) == hash(replace(params, logit_bias=params.logit_bias))
    assert SamplingParams(logit_bias=None) == SamplingParams()  # type: ignore[arg-type]
