"""``transformers.generate``, one request after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage
from transformers import AutoModelForImageTextToText

from benchmarks.contenders import load_processor
from benchmarks.peers.child import Job, Reply, peak_memory
from benchmarks.peers.work import Request, open_image


class Generate:
    """The model as transformers loads it."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self._job = job
        model = AutoModelForImageTextToText.from_pretrained(job.model, dtype=torch.float32)
        self._model = model.eval()
        self._processor = load_processor(Path(job.model))

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        images = [open_image(self._job.image(request.image)) for request in requests]
        began = time.perf_counter()
        return [
            self._answer(request, image, began)
            for request, image in zip(requests, images, strict=True)
        ]

    def peak_memory(self) -> int:
        return peak_memory()

    def close(self) -> None:
        pass

    def _answer(self, request: Request, image: PILImage.Image, began: float) -> Reply:
        clock = _Clock()
        text = request.prompt("<image>")
        inputs = self._processor(images=image, text=text, return_tensors="pt")
        with torch.inference_mode():
            out = self._model.generate(
                **inputs,
                max_new_tokens=request.max_tokens,
                do_sample=False,
                pad_token_id=0,
                streamer=clock,
            )
        tokens = out[0, inputs["input_ids"].shape[1] :]
        answer = self._processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        # The prompt is put first.
        _, first, *rest = (moment - began for moment in clock.moments)
        return Reply(first, rest[-1] if rest else first, len(tokens), answer)


class _Clock:
    """A streamer that notes when it was given something."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def put(self, value: Any) -> None:
        self.moments.append(time.perf_counter())

    def end(self) -> None:
        pass


start = Generate
