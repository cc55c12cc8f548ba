"""Threads for the work of requests, shared fairly: light work, heavy work, and fetching.

Threads that wait for slow addresses, or that decode large images, are others than those that
read a small request, so that it never waits behind them. In each lane clients take turns.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from llavakit._threads import undo_when_done
from llavakit.images.isolated import LIGHT_BYTES, LIGHT_PIXELS

T = TypeVar("T")

FETCHING = 64
FETCHING_OF_ONE = 16
"""Most addresses that are fetched at once, for all clients and for one of them."""


class Lane:
    """A pool of threads whose clients take turns.

    Args:
        name: of the threads.
        threads: that work at once.
        of_one: that work for one client at once.
    """

    def __init__(self, name: str, threads: int, of_one: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(threads, f"llavakit-{name}")
        self._free = threads
        self._of_one = of_one or threads
        self._running: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[tuple[Future[Any], Callable[[], Any]]]]
        self._waiting = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, client: str, work: Callable[[], T]) -> Future[T]:
        """Queue work of a client; it can be cancelled until it runs."""
        done: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the lane is closed")
            self._waiting.setdefault(client, deque()).append((done, work))
        self._begin()
        return done

    async def run(
        self, client: str, work: Callable[[], T], undo: Callable[[T], None] | None = None
    ) -> T:
        """Return the result of work on a thread; it is undone if the caller has left by then."""
        # What belongs to the caller's context, such as its trace, goes along.
        done = self.submit(client, partial(contextvars.copy_context().run, work))
        try:
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            if undo is not None:
                undo_when_done(done, undo)
            raise

    def close(self, *, wait: bool = False) -> None:
        """Cancel what waits; what runs goes on to its end, which may be waited for."""
        with self._lock:
            self._closed = True
            left = [done for queue in self._waiting.values() for done, _ in queue]
            self._waiting.clear()
        for done in left:
            done.cancel()
        self._pool.shutdown(wait=wait)

    def _begin(self) -> None:
        """Start what may run now."""
        while True:
            with self._lock:
                found = self._next()
                if found is None or self._closed:
                    return
                client, done, work = found
                self._free -= 1
                self._running[client] += 1
                self._pool.submit(self._work, client, done, work)

    def _next(self) -> tuple[str, Future[Any], Callable[[], Any]] | None:
        """The next work of the client whose turn is next; that client then goes to the end."""
        if not self._free:
            return None
        for client, queue in self._waiting.items():
            if self._running[client] < self._of_one:
                done, work = queue.popleft()
                del self._waiting[client]
                if queue:
                    self._waiting[client] = queue
                return client, done, work
        return None

    def _work(self, client: str, done: Future[Any], work: Callable[[], Any]) -> None:
        try:
            if done.set_running_or_notify_cancel():
                try:
                    result = work()
                except BaseException as error:
                    done.set_exception(error)
                else:
                    done.set_result(result)
        finally:
            with self._lock:
                self._free += 1
                self._running[client] -= 1
                if not self._running[client]:
                    del self._running[client]
            self._begin()


class Lanes:
    """The lanes of a server.

    Attributes:
        light: what takes milliseconds.
        heavy: large bodies and large images, which are decoded in other processes meanwhile. It
            has at most half of the processors, and so leaves as much to the others.
        drawing: pages of PDFs, each document in a process; as many as in ``heavy``.
        fetching: what waits for other servers.
    """

    def __init__(self) -> None:
        processors = os.cpu_count() or 1
        self.light = Lane("light", min(8, processors + 2))
        self.heavy = Lane("heavy", max(1, processors // 2))
        self.drawing = Lane("drawing", max(1, processors // 2))
        self.fetching = Lane("fetching", FETCHING, FETCHING_OF_ONE)

    def of(self, size: int = 0, pixels: int = 0) -> Lane:
        """The lane of work on so many bytes or pixels."""
        heavy = size > LIGHT_BYTES or pixels > LIGHT_PIXELS
        return self.heavy if heavy else self.light

    def close(self, *, wait: bool = False) -> None:
        """Cancel what waits in all of them."""
        for lane in (self.light, self.heavy, self.drawing, self.fetching):
            lane.close(wait=wait)
