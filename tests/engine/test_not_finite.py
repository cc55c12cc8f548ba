"""Scores that are not finite fail their own request with a sentence, and no other one."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

import llavakit
from llavakit import Image, Message, SamplingParams
from llavakit.engine.sampler import Draw, Sampler, Seen
from llavakit.errors import EngineError
from tests.tiny import TinyModel, tiny_llava

GREEDY = SamplingParams(temperature=0, max_tokens=8)
SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "integer"}},
    "required": ["total"],
}
ASKED = {
    "greedy": GREEDY,
    "sampled": SamplingParams(temperature=0.7, top_p=0.9, max_tokens=8, seed=1),
    "penalised": SamplingParams(temperature=0, repetition_penalty=1.3, max_tokens=8),
    "log probabilities": SamplingParams(temperature=0, max_tokens=8, logprobs=3),
    "schema": SamplingParams(temperature=0, max_tokens=30, json_schema=SCHEMA),
}
ENGINES: dict[str, dict[str, Any]] = {
    "usual": {},
    "on a device's path": {"static_decode": True, "lookahead": True},
}


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A checkpoint in which the letter q has an embedding of NaN, and no other token has."""
    tiny = tiny_llava(tmp_path_factory.mktemp("poisoned"))
    file = tiny.path / "model.safetensors"
    weights = load_file(file)
    (name,) = (one for one in weights if "embed_tokens" in one)
    weights[name][5 + ord("q")] = math.nan
    save_file(weights, file, metadata={"format": "pt"})
    return tiny


@pytest.fixture(scope="module", params=list(ENGINES))
def backend(request: pytest.FixtureRequest, poisoned: TinyModel) -> Iterator[llavakit.Backend]:
    backend = llavakit.load(poisoned.path, max_concurrency=4, **ENGINES[request.param])
    yield backend
    backend.close()


@pytest.mark.parametrize("how", list(ASKED))
def test_a_request_whose_scores_are_nan_fails_and_says_what_to_try(
    backend: llavakit.Backend, how: str
):
    with pytest.raises(EngineError, match=r"not finite.*bfloat16.*float32"):
        backend.generate("q", ASKED[how])


def test_other_requests_of_the_batch_are_answered_as_alone(backend: llavakit.Backend):
    # A random model may answer q by itself; with this image it does not.
    noise = PILImage.frombytes("RGB", (40, 30), random.Random(1).randbytes(40 * 30 * 3))
    good = [[Message("user", [Image(noise), text])] for text in ("Hi", "What is it?", "Why?")]
    alone = [backend.generate(one, GREEDY).text for one in good]
    for _ in range(3):
        streams = []
        for one in good:
            bad = [Message("user", [Image(noise), "Is it q?"])]
            streams += [backend.stream(bad, GREEDY), backend.stream(one, GREEDY)]
        texts, failed = [], 0
        for stream in streams:
            try:
                texts.append("".join(chunk.text for chunk in stream))
            except EngineError:
                failed += 1
        assert (texts, failed) == (alone, len(good))
    # What the failed ones computed is not taken as a beginning by those that come later.
    assert [backend.generate(one, GREEDY).text for one in good] == alone


@pytest.mark.parametrize("params", list(ASKED.values()), ids=list(ASKED))
@pytest.mark.parametrize("bad", ["one nan", "all nan", "infinite", "all minus infinity"])
def test_only_the_rows_that_are_not_finite_are_marked(bad: str, params: SamplingParams):
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    at, value = {
        "one nan": (slice(4, 5), math.nan),
        "all nan": (slice(None), math.nan),
        "infinite": (slice(4, 5), math.inf),
        "all minus infinity": (slice(None), -math.inf),
    }[bad]
    logits[1, at] = value
    seen = Seen([4, 5], [6])
    drawn = Sampler([0, 1], torch.device("cpu"))(
        logits, [Draw(params)] * 3, [seen] * 3 if params.repetition_penalty != 1 else ()
    )
    assert [one.finite for one in drawn] == [True, False, True]
    assert all(0 <= one.token < 20 for one in drawn)


def test_a_grammar_whose_tokens_are_all_ruled_out_has_no_answer():
    logits = torch.zeros(2, 8)
    logits[0, 3] = -math.inf
    allowed = torch.zeros(2, 8, dtype=torch.bool)
    allowed[:, 3] = True
    drawn = Sampler([0], torch.device("cpu"))(logits, [Draw(GREEDY)] * 2, allowed=allowed)
    assert [(one.finite, one.token) for one in drawn][1] == (True, 3)
    assert not drawn[0].finite


def test_an_image_of_a_broken_tower_fails_and_words_are_answered(tmp_path: Path):
    tiny = tiny_llava(tmp_path / "m")
    file = tiny.path / "model.safetensors"
    weights = load_file(file)
    name = next(one for one in weights if "multi_modal_projector.linear_2.weight" in one)
    weights[name][0, 0] = math.nan
    save_file(weights, file, metadata={"format": "pt"})
    backend = llavakit.load(tiny.path)
    try:
        with pytest.raises(EngineError, match="not finite"):
            backend.ask(PILImage.new("RGB", (40, 30), "red"), "What?", temperature=0, max_tokens=4)
        assert backend.generate("Hi", GREEDY).usage.completion_tokens >= 1
    finally:
        backend.close()


def test_an_image_that_fails_harms_no_request_beside_it(tmp_path: Path):
    tiny = tiny_llava(tmp_path / "m")
    file = tiny.path / "model.safetensors"
    weights = load_file(file)
    # Finite, but what the tower computes with it is not.
    name = next(one for one in weights if "multi_modal_projector.linear_1.weight" in one)
    weights[name].fill_(3e38)
    save_file(weights, file, metadata={"format": "pt"})
    backend = llavakit.load(tiny.path, max_concurrency=4)
    try:
        alone = backend.generate("Hi", GREEDY).text
        image = Image(PILImage.new("RGB", (40, 30), "red"))
        bad = [backend.stream([Message("user", [image, "What?"])], GREEDY) for _ in range(2)]
        good = [backend.stream("Hi", GREEDY) for _ in range(2)]
        assert ["".join(chunk.text for chunk in one) for one in good] == [alone] * 2
        for one in bad:
            with pytest.raises(EngineError, match="not finite"):
                list(one)
    finally:
        backend.close()


def test_activations_that_overflow_fail_their_request(tmp_path: Path):
    tiny = tiny_llava(tmp_path / "m")
    file = tiny.path / "model.safetensors"
    weights = load_file(file)
    name = next(one for one in weights if "language" in one and "mlp.down_proj" in one)
    weights[name].fill_(3e38)
    save_file(weights, file, metadata={"format": "pt"})
    backend = llavakit.load(tiny.path)
    try:
        with pytest.raises(EngineError, match="not finite"):
            backend.generate("Hi", GREEDY)
    finally:
        backend.close()


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_packed_weights_beside_a_nan_fail_the_request_that_meets_it(poisoned: TinyModel, bits: str):
    backend = llavakit.load(poisoned.path, quantization=bits, device="cpu")
    try:
        with pytest.raises(EngineError, match="not finite"):
            backend.generate("q", GREEDY)
    finally:
        backend.close()
