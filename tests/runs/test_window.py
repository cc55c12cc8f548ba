"""Requests in a window: how many are under way, in which order results come, and the end."""

from contextlib import closing

import pytest

import llavakit
from llavakit.errors import ImageDecodeError, ParameterError, RequestTimeoutError
from llavakit.runs.window import Asking, in_order
from llavakit.testing import FakeBackend
from llavakit.values import Completion, Message, SamplingParams


def asking(text):
    return Asking((Message("user", text),), SamplingParams())


@pytest.mark.parametrize("window", [1, 4, 100])
def test_results_come_in_order_with_at_most_a_window_of_requests_ahead(window):
    backend = FakeBackend(lambda request: request.messages[0].text)
    taken = []

    def things():
        for number in range(20):
            taken.append(number)
            yield asking(str(number))

    for number, outcome in enumerate(in_order(backend, things(), window)):
        assert outcome.text == str(number)
        assert len(backend.requests) <= number + window and len(taken) <= number + 1 + window


@pytest.mark.parametrize(("concurrency", "expected"), [(8, 64), (40, 80)])
def test_the_usual_window_is_twice_what_the_model_runs_in_one_batch(tiny, concurrency, expected):
    backend = llavakit.load(str(tiny.path), max_concurrency=concurrency, kv_cache_bytes=32 << 20)
    taken = 0

    def things():
        nonlocal taken
        for _ in range(120):
            taken += 1
            yield Asking((Message("user", "x"),), SamplingParams(max_tokens=1))

    with closing(backend), closing(in_order(backend, things())) as outcomes:
        ahead = [taken - number for number, _ in enumerate(outcomes)]
    # The item that has no place in the window yet is taken, too.
    assert len(ahead) == 120 and max(ahead) == expected + 1


def test_an_iteration_that_ends_early_cancels_what_is_under_way():
    backend = FakeBackend(["never ends"], hang=True)

    def things():
        yield from (asking("x") for _ in range(3))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"):
        next(in_order(backend, things(), 5))
    assert len(backend.requests) == backend.cancelled == 3


def test_an_error_of_one_request_is_its_result_and_one_of_the_model_ends_all():
    broken = ImageDecodeError("no image")
    backend = FakeBackend(["a", RequestTimeoutError("late"), "b", RuntimeError("dead"), "c"])
    things = [asking("x"), Asking((), SamplingParams(), broken), *map(asking, "yzvw")]
    outcomes = in_order(backend, things, 2)
    told = [next(outcomes) for _ in range(4)]
    assert [type(one) for one in told] == [
        Completion, ImageDecodeError, RequestTimeoutError, Completion,
    ]  # fmt: skip
    with pytest.raises(RuntimeError, match="dead"):
        next(outcomes)


def test_a_window_below_one_is_refused_at_once():
    with pytest.raises(ParameterError, match="window is 0"):
        in_order(FakeBackend(), [], 0)
