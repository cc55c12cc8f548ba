"""Plain ``transformers.generate`` beside the engine, with the dynamic cache and the static one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_model import pictures
from benchmarks.contenders import Turns, hf_inputs, load_processor
from benchmarks.gpu.machine import Bench, seconds
from benchmarks.gpu.models import SEVEN


def eager(bench: Bench) -> None:
    """Measure ``generate`` as it comes."""
    with bench.model(SEVEN) as (model, path):
        plain = _Plain(bench, model, path, {})
        for batch in bench.sizes.batches:
            _speed(bench, plain, batch)
        with bench.records.figure("first token, cold", "s") as line:
            picture = pictures(1, 2 * int(model.config.vision_config.image_size))[0]
            line["value"] = round(plain.first_token(picture), 4)


def static(bench: Bench) -> None:
    """Measure ``generate`` with the static cache, which it compiles, for one request."""
    with bench.model(SEVEN) as (model, path):
        _speed(bench, _Plain(bench, model, path, {"cache_implementation": "static"}), 1)


def _speed(bench: Bench, plain: _Plain, batch: int) -> None:
    with bench.records.figure(f"batch {batch}") as line:
        rate = plain.decode(batch)
        line["value"] = {
            "tokens per second": round(rate, 1),
            "ms a step": round(1e3 * batch / rate, 3),
        }


class _Plain:
    """``generate`` with some options, greedy and to the full length."""

    def __init__(self, bench: Bench, model: Any, path: Path, options: dict[str, Any]) -> None:
        self._bench = bench
        self._model = model
        self._processor = load_processor(path)
        self._options = options

    def _run(self, inputs: dict[str, Any], tokens: int) -> None:
        with torch.inference_mode():
            self._model.generate(
                **inputs,
                **self._options,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )

    def _inputs(self, turns: Turns) -> dict[str, Any]:
        bench = self._bench
        return {
            name: one.to(bench.device, bench.dtype if one.is_floating_point() else None)
            for name, one in hf_inputs(self._processor, turns).items()
        }

    def decode(self, batch: int) -> float:
        """Tokens a second of so many answers together; the prefill's time is taken out."""
        one = self._inputs(self._bench.text(0))
        inputs = {name: value.repeat(batch, 1) for name, value in one.items()}
        device, answer = self._bench.device, self._bench.sizes.answer
        first = seconds(device, lambda: self._run(inputs, 1), 1)
        whole = seconds(device, lambda: self._run(inputs, answer), 1)
        return batch * (answer - 1) / max(whole - first, 1e-9)

    def first_token(self, picture: Any) -> float:
        """Seconds to the first token of a question about an image, preprocessing included."""
        turns = self._bench.about(picture, 0)
        return seconds(self._bench.device, lambda: self._run(self._inputs(turns), 1), 3)
