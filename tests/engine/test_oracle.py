"""The central law: greedy output equals ``transformers.generate`` token for token.

Whatever is batched, chunked, cached, evicted, cancelled or repeated beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

import llavakit
from llavakit import Image, Message, SamplingParams
from llavakit.demo import checkpoint_path
from llavakit.engine.sequence import Sequence
from llavakit.kernels.native import SWITCH, kernels
from llavakit.local import LocalBackend
from tests.tiny import TinyModel, tiny_llava, tiny_llava_next

SIZES = [(20, 20), (40, 16), (16, 48), (33, 31), (64, 64)]
WORDS = ["What is it?", "hi", "And now\nin two lines", "你好🐱", "a" * 50]


@functools.cache
def picture(number: int) -> PILImage.Image:
    """A picture of noise; each number has its own pixels and size."""
    width, height = SIZES[number % len(SIZES)]
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PILImage.fromarray(noise)


class Pair:
    """A backend and the reference, with every answer of the reference kept.

    Args:
        tiny: the checkpoint.
        longest: tokens of an answer.
        settings: of the engine. Small on purpose: prompts are chunked, prefixes evicted,
            pictures encoded again.
    """

    def __init__(self, tiny: TinyModel, longest: int, **settings: Any) -> None:
        self.tiny = tiny
        self.longest = longest
        self.static = "static_decode" in settings
        self.backend = llavakit.load(tiny.path, max_concurrency=4, **settings)
        self.expected = functools.cache(self._expected)
        self.checked = 0

    def _expected(self, turns: tuple[tuple[str, tuple[str | int, ...]], ...]) -> list[int]:
        conversation = [
            (role, [p if isinstance(p, str) else picture(p) for p in parts])
            for role, parts in turns
        ]
        return self.tiny.generate(conversation, self.longest)


SMALL = {
    "prefill_chunk": 24,
    "kv_cache_bytes": 700 * 2 * 2 * 2 * 8 * 4,
    "image_cache_bytes": 40 * 32 * 4,
}


def llava(path: Path) -> Pair:
    return Pair(tiny_llava(path, context=512), 24, **SMALL)


def llava_next(path: Path) -> Pair:
    return Pair(tiny_llava_next(path, context=512), 24, **SMALL)


def llava_in_static_shapes(path: Path) -> Pair:
    return Pair(tiny_llava(path, context=512), 24, static_decode=True, **SMALL)


def llava_ahead(path: Path) -> Pair:
    return Pair(tiny_llava(path, context=512), 24, lookahead=True, **SMALL)


def llava_on_a_devices_path(path: Path) -> Pair:
    """As on a GPU, but for its kernels: no compiled ones of the processor (see the fixture)."""
    return Pair(tiny_llava(path, context=512), 24, lookahead=True, static_decode=True, **SMALL)


def llava_in_torch(path: Path) -> Pair:
    """As where no compiled kernels are (see the fixture)."""
    return llava(path)


def llava_on_two_threads(path: Path) -> Pair:
    return llava(path)


def demo(path: Path) -> Pair:
    """A trained model, whose answers are far from random; 64 tokens a picture."""
    return Pair(
        TinyModel(checkpoint_path()),
        12,
        prefill_chunk=90,
        kv_cache_bytes=1600 * 4 * 2 * 2 * 64 * 4,
        image_cache_bytes=150 * 192 * 4,
    )


KINDS = [
    llava,
    llava_next,
    pytest.param(llava_in_static_shapes, marks=pytest.mark.slow),
    pytest.param(llava_ahead, marks=pytest.mark.slow),
    llava_on_a_devices_path,  # which is both, and more
    llava_in_torch,
    llava_on_two_threads,
    demo,
]


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        if request.param in (llava_in_torch, llava_on_a_devices_path):
            patch.setenv(SWITCH, "0")
        kernels.cache_clear()
        if request.param is llava_on_two_threads:
            torch.set_num_threads(2)
        pair = request.param(tmp_path_factory.mktemp("oracle"))
        yield pair
        pair.backend.close()
    kernels.cache_clear()
    torch.set_num_threads(threads)


def submitted(backend: llavakit.Backend, messages: list[Message], max_tokens: int) -> tuple:
    """The stream of a request and the engine's own record of it."""
    assert isinstance(backend, LocalBackend)
    loop = backend._get_engine()._loop
    caught: list[Sequence] = []
    submit = loop.submit

    def watch(sequence: Sequence) -> None:
        caught.append(sequence)
        submit(sequence)

    loop.submit = watch  # type: ignore[method-assign]
    try:
        stream = backend.stream(messages, SamplingParams(temperature=0, max_tokens=max_tokens))
    finally:
        del loop.submit
    return stream, caught[0]


parts = st.lists(st.sampled_from([*WORDS, 0, 1, 2, 3, 4]), min_size=1, max_size=3).map(tuple)
conversations = st.lists(parts, min_size=1, max_size=3).map(
    lambda said: tuple(
        (("user", "assistant")[i % 2], tuple(p for p in one if i % 2 == 0 or isinstance(p, str)))
        for i, one in enumerate(said[: len(said) - (len(said) + 1) % 2])
    )
)
requests = st.lists(
    st.tuples(conversations, st.integers(1, 24), st.one_of(st.none(), st.integers(0, 5))),
    min_size=1,
    max_size=6,
)


@pytest.mark.timeout(600)  # hundreds of reference answers
@settings(
    max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(requests)
def test_greedy_equals_generate(pair: Pair, requests) -> None:
    running = []
    for turns, most, cancel_after in requests:
        max_tokens = min(most, pair.longest)
        messages = [
            Message(role, [p if isinstance(p, str) else Image(picture(p)) for p in said])
            for role, said in turns
        ]
        stream, sequence = submitted(pair.backend, messages, max_tokens)
        running.append((turns, max_tokens, cancel_after, stream, sequence))
    for turns, max_tokens, cancel_after, stream, sequence in running:
        expected = pair.expected(turns)[:max_tokens]
        if cancel_after is not None:
            for _, _chunk in zip(range(cancel_after), stream, strict=False):
                pass
            stream.close()
        else:
            chunks = list(stream)
            drawn = sequence.tokens[sequence.prompt_length :]
            assert drawn == expected
            assert chunks[-1].usage.completion_tokens == len(expected)
            reason = "stop" if expected[-1] == 2 else "length"
            assert chunks[-1].finish_reason == reason
        pair.checked += 1


def test_pictures_change_the_answer(pair: Pair) -> None:
    """The oracle would be blind if the random model did not look at its pictures."""
    answers = {tuple(pair.expected((("user", (number, "What is it?")),))) for number in range(5)}
    assert len(answers) >= 4


def test_oracle_has_seen_all_that_it_speaks_of(pair: Pair) -> None:
    assert pair.checked >= 200
    stats = pair.backend.stats()
    assert min(stats["cached_tokens"], stats["image_cache_hits"], stats["cancelled"]) > 0
    assert stats["images_encoded"] > 5, "the image cache was full at times"
    assert bool(stats["captured_steps"] and stats["static_steps"]) == pair.static


def test_nothing_is_left_when_all_have_ended(pair: Pair) -> None:
    assert isinstance(pair.backend, LocalBackend)
    pair.backend.generate("wait for the cancelled ones", SamplingParams(max_tokens=1))
    scheduler = pair.backend._get_engine()._loop.scheduler
    assert scheduler.idle
    scheduler.check_integrity()
    # Halving a failed pass would hide a bug of ours: the answers would still be right.
    assert pair.backend.stats()["halved_steps"] == 0
