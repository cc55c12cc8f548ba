"""Packed layers with activations in fp16, which the compiled halves of a layer do not read."""

from __future__ import annotations

import llavakit
from llavakit import SamplingParams
from tests.tiny import TinyModel


def test_four_bits_in_fp16_answer_layer_by_layer(tiny: TinyModel):
    backend = llavakit.load(tiny.path, quantization="4bit", dtype="float16", device="cpu")
    try:
        answer = backend.generate("What is it?", SamplingParams(temperature=0, max_tokens=8))
        assert answer.usage.completion_tokens >= 1
        assert backend._get_engine()._loop.runner.model.fused is None  # type: ignore[attr-defined]
    finally:
        backend.close()
