"""llavakit's engine, each request read by a thread of its own as in a server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

import torch

from benchmarks.peers.child import Job, Reply, peak_memory
from benchmarks.peers.work import Request, open_image
from llavakit import Image, Message, SamplingParams, load

PRECISIONS: dict[str, Any] = {
    "fp32": {},
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True},
}


class Llavakit:
    """The engine."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self._job = job
        precision = PRECISIONS[job.precision]
        self._backend = load(job.model, device="cpu", dtype="float32", **precision)

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        messages = [self._messages(request) for request in requests]
        limits = [request.max_tokens for request in requests]
        with ThreadPoolExecutor(len(requests)) as readers:
            began = time.perf_counter()
            return list(readers.map(self._answer, messages, limits, repeat(began)))

    def peak_memory(self) -> int:
        return peak_memory()

    def close(self) -> None:
        self._backend.close()

    def _messages(self, request: Request) -> list[Message]:
        image = Image(open_image(self._job.image(request.image)))
        messages = []
        for number, question in enumerate(request.questions):
            content: list[Any] = [image, question] if number == 0 else [question]
            messages.append(Message("user", content))
            if number < len(request.answers):
                messages.append(Message("assistant", [request.answers[number]]))
        return messages

    def _answer(self, messages: list[Message], max_tokens: int, began: float) -> Reply:
        first, last, tokens, text = 0.0, 0.0, 0, ""
        for chunk in self._backend.stream(messages, SamplingParams(max_tokens, temperature=0)):
            if chunk.text:
                last = time.perf_counter() - began
                first = first or last
                text += chunk.text
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
        return Reply(first, last, tokens, text.strip())


start = Llavakit
