"""Stretches of pages made by several threads at once, and taken in their order.

What is made ahead is bounded, and nothing can wait for ever: a thread makes one page of the first
stretch that is its own or that has none yet, and before each page it looks again. The stretch that
the caller waits for is made whatever else is there.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from llavakit.documents._isolated import Renderer
from llavakit.documents.folders import Failure
from llavakit.documents.one_document import Pages
from llavakit.documents.pages import Page
from llavakit.errors import InputError

MOST_PIXELS = 32_000_000
"""Pixels of pages that are rendered ahead: 96 MB, two of the largest pages or 18 of A4."""
MOST_PAGES = 8
"""Pages (and failures) ahead, for each renderer."""
LAST = 2**62
"""The place of a stretch behind all others of its document."""

_JOIN_SECONDS = 5.0
Order: TypeAlias = tuple[int, int]
_Result = TypeVar("_Result")


@dataclass(eq=False)
class Stretch:
    """Some pages, one after the other.

    Attributes:
        order: its place; the first ones are made and taken first.
        make: gives its pages with a renderer, in a thread of the pool; None once it has ended, so
            that what it refers to (a document's bytes) goes at once and not when Python looks for
            cycles.
        pages: what ``make`` gave.
        ready: pages that are made and not taken.
        is_ended: whether nothing more comes.
        is_dropped: whether no more of it is wanted.
        error: what ended it, if it was an error.
    """

    order: Order
    make: Callable[[Renderer], Pages] | None
    pages: Pages | None = None
    ready: deque[Page | Failure] = field(default_factory=deque)
    is_ended: bool = False
    is_dropped: bool = False
    error: Exception | None = None

    def __lt__(self, other: Stretch) -> bool:
        return self.order < other.order


@dataclass(eq=False)
class _Worker:
    """A thread, its renderer, and the stretches that it has begun."""

    renderer: Renderer
    begun: list[Stretch] = field(default_factory=list)
    thread: threading.Thread | None = None


class _Call:
    """What a thread of the pool wants done in the caller's."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run
        self.is_done = False
        self.result: Any = None
        self.error: InputError | None = None


class _ClosedError(Exception):
    """Ends a thread of the pool that waits for its caller."""


class Stretches:
    """The pool.

    Args:
        workers: threads, each with a renderer; one is started when there is something for it.
        seconds: most for a page.
    """

    def __init__(self, workers: int, seconds: float) -> None:
        self.workers = workers
        self._seconds = seconds
        self._changed = threading.Condition()
        self._waiting: list[Stretch] = []  # a heap
        self._pool: list[_Worker] = []
        self._calls: deque[_Call] = deque()
        self._front: Stretch | None = None
        self._open = 0  # stretches that have not ended
        self._held = 0  # pages ahead, those included that are being made
        self._pixels = 0
        self._is_closed = False

    def add(self, order: Order, make: Callable[[Renderer], Pages]) -> Stretch:
        """Have a stretch made (see :class:`Stretch`)."""
        stretch = Stretch(order, make)
        with self._changed:
            heapq.heappush(self._waiting, stretch)
            self._open += 1
            if len(self._pool) < min(self.workers, self._open):
                self._start()
            self._changed.notify_all()
        return stretch

    def taken(self, stretch: Stretch) -> Generator[Page | Failure, None, None]:
        """The pages of a stretch, in the caller's thread; stretches are taken in their order.

        Raises:
            Exception: what ``make`` raised, and what a function raised that is called here.
        """
        try:
            while True:
                with self._changed:
                    self._front = stretch
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._calls or stretch.ready or stretch.is_ended)
                    call = self._calls.popleft() if self._calls else None
                    page = self._take(stretch) if call is None and stretch.ready else None
                if call is not None:
                    self._answer(call)
                elif page is not None:
                    yield page
                elif stretch.error is not None:
                    raise stretch.error
                else:
                    return
        finally:
            self.drop(stretch)

    def drop(self, stretch: Stretch) -> None:
        """Make no more of a stretch."""
        with self._changed:
            stretch.is_dropped = True
            while stretch.ready:
                self._take(stretch)
            self._changed.notify_all()

    def on_caller(self, run: Callable[[], _Result]) -> _Result:
        """Run a function in the caller's thread; called by threads of the pool.

        Raises:
            InputError: what it raised. Any other error is the caller's.
        """
        call = _Call(run)
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()
            self._changed.wait_for(lambda: call.is_done or self._is_closed)
        if call.error is not None:
            raise call.error
        if not call.is_done:
            raise _ClosedError
        result: _Result = call.result
        return result

    def close(self) -> None:
        """End the threads and their renderers."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for worker in self._pool:
            worker.renderer.stop()
        until = time.monotonic() + _JOIN_SECONDS
        for worker in self._pool:
            # One that fetches a file is not waited for any longer; it ends by itself.
            if worker.thread is not None and worker.thread is not threading.current_thread():
                worker.thread.join(max(0.0, until - time.monotonic()))

    def _take(self, stretch: Stretch) -> Page | Failure:
        page = stretch.ready.popleft()
        self._held -= 1
        self._pixels -= _pixels(page)
        return page

    def _answer(self, call: _Call) -> None:
        try:
            call.result = call.run()
        except InputError as error:
            call.error = error
        with self._changed:
            call.is_done = True
            self._changed.notify_all()

    def _start(self) -> None:
        worker = _Worker(Renderer(self._seconds))
        worker.thread = threading.Thread(
            target=self._work, args=(worker,), name="llavakit-renderer", daemon=True
        )
        self._pool.append(worker)
        worker.thread.start()

    # What follows runs in the threads of the pool.

    def _work(self, worker: _Worker) -> None:
        try:
            while (stretch := self._next(worker)) is not None:
                self._make_page(stretch, worker)
        finally:
            for stretch in worker.begun:
                _close(stretch)
            worker.renderer.close()

    def _next(self, worker: _Worker) -> Stretch | None:
        """The stretch to make a page of; None when the pool is closed."""
        with self._changed:
            while not self._is_closed:
                first = min([*worker.begun, *self._waiting[:1]], default=None)
                if first is not None and self._may_go_on(first):
                    if self._waiting and first is self._waiting[0]:
                        worker.begun.append(heapq.heappop(self._waiting))
                    self._held += 1
                    return first
                self._changed.wait()
        return None

    def _may_go_on(self, stretch: Stretch) -> bool:
        if stretch.is_dropped or (stretch is self._front and not stretch.ready):
            return True
        return self._held < MOST_PAGES * self.workers and self._pixels < MOST_PIXELS

    def _make_page(self, stretch: Stretch, worker: _Worker) -> None:
        page, error = None, None
        try:
            if stretch.is_dropped:
                _close(stretch)
            else:
                if stretch.pages is None:
                    assert stretch.make is not None, "it has not ended"
                    stretch.pages = stretch.make(worker.renderer)
                page = next(stretch.pages, None)
        except Exception as raised:  # the caller's, when its turn comes
            error = raised
        with self._changed:
            if page is None:
                stretch.is_ended, stretch.error = True, error
                stretch.make = stretch.pages = None
                worker.begun.remove(stretch)
                self._open -= 1
            if page is None or stretch.is_dropped:
                self._held -= 1
            else:
                stretch.ready.append(page)
                self._pixels += _pixels(page)
            self._changed.notify_all()


def _close(stretch: Stretch) -> None:
    if stretch.pages is not None:
        stretch.pages.close()


def _pixels(page: Page | Failure) -> int:
    return page.size[0] * page.size[1] if isinstance(page, Page) else 0
