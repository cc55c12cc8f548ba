"""Who is measured: llavakit's engine, and plain ``transformers.generate``.

Each contender answers the same turns greedily with the same weights, and reports how long
it took to the first token and to the last, and what it answered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

import llavakit
from llavakit import Image, Message, SamplingParams

Turns = list[tuple[str, list[Any]]]
"""(role, parts); parts are strings and PIL images."""


@dataclass(frozen=True)
class Timing:
    """Seconds from the start of the run, and the answer."""

    first: float
    last: float
    tokens: int
    text: str


class Contender(Protocol):
    """Whoever can answer a list of requests."""

    name: str

    def forget(self) -> None:
        """Drop what earlier runs left in caches."""

    def run(self, requests: Sequence[Turns], max_tokens: int) -> list[Timing]:
        """Answer all requests; times count from the start of the run."""


class Generate:
    """``transformers.generate``, one request after the other: the baseline of every ratio."""

    name = "transformers.generate"

    def __init__(self, path: Path, forbidden: Sequence[int]) -> None:
        from transformers import AutoModelForImageTextToText

        self.model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        self.processor = load_processor(path)
        self.forbidden = list(forbidden)

    def forget(self) -> None:
        """Nothing is kept."""

    def run(self, requests: Sequence[Turns], max_tokens: int) -> list[Timing]:
        began = time.perf_counter()
        return [self._answer(turns, max_tokens, began) for turns in requests]

    def _answer(self, turns: Turns, max_tokens: int, began: float, cache: Any = None) -> Timing:
        clock = _FirstToken()
        inputs = hf_inputs(self.processor, turns)
        if cache is not None and cache.get_seq_length():
            # The images of earlier turns are in the cache already.
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
        text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return Timing(clock.first - began, time.perf_counter() - began, len(tokens), text)

    def chat(
        self, turns: Sequence[str], picture: Any, max_tokens: int, *, keep: bool
    ) -> list[Timing]:
        """One conversation; ``keep`` reuses past_key_values by hand."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config.text_config) if keep else None
        history: Turns = []
        timings = []
        for number, text in enumerate(turns):
            history.append(("user", [picture, text] if number == 0 else [text]))
            timings.append(self._answer(history, max_tokens, time.perf_counter(), cache))
            history.append(("assistant", [timings[-1].text]))
        return timings


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
    """The engine of llavakit, all requests submitted at once."""

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
        timings: dict[int, Timing] = {}
        began = time.perf_counter()

        def read(index: int, turns: Turns) -> None:
            timings[index] = self._answer(turns, max_tokens, began)

        threads = [threading.Thread(target=read, args=item) for item in enumerate(requests)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [timings[index] for index in range(len(requests))]

    def _answer(self, turns: Turns, max_tokens: int, began: float) -> Timing:
        first, tokens, pieces = 0.0, 0, []
        params = SamplingParams(max_tokens=max_tokens, temperature=0)
        for chunk in self.backend.stream(messages_of(turns), params):
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
            first = first or time.perf_counter() - began
            pieces.append(chunk.text)
        return Timing(first, time.perf_counter() - began, tokens, "".join(pieces).strip())

    def chat(self, turns: Sequence[str], picture: Any, max_tokens: int) -> list[Timing]:
        """One conversation."""
        history: Turns = []
        timings = []
        for number, text in enumerate(turns):
            history.append(("user", [picture, text] if number == 0 else [text]))
            timings.append(self._answer(history, max_tokens, time.perf_counter()))
            history.append(("assistant", [timings[-1].text]))
        return timings


def load_processor(path: Path) -> Any:
    """The checkpoint's processor, with the image processor that the engine uses, too."""
    from transformers import AutoImageProcessor, AutoProcessor

    processor = AutoProcessor.from_pretrained(path)
    processor.image_processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    return processor


def prompt_text(processor: Any, turns: Turns) -> str:
    """The prompt as text, with one ``<image>`` for each image."""
    messages = [
        {
            "role": role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in parts
            ],
        }
        for role, parts in turns
    ]
    text: str = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def hf_inputs(processor: Any, turns: Turns) -> dict[str, Any]:
    """What plain transformers is given."""
    images = [part for _, parts in turns for part in parts if not isinstance(part, str)]
    text = prompt_text(processor, turns)
    return dict(processor(images=images or None, text=text, return_tensors="pt"))


def messages_of(turns: Turns) -> list[Message]:
    """The turns as llavakit's messages."""
    return [
        Message(role, [part if isinstance(part, str) else Image(part) for part in parts])
        for role, parts in turns
    ]
