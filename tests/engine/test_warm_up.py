"""What is done before the first request: in which order, once, and at the cost of no answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

import llavakit
from llavakit.engine.config import EngineConfig
from llavakit.engine.engine import Engine
from llavakit.engine.warm_up import Progress, warm_up
from llavakit.errors import CheckpointError, EngineClosedError, EngineError, ParameterError
from llavakit.local import LocalBackend
from llavakit.model.loader import load_reader
from llavakit.testing import FakeBackend
from tests.engine.asking import PICTURES, WORDS, ask
from tests.tiny import TinyModel


class Loop:
    """Runs what goes between steps, as the engine's loop does, on a thread of its own."""

    dead = False

    def run_between_steps(self, function: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="the loop").start()
        return future


class Steps:
    """Two shapes to capture; remembers who asked."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.calls: list[tuple[int, str]] = []
        self._failure = failure

    def warm_up(self, max_rows: int, progress: Progress) -> None:
        self.calls.append((max_rows, threading.current_thread().name))
        progress(1, 2, "one row")
        if self._failure is not None:
            raise self._failure
        progress(2, 2, "two rows")


def test_requests_come_first_and_then_the_captures_on_the_loops_thread() -> None:
    backend, steps = FakeBackend(), Steps()
    told: list[tuple[int, int, str]] = []
    warm_up(
        backend.submit, Loop(), steps, max_rows=7, picture=True, progress=lambda *a: told.append(a)
    )
    assert [len(request.messages[0].images) for request in backend.requests] == [0, 1]
    assert all(request.params.max_tokens == 2 for request in backend.requests)
    assert steps.calls == [(7, "the loop")]
    assert told == [
        (1, 2, "a question"),
        (2, 2, "an image"),
        (1, 2, "one row"),
        (2, 2, "two rows"),
    ]


def test_progress_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llavakit.engine.warm_up")
    warm_up(FakeBackend().submit, Loop(), Steps(), max_rows=2, picture=False)
    said = [record.getMessage() for record in caplog.records]
    assert said[:3] == [
        "warming up: a question (1 of 1)",
        "warming up: one row (1 of 2)",
        "warming up: two rows (2 of 2)",
    ]
    assert said[3].startswith("warmed up in ")


@pytest.mark.parametrize("what", ["asking", "capturing"])
def test_what_fails_is_a_warning_and_the_rest_is_done(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = RuntimeError("no graphs here")
    backend = FakeBackend([EngineError("no room")] if what == "asking" else ["ok"])
    steps = Steps(error if what == "capturing" else None)
    warm_up(backend.submit, Loop(), steps, max_rows=2, picture=False)
    assert len(backend.requests) == len(steps.calls) == 1
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.name for record in warnings] == ["llavakit.engine.warm_up"]
    assert "the warm-up failed" in warnings[0].getMessage()


def test_closing_ends_it() -> None:
    loop, steps = Loop(), Steps()
    loop.dead = True
    with pytest.raises(EngineClosedError):
        warm_up(FakeBackend().submit, loop, steps, max_rows=2, picture=False)
    assert steps.calls == []


# Through the whole engine


@pytest.fixture
def engine(tiny: TinyModel) -> Iterator[Engine]:
    config = EngineConfig(str(tiny.path), device="cpu", static_decode=True, max_concurrency=5)
    engine = Engine(load_reader(tiny.path), config)
    yield engine
    engine.close()


def test_an_engine_is_warmed_up_once_and_answers_as_before(
    engine: Engine, tiny: TinyModel, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[int, int, str]] = []
    callers = [
        threading.Thread(target=engine.warm_up, args=(lambda *a: told.append(a),)) for _ in range(3)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert told[0] == (1, 1, "a question") and len(told) > 1
    done, total, _ = told[-1]
    assert done == total == len(told) - 1, "each shape is captured once"
    assert engine.stats()["requests"] == 1
    drawn = ask(engine, WORDS[:3], PICTURES, 12)
    for text, picture, tokens in zip(WORDS[:3], PICTURES, drawn, strict=True):
        assert tokens == tiny.generate([("user", [picture, text])], 12)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_an_engine_that_was_closed_says_so(engine: Engine) -> None:
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.warm_up()


# By llavakit.load


def test_load_warms_up_the_one_backend_of_its_configuration(tiny: TinyModel) -> None:
    backend = llavakit.load(tiny.path, device="cpu", max_waiting=77)
    assert isinstance(backend, LocalBackend)
    assert backend._engine is None
    for _ in range(2):
        assert llavakit.load(tiny.path, device="cpu", max_waiting=77, warm_up=True) is backend
    assert backend.stats()["requests"] == 1
    backend.close()


def test_errors_of_loading_are_raised(tmp_path: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        llavakit.load(tmp_path, warm_up=True)


def test_a_server_warms_itself_up() -> None:
    with pytest.raises(ParameterError, match="warm_up has no effect on a server"):
        llavakit.load("m", base_url="http://127.0.0.1:9", warm_up=True)
    with pytest.raises(ParameterError, match="warm_up is 'yes'; it must be True or False"):
        llavakit.load("m", warm_up="yes")  # type: ignore[arg-type]
