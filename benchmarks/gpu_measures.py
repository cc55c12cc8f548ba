"""What ``benchmarks.gpu`` measures, for llavakit's engine and for plain transformers."""

from __future__ import annotations

import statistics
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_model import pictures, question
from benchmarks.contenders import Turns, hf_inputs, load_processor, messages_of
from llavakit.engine.arena import KVArena
from llavakit.engine.config import EngineConfig
from llavakit.engine.engine import Engine
from llavakit.images import Picture, open_picture
from llavakit.model.llava import Llava
from llavakit.model.loader import Reader, load_reader
from llavakit.sources import SourcePolicy
from llavakit.values import Image, Request, SamplingParams

Figures = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        prompt: words of a text prompt.
        answer: tokens of an answer whose speed is measured.
        batches: requests that decode together.
        pictures: pictures encoded together.
        kv_tokens: slots of the engine's arena.
        copy_bytes: bytes of the buffer whose copy gives the bandwidth.
        known: words that prompts are made of.
    """

    prompt: int = 64
    answer: int = 128
    batches: tuple[int, ...] = (1, 8, 32)
    pictures: int = 16
    kv_tokens: int = 24_576
    copy_bytes: int = 2 << 30
    known: int = 5000

    @classmethod
    def tiny(cls) -> Sizes:
        """For a dry run on a CPU."""
        return cls(8, 24, (1, 2), 2, 4096, 8 << 20, 300)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, run: Callable[[], Any], repeats: int = 3) -> float:
    """Median time of a run, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        wait(device)
        began = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes read and written in a second by copying a large buffer: the roof."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(device, lambda: target.copy_(source), 10)


class PlainGenerate:
    """``transformers.generate`` with the dynamic cache or the static one."""

    def __init__(self, model: Any, path: Path, sizes: Sizes, *, static: bool = False) -> None:
        self.model = model
        self.processor = load_processor(path)
        self.sizes = sizes
        self.options: dict[str, Any] = {"cache_implementation": "static"} if static else {}

    def _run(self, inputs: dict[str, Any], tokens: int) -> None:
        with torch.inference_mode():
            self.model.generate(
                **inputs,
                **self.options,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )

    def _inputs(self, turns: Turns) -> dict[str, Any]:
        inputs = hf_inputs(self.processor, turns)
        return {
            name: one.to(self.model.device, self.model.dtype if one.is_floating_point() else None)
            for name, one in inputs.items()
        }

    def decode(self, batch: int) -> float:
        """Tokens a second of so many answers together; the prefill's time is taken out."""
        one = self._inputs(text_turns(0, self.sizes))
        inputs = {name: value.repeat(batch, 1) for name, value in one.items()}
        device, answer = self.model.device, self.sizes.answer
        first = seconds(device, lambda: self._run(inputs, 1), 1)
        whole = seconds(device, lambda: self._run(inputs, answer), 1)
        return batch * (answer - 1) / max(whole - first, 1e-9)

    def first_token(self, picture: Any) -> float:
        """Seconds to the first token of a question about a picture, preprocessing included."""
        turns = picture_turns(picture, 0, self.sizes)
        return seconds(self.model.device, lambda: self._run(self._inputs(turns), 1), 3)


class OwnEngine:
    """llavakit's engine around a model that was built in memory.

    Attributes:
        paths: by batch, how the steps ran whose speed was measured: captured as graphs, in
            static shapes but not captured, or eagerly.
    """

    def __init__(self, model: Any, path: Path, sizes: Sizes) -> None:
        self.sizes = sizes
        self.llava = Llava(model)
        self.reader: Reader = load_reader(path)
        slot = KVArena.bytes_per_token(
            self.llava.layers, self.llava.kv_heads, self.llava.head_dim, self.llava.dtype
        )
        config = EngineConfig(
            str(path),
            max_concurrency=max(sizes.batches),
            kv_cache_bytes=sizes.kv_tokens * slot,
            device=str(self.llava.device),
            static_decode=True,  # what a GPU does anyway, and a CPU in the dry run
        )
        self.slot_bytes = slot
        self.engine = Engine(self.reader, config, self.llava)
        self.paths: dict[str, dict[str, int]] = {}

    def close(self) -> None:
        """Stop the engine's thread."""
        self.engine.close()

    def _stream(self, turns: Turns, tokens: int) -> tuple[float, float, int, str]:
        """When the first and the last token came, how many there were, and the text."""
        params = SamplingParams(max_tokens=tokens, temperature=0)
        request = Request(tuple(messages_of(turns)), params)
        first, count, text = 0.0, 0, ""
        for chunk in self.engine.submit(request, _open):
            first = first or time.perf_counter()
            text += chunk.text
            if chunk.usage is not None:
                count = chunk.usage.completion_tokens
        return first, time.perf_counter(), count, text

    def decode(self, batch: int) -> float:
        """Tokens a second of so many answers together, from the last first token on."""
        self._together(batch, 0)
        # Buckets are compiled and captured when they were used a while; a round in which that
        # may have happened is not the one that counts.
        for number in (100, 200, 300):
            before = self.engine.stats()
            rate = self._together(batch, number)
            after = self.engine.stats()
            steps = {
                path: after[f"{path}_steps"] - before[f"{path}_steps"]
                for path in ("captured", "static", "eager")
            }
            if not steps["static"]:
                break
        self.paths[str(batch)] = steps
        return rate

    def host_waits(self) -> float | str:
        """How often the host waits for the device in a step of one request."""
        if self.llava.device.type != "cuda":
            return "a CPU waits for nobody"
        before = self.engine.stats()["steps"]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter("always")
                self._together(1, 400)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        called = [one for one in waits if "synchroniz" in str(one.message)]
        return round(len(called) / (self.engine.stats()["steps"] - before), 2)

    def _together(self, batch: int, number: int) -> float:
        ends: dict[int, tuple[float, float, int, str]] = {}

        def ask(place: int) -> None:
            ends[place] = self._stream(text_turns(number + place, self.sizes), self.sizes.answer)

        threads = [threading.Thread(target=ask, args=(place,)) for place in range(batch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first = max(one[0] for one in ends.values())
        last = max(one[1] for one in ends.values())
        return sum(one[2] - 1 for one in ends.values()) / max(last - first, 1e-9)

    def first_tokens(self, images: Sequence[Any]) -> Figures:
        """Seconds to the first token: new picture, same picture, next turn of the chat."""
        cold, same, later = [], [], []
        for number, picture in enumerate(images):
            turns = picture_turns(picture, 10 * number, self.sizes)
            took, text = self._first(turns)
            cold.append(took)
            same.append(self._first(picture_turns(picture, 10 * number + 1, self.sizes))[0])
            follow = question(10 * number + 2, self.sizes.prompt, self.sizes.known)
            turns = [*turns, ("assistant", [text]), ("user", [follow])]
            later.append(self._first(turns)[0])
        # The first of each warms up.
        return {
            "cold": statistics.median(cold[1:]),
            "same picture": statistics.median(same[1:]),
            "next turn": statistics.median(later[1:]),
        }

    def _first(self, turns: Turns) -> tuple[float, str]:
        began = time.perf_counter()
        first, _, _, text = self._stream(turns, 4)
        return first - began, text

    def images_per_second(self, images: Sequence[Any]) -> float:
        """Pictures encoded in one batch of the tower, preprocessing left out."""
        pixels = [self.reader.preprocess(_open(Image(picture))) for picture in images]
        for one in pixels:
            one.inputs()

        def encode() -> None:
            with torch.inference_mode():
                self.llava.encode_images(pixels)

        return len(pixels) / seconds(self.llava.device, encode)


def text_turns(number: int, sizes: Sizes) -> Turns:
    """A question without a picture."""
    return [("user", [question(number, sizes.prompt, sizes.known)])]


def picture_turns(picture: Any, number: int, sizes: Sizes) -> Turns:
    """A question about a picture."""
    return [("user", [picture, question(number, sizes.prompt, sizes.known)])]


def some_pictures(count: int, side: int) -> list[Any]:
    """Pictures of noise; the large ones take several views in LLaVA-NeXT."""
    return pictures(count, side)


def _open(image: Image) -> Picture:
    return open_picture(image.source, SourcePolicy())
