"""The central law: greedy output equals ``transformers.generate`` token for token.

Whatever is batched, chunked, cached, evicted, cancelled or repeated beside it. Here is what checks
it; which models and which kinds of engine are checked stands in ``test_oracle*.py``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from pytest import MonkeyPatch

import llavakit
from llavakit import Image, Message, SamplingParams
from llavakit.engine.sequence import Sequence
from llavakit.kernels.native import SWITCH, kernels
from llavakit.local import LocalBackend
from tests.tiny import TinyModel

SIZES = [(20, 20), (40, 16), (16, 48), (33, 31), (64, 64)]
WORDS = ["What is it?", "hi", "And now\nin two lines", "你好🐱", "a" * 50]

SMALL = {
    "prefill_chunk": 24,
    "kv_cache_bytes": 700 * 2 * 2 * 2 * 8 * 4,
    "image_cache_bytes": 40 * 32 * 4,
}
"""For tiny models: prompts are chunked, prefixes evicted, images encoded again."""

ALL_CASES = 100
FEWER_CASES = 40
"""A third of the requests of all cases: the first lists are short."""

Turns = tuple[tuple[str, tuple[str | int, ...]], ...]


@functools.cache
def picture(number: int) -> PILImage.Image:
    """An image of noise; each number has its own pixels and size."""
    width, height = SIZES[number % len(SIZES)]
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PILImage.fromarray(noise)


class Reference:
    """What ``transformers.generate`` answers; every answer is kept, for all kinds of engine.

    Args:
        tiny: the checkpoint.
        longest: tokens of an answer.
    """

    def __init__(self, tiny: TinyModel, longest: int) -> None:
        self.tiny = tiny
        self.longest = longest
        self.answer = functools.cache(self._answer)

    def _answer(self, turns: Turns) -> list[int]:
        conversation = [
            (role, [p if isinstance(p, str) else picture(p) for p in parts])
            for role, parts in turns
        ]
        return self.tiny.generate(conversation, self.longest)


@dataclass(frozen=True)
class Kind:
    """A kind of engine.

    Attributes:
        cases: how many lists of requests it is asked.
        settings: of the engine, small on purpose.
        compiled: with the processor's compiled kernels, or as where there are none.
        threads: of torch; None leaves what is.
    """

    cases: int = ALL_CASES
    settings: Mapping[str, Any] = field(default_factory=lambda: SMALL)
    compiled: bool = True
    threads: int | None = None

    @contextlib.contextmanager
    def on(self, reference: Reference) -> Iterator[Pair]:
        """An engine of this kind beside the reference."""
        threads = torch.get_num_threads()
        with MonkeyPatch.context() as patch:
            if not self.compiled:
                patch.setenv(SWITCH, "0")
            kernels.cache_clear()
            torch.set_num_threads(self.threads or threads)
            pair = Pair(reference, self)
            try:
                yield pair
            finally:
                pair.backend.close()
        kernels.cache_clear()
        torch.set_num_threads(threads)


class Pair:
    """A backend and the reference."""

    def __init__(self, reference: Reference, kind: Kind) -> None:
        self.reference = reference
        self.cases = kind.cases
        self.static = "static_decode" in kind.settings
        self.backend = llavakit.load(reference.tiny.path, max_concurrency=4, **kind.settings)
        self.checked = 0


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


def check_requests(pair: Pair) -> None:
    """Lists of requests that run together; all lists meet the same caches, one after the other."""

    @settings(
        max_examples=pair.cases,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(requests)
    def law(requests: list[tuple[Turns, int, int | None]]) -> None:
        _check_together(pair, requests)

    law()


def _check_together(pair: Pair, requests: list[tuple[Turns, int, int | None]]) -> None:
    running = []
    for turns, most, cancel_after in requests:
        max_tokens = min(most, pair.reference.longest)
        messages = [
            Message(role, [p if isinstance(p, str) else Image(picture(p)) for p in said])
            for role, said in turns
        ]
        stream, sequence = submitted(pair.backend, messages, max_tokens)
        running.append((turns, max_tokens, cancel_after, stream, sequence))
    for turns, max_tokens, cancel_after, stream, sequence in running:
        if cancel_after is not None:
            for _, _chunk in zip(range(cancel_after), stream, strict=False):
                pass
            stream.close()
        else:
            chunks = list(stream)
            expected = pair.reference.answer(turns)[:max_tokens]
            drawn = sequence.tokens[sequence.prompt_length :]
            assert drawn == expected
            assert chunks[-1].usage.completion_tokens == len(expected)
            reason = "stop" if expected[-1] == 2 else "length"
            assert chunks[-1].finish_reason == reason
        pair.checked += 1


class GreedyOracle:
    """The tests of each kind, in this order; subclass it where there is a fixture ``pair``."""

    def test_greedy_equals_generate(self, pair: Pair) -> None:
        check_requests(pair)

    def test_pictures_change_the_answer(self, pair: Pair) -> None:
        """The oracle would be blind if the random model did not look at its images."""
        asked = [(("user", (number, "What is it?")),) for number in range(5)]
        assert len({tuple(pair.reference.answer(turns)) for turns in asked}) >= 4

    def test_oracle_has_seen_all_that_it_speaks_of(self, pair: Pair) -> None:
        assert pair.checked >= 2 * pair.cases
        stats = pair.backend.stats()
        assert min(stats["cached_tokens"], stats["image_cache_hits"], stats["cancelled"]) > 0
        assert stats["images_encoded"] > 5, "the image cache was full at times"
        assert bool(stats["captured_steps"] and stats["static_steps"]) == pair.static

    def test_nothing_is_left_when_all_have_ended(self, pair: Pair) -> None:
        assert isinstance(pair.backend, LocalBackend)
        pair.backend.generate("wait for the cancelled ones", SamplingParams(max_tokens=1))
        scheduler = pair.backend._get_engine()._loop.scheduler
        assert scheduler.idle
        scheduler.check_integrity()
        # Halving a failed pass would hide a bug of ours: the answers would still be right.
        assert pair.backend.stats()["halved_steps"] == 0
