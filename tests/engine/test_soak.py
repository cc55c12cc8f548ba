"""Many callers of all kinds at once: every request ends exactly once, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import psutil
import pytest
from PIL import Image as PILImage

import llavakit
from llavakit import Image, Message, SamplingParams
from llavakit.engine.loop import CHECKS
from llavakit.errors import (
    ContextLengthError,
    ImageError,
    QueueFullError,
    RequestCancelledError,
    RequestTimeoutError,
)
from llavakit.local import LocalBackend
from tests.tiny import TinyModel

PICTURES = [PILImage.new("RGB", (30 + n, 40 - n), (40 * n, 255 - 40 * n, 9 * n)) for n in range(6)]
GRAMMARS = [None, None, None, "[a-z]{3,8}", "(yes|no)"]
THREADS, TASKS = 32, 16


class Load:
    """Requests of all kinds, each with one outcome.

    Attributes:
        outcomes: how requests ended.
    """

    def __init__(self, backend: LocalBackend, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self._backend = backend
        self._seed = seed
        self._lock = threading.Lock()

    def run(self, count: int) -> None:
        """Make so many requests, half of them from threads and half from asyncio tasks."""
        numbers = iter(range(count))
        half = count // 2
        threads = [threading.Thread(target=self._thread, args=(numbers,)) for _ in range(THREADS)]
        tasks = threading.Thread(target=lambda: asyncio.run(self._tasks(range(half, count))))
        watcher_ends = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(watcher_ends,))
        self._left = half
        for thread in (*threads, tasks, watcher):
            thread.start()
        for thread in (*threads, tasks):
            thread.join()
        watcher_ends.set()
        watcher.join()

    def _watch(self, ends: threading.Event) -> None:
        """Reads the figures all the time, as a server's metrics do."""
        try:
            while not ends.wait(0.001):
                stats = self._backend.stats()
                assert stats.get("kv_tokens_kept", 0) <= stats.get("kv_tokens", 0)
        except BaseException as error:
            self.errors.append(error)

    def _ended(self, how: str) -> None:
        with self._lock:
            self.outcomes[how] += 1

    def _thread(self, numbers: Iterator[int]) -> None:
        while True:
            with self._lock:
                number = next(numbers, self._left)
                if number >= self._left:
                    return
            try:
                self._ended(self._ask(random.Random(self._seed * 100_003 + number)))
            except BaseException as error:
                self.errors.append(error)

    def _request(self, dice: random.Random) -> tuple[list[Message], SamplingParams, float | None]:
        parts: list[str | Image] = [f"question {dice.randrange(40)}"]
        kind = dice.random()
        if kind < 0.08:
            parts.append(Image(b"\x89PNG no picture at all" + dice.randbytes(20)))
        elif kind < 0.16:
            parts.append("too long " * 400)
        elif kind < 0.6:
            parts.insert(0, Image(dice.choice(PICTURES)))
        params = SamplingParams(
            max_tokens=dice.randint(1, 40),
            temperature=dice.choice([0, 1.0]),
            top_p=dice.choice([1.0, 0.9]),
            stop=dice.choice([(), ("x", "ab")]),
            logprobs=dice.choice([None, 2]),
            grammar=dice.choice(GRAMMARS),
        )
        return [Message("user", parts)], params, dice.choice([None] * 5 + [0.02])

    def _ask(self, dice: random.Random) -> str:
        messages, params, timeout = self._request(dice)
        leave_after = dice.choice([None, None, None, 0, 1, 5])
        drop = dice.random() < 0.5
        ends = 0
        try:
            stream = self._backend.stream(messages, params, timeout=timeout)
            for number, chunk in enumerate(stream):
                assert not ends, "something came behind the end"
                ends += chunk.finish_reason is not None
                if number == leave_after:
                    if not drop:
                        stream.close()
                    return "left" if not ends else "finished"
        except (ContextLengthError, ImageError, QueueFullError, RequestTimeoutError) as error:
            assert not ends
            return type(error).__name__
        assert ends == 1
        return "finished"

    async def _tasks(self, numbers: Iterable[int]) -> None:
        waiting = iter(numbers)

        async def work() -> None:
            for number in waiting:
                try:
                    dice = random.Random(self._seed * 100_003 + number)
                    self._ended(await self._ask_async(dice))
                except BaseException as error:
                    self.errors.append(error)

        await asyncio.gather(*(work() for _ in range(TASKS)))

    async def _ask_async(self, dice: random.Random) -> str:
        messages, params, timeout = self._request(dice)
        asked = asyncio.create_task(self._backend.agenerate(messages, params, timeout=timeout))
        if dice.random() < 0.3:
            await asyncio.sleep(dice.random() * 0.05)
            asked.cancel()
        try:
            completion = await asked
        except asyncio.CancelledError:
            return "task cancelled"
        except (
            ContextLengthError,
            ImageError,
            QueueFullError,
            RequestTimeoutError,
            RequestCancelledError,
        ) as error:
            return type(error).__name__
        assert completion.finish_reason in ("stop", "length")
        return "finished"


@pytest.fixture(params=[False, True], ids=["", "ahead"])
def backend(
    tiny: TinyModel, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalBackend]:
    monkeypatch.setenv(CHECKS, "1")
    # Small on purpose: prefixes and pictures are evicted, the queue fills up.
    backend = llavakit.load(
        tiny.path,
        max_concurrency=6,
        max_waiting=38,
        prefill_chunk=64,
        kv_cache_bytes=2400 * 2 * 2 * 2 * 8 * 4,
        image_cache_bytes=4 * 16 * 32 * 4,
        lookahead=request.param,
        static_decode=request.param,
    )
    assert isinstance(backend, LocalBackend)
    yield backend
    backend.close()


def check_idle(backend: LocalBackend) -> None:
    """Every request has ended, once, and every slot of the arena has one owner."""
    for _ in range(1000):
        stats = backend.stats()
        if not (stats["running"] or stats["waiting"]):
            break
        time.sleep(0.01)
    time.sleep(0.1)  # for the last cancels, which are noticed only by a step
    loop = backend._get_engine()._loop
    assert loop.scheduler.idle and not loop._open
    loop.scheduler.check_integrity()
    stats = backend.stats()
    assert stats["kv_tokens_live"] == 0
    assert stats["requests"] == stats["finished"] + stats["cancelled"] + stats["failed"]


def resident() -> int:
    """Bytes of this process in memory, after all garbage is gone."""
    for _ in range(3):
        gc.collect()
    return int(psutil.Process().memory_info().rss)


def engine_threads() -> list[str]:
    """Names of living threads that belong to an engine (a pool of the process may stay)."""
    names = [thread.name for thread in threading.enumerate()]
    return [n for n in names if n.startswith("llavakit") and "prepare" not in n]


def check_no_thread_is_left(backend: LocalBackend) -> None:
    backend.close()
    for _ in range(200):
        if not engine_threads():
            return
        time.sleep(0.02)
    raise AssertionError(f"threads are left: {engine_threads()}")


def check_outcomes(load: Load, count: int) -> None:
    assert not load.errors, load.errors[:3]
    assert load.outcomes.total() == count
    assert load.outcomes["finished"] > count // 8


def test_every_request_of_many_callers_ends_once_and_no_thread_is_left(backend: LocalBackend):
    before = engine_threads()
    load = Load(backend, seed=1)
    load.run(60)
    check_outcomes(load, 60)
    check_idle(backend)
    if not before:  # engines of other tests may live as long as their fixtures
        check_no_thread_is_left(backend)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_requests_leave_nothing_behind(backend: LocalBackend):
    before = engine_threads()
    Load(backend, seed=2).run(200)  # allocators and caches reach their level
    check_idle(backend)
    sizes = []
    for half in range(2):
        load = Load(backend, seed=3 + half)
        load.run(1000)
        check_outcomes(load, 1000)
        check_idle(backend)
        assert len(load.outcomes) >= 6, load.outcomes
        sizes.append(resident())
    assert sizes[1] - sizes[0] < 24 * 2**20, f"memory grew: {sizes}"
    if not before:
        check_no_thread_is_left(backend)
