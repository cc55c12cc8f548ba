"""Many requests under way at once, and their results in order.

The engine has requests to batch, and they need not all be in memory at once: items are taken from
their iterator as the window has space for them.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Generator, Iterable
from typing import Protocol, TypeVar

from llavakit._checks import check_integer
from llavakit.backend import Backend, to_request
from llavakit.errors import (
    InputError,
    LlavaKitError,
    OutOfMemoryError,
    QueueFullError,
    RequestTimeoutError,
)
from llavakit.streams import AnswerStream, gather
from llavakit.values import Completion, Message, SamplingParams

LEAST_WINDOW = 64
"""Requests under way; twice what the engine runs in one batch on a processor."""

OF_ONE_REQUEST = (InputError, OutOfMemoryError, RequestTimeoutError)
"""Errors that concern one request and not the next one."""

_BUSY = 0.05  # seconds until another try at an engine whose queue is full

Result_co = TypeVar("Result_co", covariant=True)


class WindowItem(Protocol[Result_co]):
    """An item that takes one or several requests; its length is how many are under way."""

    def __len__(self) -> int: ...

    def submit(self, backend: Backend, room: int) -> bool:
        """Submit at most ``room`` requests; return whether all are submitted."""

    def result(self) -> Result_co:
        """Wait for the result and return it."""

    def close(self) -> None:
        """Cancel what is under way; safe to call twice."""


def in_order(
    backend: Backend, things: Iterable[WindowItem[Result_co]], window: int | None = None
) -> Generator[Result_co, None, None]:
    """Yield the results of things, in their order, with at most ``window`` requests under way.

    None is twice what the model runs in one batch (``max_concurrency``), so that it never waits,
    and at least 64. An item that is alone may submit all its requests, however many. Leaving the
    iteration cancels what is under way.

    Raises:
        ParameterError: at once: a window below 1.
        LlavaKitError: what ``submit`` and ``result`` raise; the iteration ends with it.
    """
    check_window(window)
    return _in_order(backend, things, window)


def check_window(window: int | None) -> None:
    """Raise ParameterError for a window below 1."""
    if window is not None:
        check_integer("window", window, least=1)


def _usual(backend: Backend) -> int | None:
    """The window of a model; None while it is not loaded, and does not know what it can run."""
    running = backend.stats().get("max_concurrency")
    return None if running is None else max(LEAST_WINDOW, 2 * int(running))


def _in_order(
    backend: Backend, things: Iterable[WindowItem[Result_co]], window: int | None
) -> Generator[Result_co, None, None]:
    waiting: deque[WindowItem[Result_co]] = deque()
    try:
        for thing in things:
            waiting.append(thing)
            window = _usual(backend) if window is None else window
            most = LEAST_WINDOW if window is None else window
            while not thing.submit(backend, _room(waiting, most)):
                if len(waiting) > 1:
                    yield waiting.popleft().result()
                else:
                    time.sleep(_BUSY)  # other callers have filled the engine's queue
            while len(waiting) > most:  # failures have no requests, and do not fill the window
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for thing in waiting:
            thing.close()


def _room(waiting: deque[WindowItem[Result_co]], window: int) -> int:
    return sys.maxsize if len(waiting) == 1 else window - sum(map(len, waiting))


class Asking:
    """One request; its result is the answer, or the error of this request.

    Args:
        messages: the conversation.
        params: how the answer is sampled.
        error: why it cannot be submitted, if so.
    """

    def __init__(
        self,
        messages: tuple[Message, ...],
        params: SamplingParams,
        error: LlavaKitError | None = None,
    ) -> None:
        self._messages = messages
        self._params = params
        self._error = error
        self._stream: AnswerStream | None = None

    def __len__(self) -> int:
        return int(self._stream is not None)

    def submit(self, backend: Backend, room: int) -> bool:
        """Submit the request, if ``room`` is at least 1."""
        if self._error is not None:
            return True
        if room < 1:
            return False
        try:
            self._stream = backend.submit(to_request(self._messages, self._params))
        except QueueFullError:
            return False
        except InputError as error:
            self._error = error
        return True

    def result(self) -> Completion | LlavaKitError:
        """Wait for the answer and return it, or why there is none."""
        if self._stream is None:
            assert self._error is not None
            return self._error
        try:
            return gather(self._stream)
        except OF_ONE_REQUEST as error:
            return error
        finally:
            self.close()

    def close(self) -> None:
        """Cancel the request."""
        if self._stream is not None:
            self._stream.close()
