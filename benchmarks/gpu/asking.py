"""Requests to the engine, and when each piece of their answers came; by its public side alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from benchmarks.contenders import Turns, messages_of
from llavakit.engine.engine import Engine
from llavakit.images import Picture, open_picture
from llavakit.sources import SourcePolicy
from llavakit.values import Chunk, Image, Request, SamplingParams, Usage

SUBMITTERS = 16
"""Threads that preprocess images and submit requests, as in a server."""


@dataclass(eq=False)
class Answer:
    """One answer as its reader would have seen it; times are those of ``time.perf_counter``.

    Attributes:
        began: when its request was submitted.
        times: when each chunk with text came.
        usage: its tokens.
        text: what was answered.
    """

    began: float = 0.0
    times: list[float] = field(default_factory=list)
    usage: Usage | None = None
    text: str = ""
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, chunk: Chunk | BaseException) -> None:
        """Take in a chunk, on the thread that puts it."""
        if isinstance(chunk, BaseException):
            self.error = chunk
        else:
            if chunk.text:
                self.times.append(time.perf_counter())
                self.text += chunk.text
            self.usage = chunk.usage or self.usage
        if self.error is not None or self.usage is not None:
            # An answer without any text still has an end.
            self.times = self.times or [time.perf_counter()]
            self.done.set()

    @property
    def tokens(self) -> int:
        """Tokens of the answer."""
        return 0 if self.usage is None else self.usage.completion_tokens

    @property
    def first(self) -> float:
        """Seconds from the request to the first text."""
        return self.times[0] - self.began


def ask(
    engine: Engine, asked: Sequence[Turns], tokens: int, arrivals: Sequence[float] | None = None
) -> list[Answer]:
    """Ask an engine, and wait for all answers.

    Nobody reads the streams meanwhile: they are watched, so that the benchmark's own threads take
    nothing from the engine's.

    Args:
        engine: is asked.
        asked: the conversations.
        tokens: of each answer, unless the model ends it before.
        arrivals: seconds from now on at which each request arrives; None: all at once.

    Raises:
        the first error that an answer ended with.
    """
    params = SamplingParams(max_tokens=tokens, temperature=0)
    began = time.perf_counter()
    answers = [Answer() for _ in asked]
    streams = []  # dropping one would cancel it

    def submit(number: int) -> None:
        due = began + (arrivals[number] if arrivals else 0.0)
        time.sleep(max(0.0, due - time.perf_counter()))
        answers[number].began = due if arrivals else began
        request = Request(tuple(messages_of(asked[number])), params)
        stream = engine.submit(request, opened)
        streams.append(stream)
        stream.watch(answers[number])

    # As many threads as requests where these arrive later, for each sleeps until then.
    workers = len(asked) if arrivals else min(len(asked), SUBMITTERS)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(submit, range(len(asked))))
    for answer in answers:
        answer.done.wait()
        if answer.error is not None:
            raise answer.error
    return answers


def opened(image: Image) -> Picture:
    """An image as the engine takes it."""
    return open_picture(image.source, SourcePolicy())
