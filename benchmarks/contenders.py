"""Who is measured: llavakit's engine, and plain transformers in its best-known forms.

Each contender answers the same turns greedily with the same weights, and reports how long
it took to the first token and to the last.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import llavakit
from benchmarks.bench_model import hf_inputs
from llavakit import Image, Message, SamplingParams

Turns = list[tuple[str, list[Any]]]


@dataclass(frozen=True)
class Timing:
    """Seconds from the start of the run, and the tokens that were drawn."""

    first: float
    last: float
    tokens: int


class Generate:
    """``transformers.generate``, one request after the other: the baseline of every ratio."""

    name = "transformers.generate"

    def __init__(self, path: Path, forbidden: Sequence[int]) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(path)
        self.processor.image_processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        self.forbidden = list(forbidden)

    def run(self, requests: Sequence[Turns], max_tokens: int) -> list[Timing]:
        """Answer all requests; times count from the first one's start."""
        began = time.perf_counter()
        return [self._answer(turns, max_tokens, began)[0] for turns in requests]

    def _answer(
        self, turns: Turns, max_tokens: int, began: float, cache: Any = None
    ) -> tuple[Timing, list[int]]:
        clock = _FirstToken()
        inputs = hf_inputs(self.processor, turns)
        if cache is not None and cache.get_seq_length():
            # The pictures of earlier turns are in the cache already.
            inputs.pop("pixel_values", None)
        with torch.inference_mode():
            out = self.model.generate(
                **inputs,
                max_new_tokens=max_tokens,
                do_sample=False,
                suppress_tokens=self.forbidden,
                pad_token_id=0,
                streamer=clock,
                past_key_values=cache,
            )
        tokens: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
        return Timing(clock.first - began, time.perf_counter() - began, len(tokens)), tokens

    def chat(self, turns: Sequence[str], picture: Any, max_tokens: int, *, keep: bool) -> list[float]:
        """Seconds to the first token of each turn; ``keep`` reuses past_key_values by hand."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config.text_config) if keep else None
        history: Turns = []
        firsts = []
        for number, text in enumerate(turns):
            history.append(("user", [picture, text] if number == 0 else [text]))
            timing, tokens = self._answer(history, max_tokens, time.perf_counter(), cache)
            firsts.append(timing.first)
            answer = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
            history.append(("assistant", [answer]))
        return firsts


class _FirstToken:
    """A streamer that only notes when the first token came (the prompt is put first)."""

    def __init__(self) -> None:
        self.first = 0.0
        self._puts = 0

    def put(self, value: torch.Tensor) -> None:
        self._puts += 1
        if self._puts == 2:
            self.first = time.perf_counter()

    def end(self) -> None:
        pass


class Llavakit:
    """This project's engine, all requests submitted at once."""

    name = "llavakit"

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.settings = settings
        self.backend = llavakit.load(path, **settings)
        self.backend.generate("w1", SamplingParams(max_tokens=1))

    def forget(self) -> None:
        """A fresh engine: nothing of an earlier run is cached."""
        self.backend.close()
        self.backend = llavakit.load(self.path, **self.settings)
        self.backend.generate("w1", SamplingParams(max_tokens=1))

    def run(self, requests: Sequence[Turns], max_tokens: int) -> list[Timing]:
        """Answer all requests, each read by a thread of its own as in a server."""
        timings: list[Timing | None] = [None] * len(requests)
        began = time.perf_counter()

        def read(index: int, turns: Turns) -> None:
            first = 0.0
            for chunk in self.backend.stream(_messages(turns), _greedy(max_tokens)):
                if chunk.usage is not None:
                    tokens = chunk.usage.completion_tokens
                elif not first:
                    first = time.perf_counter() - began
            last = time.perf_counter() - began
            timings[index] = Timing(first or last, last, tokens)

        threads = [
            threading.Thread(target=read, args=(index, turns))
            for index, turns in enumerate(requests)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [timing for timing in timings if timing is not None]

    def chat(self, turns: Sequence[str], picture: Any, max_tokens: int) -> list[float]:
        """Seconds to the first token of each turn of one conversation."""
        history: Turns = []
        firsts = []
        for number, text in enumerate(turns):
            history.append(("user", [picture, text] if number == 0 else [text]))
            began = time.perf_counter()
            first, pieces = 0.0, []
            for chunk in self.backend.stream(_messages(history), _greedy(max_tokens)):
                first = first or time.perf_counter() - began
                pieces.append(chunk.text)
            firsts.append(first)
            history.append(("assistant", ["".join(pieces)]))
        return firsts


def _messages(turns: Turns) -> list[Message]:
    return [
        Message(role, [part if isinstance(part, str) else Image(part) for part in parts])
        for role, parts in turns
    ]


def _greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0)
