"""Models that leave the memory when they are idle: what comes back, and that nobody notices."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image as PILImage

import llavakit
from llavakit import Image, Message, SamplingParams
from llavakit.engine import engine as module
from llavakit.engine.engine import Engine
from llavakit.engine.keep_alive import seconds_of
from llavakit.engine.resident import Resident
from llavakit.errors import (
    ContextLengthError,
    EngineClosedError,
    EngineError,
    ModelError,
    ParameterError,
)
from llavakit.local import LocalBackend
from llavakit.streams import gather
from llavakit.values import Request
from tests.tiny import TinyModel

SHORT = SamplingParams(max_tokens=4, temperature=0)
LONG = SamplingParams(max_tokens=400, temperature=0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, math.inf),
        (-1, math.inf),
        (-0.5, math.inf),
        ("-1", math.inf),
        ("-5m", math.inf),
        (0, 0),
        ("0", 0),
        ("0s", 0),
        (90, 90),
        (0.25, 0.25),
        ("90", 90),
        ("300s", 300),
        ("5m", 300),
        ("1h30m", 5400),
        (" 1h30m5s ", 5405),
        ("1.5h", 5400),
        (".5m", 30),
        ("250ms", 0.25),
        ("1m1ms", 60.001),
        ("+5m", 300),
    ],
)
def test_ollamas_notation_is_understood(value: Any, seconds: float) -> None:
    assert seconds_of(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "m", "5 m", "5x", "5m3", "1e3", "ever", True, math.nan, [5]])
def test_what_is_no_duration_is_refused(value: Any) -> None:
    with pytest.raises(ParameterError, match="keep_alive"):
        llavakit.load("demo", keep_alive=value)


def test_a_server_keeps_its_model_by_its_own_rule() -> None:
    with pytest.raises(ParameterError, match="keep_alive has no effect on a server"):
        llavakit.load("m", base_url="http://127.0.0.1:9", keep_alive="5m")
    llavakit.load("m", base_url="http://127.0.0.1:9", keep_alive=None).close()


Make = Callable[..., LocalBackend]
_numbers = iter(range(10_000))


@pytest.fixture
def make(tiny: TinyModel) -> Iterator[Make]:
    """Backends of one configuration, which no other test has."""
    mine = {"max_waiting": 10_000 + next(_numbers), "device": "cpu"}
    made: list[weakref.ref[LocalBackend]] = []

    def make(keep_alive: Any = None, **settings: Any) -> LocalBackend:
        backend = llavakit.load(tiny.path, keep_alive=keep_alive, **{**mine, **settings})
        assert isinstance(backend, LocalBackend)
        made.append(weakref.ref(backend))
        return backend

    yield make
    for one in made:
        backend = one()
        if backend is not None:
            backend.close()


def engine_of(backend: LocalBackend) -> Engine:
    assert backend._engine is not None
    return backend._engine


def until(good: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.005)


def weights(backend: LocalBackend) -> weakref.ref[Any]:
    return weakref.ref(engine_of(backend)._loop.runner.model.hf)


def arena(backend: LocalBackend) -> weakref.ref[Any]:
    return weakref.ref(engine_of(backend)._loop.runner.arena)


def gone(backend: LocalBackend) -> Callable[[], bool]:
    return lambda: not backend.stats()["loaded"]


# Leaving and coming back


def test_idle_model_leaves_the_memory_and_the_next_request_has_it_back(make: Make) -> None:
    backend = make("200ms")
    text = backend.generate("hello", SHORT).text
    model, slots, thread = weights(backend), arena(backend), engine_of(backend)._loop.thread
    time.sleep(0.05)
    assert backend.stats()["loaded"] and backend.stats()["kv_tokens"]
    thread.join(20)
    assert not thread.is_alive() and model() is None and slots() is None
    stats = backend.stats()
    assert (stats["loaded"], stats["running"], stats["waiting"]) == (False, 0, 0)
    assert not backend.closed
    assert backend.generate("hello", SHORT).text == text
    assert backend.stats()["loaded"]
    assert backend.stats()["requests"] == backend.stats()["finished"] == 2


def test_without_a_wish_it_stays(make: Make) -> None:
    backend = make()
    backend.generate("hello", SHORT)
    model = weights(backend)
    time.sleep(0.1)
    gc.collect()
    assert model() is not None and backend.stats()["loaded"]


def test_each_request_begins_the_time_anew(make: Make) -> None:
    backend = make(1.0)
    backend.generate("hello", SHORT)
    model = weights(backend)
    for _ in range(6):
        time.sleep(0.3)
        backend.generate("hello", SHORT)
    assert model() is engine_of(backend)._loop.runner.model.hf


def test_counting_tokens_wakes_nobody(make: Make) -> None:
    backend = make(0)
    backend.generate("hello", SHORT)
    until(gone(backend))
    assert backend.count_tokens("hello") and backend.info.context_length
    assert not backend.stats()["loaded"]


def test_warm_up_is_a_use_like_any_other(make: Make) -> None:
    backend = make(0)
    backend.warm_up()
    until(gone(backend))
    assert backend.generate("hello", SHORT).text


def test_model_that_cannot_come_back_is_told_to_who_asks_and_may_come_later(
    tiny: TinyModel, tmp_path: Path
) -> None:
    place = tmp_path / "model"
    shutil.copytree(tiny.path, place)
    backend = llavakit.load(place, keep_alive=0)
    text = backend.generate("hello", SHORT).text
    until(lambda: not backend.stats()["loaded"])
    shutil.move(place, tmp_path / "away")
    for _ in range(2):
        with pytest.raises(ModelError):
            backend.generate("hello", SHORT)
    shutil.move(tmp_path / "away", place)
    assert backend.generate("hello", SHORT).text == text
    backend.close()


# Nobody is lost


def test_model_stays_while_an_answer_is_computed(make: Make) -> None:
    backend = make(0)
    stream = backend.stream("hello", LONG)
    next(stream)
    model = weights(backend)
    for _ in range(3):
        backend.generate("beside it", SHORT)
    assert backend.stats()["loaded"] and model() is not None
    assert [chunk.finish_reason for chunk in stream][-1] is not None
    until(lambda: model() is None)


def test_model_stays_while_a_request_is_prepared_and_no_longer(make: Make) -> None:
    backend = make("100ms")
    backend.generate("hello", SHORT)
    model, seen = weights(backend), []

    def slowly(image: Image) -> Any:
        time.sleep(0.4)
        seen.append(model() is not None and backend.stats()["loaded"])
        raise EngineError("It cannot be opened.")

    picture = Image(PILImage.new("RGB", (30, 30), "red"))
    with pytest.raises(EngineError, match="opened"):
        engine_of(backend).submit(Request((Message("user", [picture, "hi"]),), SHORT), slowly)
    assert seen == [True]
    until(lambda: model() is None)


def test_request_that_comes_while_the_model_leaves_waits_for_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving, go = threading.Event(), threading.Event()

    def trim() -> None:
        leaving.set()
        assert go.wait(20)

    def build(*args: Any) -> Resident:
        built.append(args)
        return Resident(*args)

    built: list[Any] = []
    monkeypatch.setattr(module, "trim", trim)
    monkeypatch.setattr(module, "Resident", build)
    backend = make(0)
    text = backend.generate("hello", SHORT).text
    assert leaving.wait(20)
    answers: list[str] = []
    asking = [
        threading.Thread(target=lambda: answers.append(backend.generate("hello", SHORT).text))
        for _ in range(3)
    ]
    for thread in asking:
        thread.start()
    time.sleep(0.1)
    assert len(built) == 1, "two models must not be there at once"
    go.set()
    for thread in asking:
        thread.join(20)
    assert answers == [text] * 3


def test_nobody_is_lost_or_left_behind_when_it_always_leaves(make: Make) -> None:
    backend = make(0)
    questions = [f"question {number}" for number in range(4)]
    expected = {one: backend.generate(one, SHORT).text for one in questions}
    faults: list[Any] = []
    dice = random.Random(3)
    delays = [dice.choice([0, 0, 0.002, 0.02]) for _ in range(32)]

    def ask(own: list[float]) -> None:
        for number, delay in enumerate(own):
            time.sleep(delay)
            question = questions[number % len(questions)]
            try:
                if number % 5 == 4:
                    with backend.stream(question, LONG) as stream:
                        next(stream)
                elif number % 7 == 3:
                    with pytest.raises(ContextLengthError):
                        backend.generate("a" * 3000, SHORT)
                elif (text := backend.generate(question, SHORT).text) != expected[question]:
                    faults.append((question, text))
            except BaseException as error:
                faults.append(error)

    threads = [threading.Thread(target=ask, args=(delays[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not faults
    until(gone(backend))
    stats = backend.stats()
    assert stats["requests"] == stats["finished"] + stats["cancelled"] and not stats["failed"]


async def test_async_requests_wake_it_too(make: Make) -> None:
    backend = make(0)
    text = (await backend.agenerate("hello", SHORT)).text
    await asyncio.to_thread(until, gone(backend))
    answers = await asyncio.gather(*(backend.agenerate("hello", SHORT) for _ in range(5)))
    assert [answer.text for answer in answers] == [text] * 5


# Nothing else holds the weights


def test_streams_and_errors_that_are_kept_hold_no_weights(make: Make) -> None:
    backend = make("300ms", prefill_chunk=2047)
    unread = backend.stream("hello", SHORT)
    read = backend.stream("hello", SHORT)
    assert gather(read).text
    with pytest.raises(ContextLengthError) as too_long:
        backend.generate("a" * 3000, SHORT)
    with pytest.raises(ParameterError) as refused:
        backend.generate("a", SamplingParams(logit_bias={9999: 1}))
    model = weights(backend)
    until(lambda: model() is None)
    assert gather(unread).text
    assert too_long.value.__traceback__ and refused.value.__traceback__


def test_memory_does_not_grow_and_no_thread_stays_behind(make: Make) -> None:
    backend = make(0)

    def cycle() -> None:
        backend.generate("hello", SamplingParams(max_tokens=3, grammar="[a-z]{3}"))
        engine = engine_of(backend)
        until(lambda: engine._resident is None)
        assert engine._leaving is not None
        engine._leaving.join(20)
        assert not engine._leaving.is_alive()

    for _ in range(2):
        cycle()
    process, threads = psutil.Process(), threading.active_count()
    before = process.memory_info().rss
    for _ in range(6):
        cycle()
    until(lambda: threading.active_count() <= threads)
    assert process.memory_info().rss - before < 6 << 20


# Several wishes for one model


def test_wishes_that_are_equal_are_one_backend_and_others_share_the_weights(make: Make) -> None:
    assert make("5m") is make(300) is make("300s")
    assert make() is make(-1)
    one, other = make("5m"), make()
    assert one is not other
    for backend in (one, other):
        backend.generate("hello", SHORT)
    assert engine_of(one) is engine_of(other)


def test_longest_wish_counts_while_who_has_it_is_there(make: Make) -> None:
    hasty, patient = make(0), make()
    for backend in (patient, hasty):
        backend.generate("hello", SHORT)
    model = weights(hasty)
    time.sleep(0.1)
    assert model() is not None
    del patient, backend
    gc.collect()
    until(lambda: model() is None)
    assert hasty.generate("hello", SHORT).text


def test_a_longer_wish_that_comes_later_counts_too(make: Make) -> None:
    hasty = make("300ms")
    hasty.generate("hello", SHORT)
    patient = make("1h")
    patient.generate("hello", SHORT)
    model = weights(hasty)
    time.sleep(0.5)
    assert model() is not None


# The end


def test_closing_ends_the_waiting_thread(make: Make) -> None:
    for keep_alive in ("1h", 0):
        backend = make(keep_alive)
        backend.generate("hello", SHORT)
        thread = engine_of(backend)._loop.thread if keep_alive else None
        backend.close()
        assert thread is None or not thread.is_alive()
        with pytest.raises(EngineClosedError):
            backend.generate("hello", SHORT)


def test_dropping_the_backend_frees_a_model_that_waits(make: Make) -> None:
    backend = make("1h")
    backend.generate("hello", SHORT)
    thread = engine_of(backend)._loop.thread
    del backend
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.slow  # test_local forks, too
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_child_that_is_forked_while_the_model_is_away_loads_its_own(tiny: TinyModel) -> None:
    code = f"""
import os, time, warnings
warnings.simplefilter("ignore")
import llavakit
from llavakit import SamplingParams
params = SamplingParams(max_tokens=4, temperature=0)
backend = llavakit.load({str(tiny.path)!r}, keep_alive=0)
expected = backend.generate("hello", params).text
while backend.stats()["loaded"]:
    time.sleep(0.01)
child = os.fork()
if child == 0:
    same = backend.generate("hello", params).text == expected
    while backend.stats()["loaded"]:
        time.sleep(0.01)
    os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0
assert backend.generate("hello", params).text == expected
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


@pytest.mark.slow  # test_local ends an interpreter while requests are open
def test_process_that_ends_while_the_model_leaves_ends_well(tiny: TinyModel) -> None:
    code = f"""
import warnings
warnings.simplefilter("ignore")
import llavakit
from llavakit import SamplingParams
backend = llavakit.load({str(tiny.path)!r}, keep_alive=0)
backend.generate("hello", SamplingParams(max_tokens=4, temperature=0))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
