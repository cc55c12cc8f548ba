"""The one thread on which this process talks to servers: an event loop in the background.

It begins with its first user and ends with its last. Letting go takes no lock, because it
happens in finalisers, which may run anywhere. A forked child inherits the object but not the
thread, and begins its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future, wait
from typing import Any, TypeAlias, TypeVar

from llavakit._forks import ForkLock, in_child
from llavakit.errors import EngineClosedError

T = TypeVar("T")
Closing: TypeAlias = Callable[[], Awaitable[None]]

_CLOSED = "The connection to the server was closed; llavakit.load gives a fresh one."
_current: BackgroundLoop | None = None
_lock = ForkLock()
_inherited: list[object] = []
"""Loops of a parent process. They must never be closed here: the kernel's object behind them
is shared, and closing would make the parent deaf."""


class BackgroundLoop:
    """An event loop on a daemon thread; made by :func:`join`."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._users: list[Closing] = []  # what each of them leaves to be closed
        self._ending = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="llavakit-remote", daemon=True)
        self._thread.start()

    def start(self, make: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        """Runs a coroutine; gives the function that cancels it, which never blocks."""
        running: list[asyncio.Task[None]] = []

        def begin() -> None:
            running.append(self._loop.create_task(make()))

        def stop() -> None:
            for task in running:
                task.cancel()

        self._soon(begin)
        return lambda: self._soon(stop)

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine that ends by itself; several threads may wait for its result.

        Raises:
            EngineClosedError: the loop has ended.
        """
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError as error:
            coroutine.close()
            raise EngineClosedError(_CLOSED) from error

    def result(self, begun: Future[T], deadline: float | None = None) -> T:
        """Waits for a result; not on the loop's own thread.

        Raises:
            TimeoutError: it did not come until ``deadline`` (of ``time.monotonic``).
            EngineClosedError: the loop ended meanwhile.
        """
        while not begun.done():
            left = 1.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            # In slices, because a loop that has ended answers nothing.
            if not wait([begun], min(left, 1.0)).done and not self._thread.is_alive():
                raise EngineClosedError(_CLOSED)
        try:
            return begun.result()
        except CancelledError as error:
            raise EngineClosedError(_CLOSED) from error

    def leave(self, close: Closing) -> None:
        """A user lets go of the loop, by what it joined with; safe in a finaliser."""

        async def leaving() -> None:
            await _closed(close)
            self._let_go(close)

        def begin() -> None:
            task = self._loop.create_task(leaving())
            _leaving.add(task)
            task.add_done_callback(_leaving.discard)

        self._soon(begin)

    def _soon(self, call: Callable[[], object]) -> None:
        if self.process == os.getpid():
            with contextlib.suppress(RuntimeError):  # closed: nothing runs there any more
                self._loop.call_soon_threadsafe(call)

    def _let_go(self, close: Closing) -> None:
        global _current
        with _lock:
            if close in self._users:
                self._users.remove(close)
            if not self._users:
                if _current is self:
                    _current = None
                if not self._ending:
                    self._loop.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._ending = True
            left = asyncio.all_tasks(self._loop)
            for task in left - _leaving:
                task.cancel()
            closing = [_closed(close) for close in self._users]  # at the end of the process
            self._loop.run_until_complete(asyncio.gather(*left, *closing, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _end(self) -> None:
        self._soon(self._loop.stop)
        self._thread.join(5)


_leaving: set[asyncio.Task[None]] = set()
"""Tasks without another reference; the event loop itself holds them weakly."""


async def _closed(close: Closing) -> None:
    with contextlib.suppress(Exception):
        await close()


def join(close: Closing) -> BackgroundLoop:
    """The loop of this process, begun if there is none.

    Args:
        close: called when the user leaves, or the process ends.
    """
    global _current
    with _lock:
        if _current is None:
            _current = BackgroundLoop()
        _current._users.append(close)
        return _current


def _end_at_exit() -> None:
    if _current is not None:
        _current._end()


@in_child
def _after_fork() -> None:
    global _current
    if _current is not None:
        _inherited.append(_current)
    _current = None
    _leaving.clear()


atexit.register(_end_at_exit)
