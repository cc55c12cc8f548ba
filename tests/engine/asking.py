"""Asks an engine as its callers do, and looks at the tokens behind the text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as PILImage

from llavakit import Image, Message, SamplingParams
from llavakit.engine import sequence as records
from llavakit.engine.engine import Engine
from llavakit.images import open_picture
from llavakit.sources import SourcePolicy
from llavakit.values import Request

WORDS = ["What is it?", "hi", "And now\nin two lines", "你好🐱", "a" * 50]
NOISE = np.random.default_rng(0).integers(0, 256, (3, 40, 30, 3), dtype=np.uint8)
PICTURES = [PILImage.fromarray(one) for one in NOISE]


def ask(
    engine: Engine, texts: Sequence[str], pictures: Sequence[PILImage.Image], max_tokens: int = 20
) -> list[list[int]]:
    """Greedy tokens of all texts, asked together, each about the image in its place."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    caught: list[records.Sequence] = []
    submit = engine._loop.submit

    def watch(sequence: records.Sequence) -> None:
        caught.append(sequence)
        submit(sequence)

    engine._loop.submit = watch  # type: ignore[method-assign]
    streams = [
        engine.submit(
            Request((Message("user", [Image(picture), text]),), params),
            lambda image: open_picture(image.source, SourcePolicy()),
        )
        for text, picture in zip(texts, pictures, strict=True)
    ]
    del engine._loop.submit
    for stream in streams:
        list(stream)
    return [sequence.tokens[sequence.prompt_length :] for sequence in caught]
