"""The one thread that owns the model. What it does in a step is in ``engine.steps``.

Other threads talk to it through one inbox and hear from it through each request's channel;
the one lock guards the counts of callers and requests. Every request ends exactly once, whatever
happens to the others.

A model that may be unloaded when it is idle (``patience``) is unloaded by this thread's own
decision, under the same lock: callers that entered before still have it, and later ones get False
from :meth:`EngineLoop.enter`.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from llavakit.engine.launch import Launcher
from llavakit.engine.runner import ModelRunner
from llavakit.engine.sampler import Sampler
from llavakit.engine.scheduler import Scheduler
from llavakit.engine.sequence import Sequence
from llavakit.engine.steps import Counters, Steps
from llavakit.errors import EngineClosedError, LlavaKitError, QueueFullError

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Cancel:
    sequence: Sequence


class _Stop:
    """A message: end the loop."""


class _Nudge:
    """A message: ask again how long to wait."""


@dataclass(frozen=True, slots=True)
class _OnThread(Generic[T]):
    function: Callable[[], T]
    result: Future[T]

    def run(self) -> None:
        if self.result.set_running_or_notify_cancel():
            try:
                self.result.set_result(self.function())
            except BaseException as error:  # the caller gets it, whatever it is
                self.result.set_exception(error)

    def refuse(self, error: Exception) -> None:
        if self.result.set_running_or_notify_cancel():
            self.result.set_exception(error)


_Item = Sequence | _Cancel | _OnThread[Any] | _Stop | _Nudge


_EXIT_SECONDS = 10.0
_loops: weakref.WeakSet[EngineLoop] = weakref.WeakSet()
_running: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def _end_at_exit() -> None:
    """End all threads before the interpreter ends; one in C++ would abort the process later."""
    until = time.monotonic() + _EXIT_SECONDS
    for loop in list(_loops):
        loop.stop(timeout=0)
    # Also threads whose loop is gone already and that still free the model's memory.
    for thread in list(_running):
        thread.join(max(0.0, until - time.monotonic()))


atexit.register(_end_at_exit)


CHECKS = "LLAVAKIT_CHECK"
"""Environment variable: check the scheduler's invariants whenever the engine falls idle."""


def _checks() -> bool:
    return os.environ.get(CHECKS, "") not in ("", "0")


class EngineLoop:
    """Runs sequences until it is stopped.

    Args:
        scheduler: decides what each step computes.
        runner: computes it.
        sampler: samples the tokens.
        name: shown in the thread's name.
        max_waiting: most sequences that wait for their first step.
        lookahead: whether a step is launched before the one before it is settled.
        counters: totals, which go on where an earlier loop ended.
        patience: returns the seconds that it waits for the next request before it retires; called
            repeatedly, on its own thread.
        ended: called by its thread at the very end, when no reference to the loop is left, with
            whether it has retired.

    Attributes:
        retired: whether it has ended because it was idle.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        sampler: Sampler,
        name: str,
        max_waiting: int,
        *,
        lookahead: bool = False,
        counters: Counters | None = None,
        patience: Callable[[], float] = lambda: math.inf,
        ended: Callable[[bool], None] = lambda retired: None,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.retired = False
        self._launcher = Launcher(runner, sampler, name)
        self._steps = Steps(scheduler, self._launcher, counters, lookahead=lookahead)
        self._max_waiting = max_waiting
        self._patience = patience
        self._inside = 0  # callers that entered and did not leave; written under the lock
        self._left_at: float | None = None  # when the last caller left
        self._entry = threading.Lock()
        self._submitted = 0  # written under the lock
        self._taken_in = 0  # written by the loop's own thread
        self._inbox: SimpleQueue[_Item] = SimpleQueue()
        self._dead = threading.Event()
        self._thread = threading.Thread(
            target=_live, args=([self], ended), name=f"llavakit-{name}", daemon=True
        )
        self._thread.start()
        _loops.add(self)
        _running.add(self._thread)

    # Called from any thread

    @property
    def counters(self) -> Counters:
        """Totals since the engine began."""
        return self._steps.counters

    @property
    def _open(self) -> dict[int, Sequence]:
        return self._steps.open

    @property
    def dead(self) -> bool:
        """Whether it takes no more requests."""
        return self._dead.is_set()

    @property
    def thread(self) -> threading.Thread:
        """The thread that runs it."""
        return self._thread

    def enter(self) -> bool:
        """Keep it from retiring until :meth:`leave`; False if it takes no more requests."""
        with self._entry:
            if self.dead:
                return False
            self._inside += 1
            return True

    def leave(self) -> None:
        """End what :meth:`enter` began."""
        with self._entry:
            self._inside -= 1
            self._left_at = time.monotonic()
        if self._patience() < math.inf:
            self.nudge()

    def nudge(self) -> None:
        """Have it ask for its patience again. Never blocks; safe in a finaliser."""
        self._inbox.put(_Nudge())

    @property
    def backlog(self) -> int:
        """Requests that wait for their first step; never too few, whenever it is read."""
        # Read in this order: a request that moves to the queue meanwhile counts twice.
        return self._submitted - self._taken_in + len(self.scheduler.waiting)

    def check_room(self) -> None:
        """Raise QueueFullError if no further sequence may wait."""
        if self.backlog >= self._max_waiting:
            raise QueueFullError(
                f"{self._max_waiting} requests are waiting already; try again later or "
                "raise max_waiting."
            )

    def submit(self, sequence: Sequence) -> None:
        """Submit a sequence; its channel will end in any case.

        Raises:
            QueueFullError: too many wait.
        """
        with self._entry:  # or two at the same time would both take the last place
            self.check_room()
            self._submitted += 1
        self._inbox.put(sequence)
        if self.dead:
            # The loop may have ended just before: nothing else would end this channel.
            sequence.channel.fail(
                EngineClosedError("The engine was closed; llavakit.load gives a fresh one.")
            )

    def cancel(self, sequence: Sequence) -> None:
        """Free a sequence at the next step. Never blocks; safe in a finaliser."""
        self._inbox.put(_Cancel(sequence))

    def run_between_steps(self, function: Callable[[], T]) -> Future[T]:
        """Have a function run by the loop's own thread, with no step in flight.

        It runs in ``torch.inference_mode``; what it raises is in the future.

        Raises:
            EngineClosedError: the engine was closed. If that happens later, it is in the future.
        """
        call: _OnThread[T] = _OnThread(function, Future())
        with self._entry:  # or the loop might end in between, and the inbox would not be read
            if self.dead:
                raise EngineClosedError("The engine was closed; llavakit.load gives a fresh one.")
            self._inbox.put(call)
        return call.result

    def stop(self, timeout: float | None = 10.0) -> None:
        """End every request with an error and the thread with them."""
        self._dead.set()
        self._inbox.put(_Stop())
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    # The loop's own thread

    @torch.inference_mode()
    def _main(self) -> None:
        error: LlavaKitError = EngineClosedError("The engine was closed; the request was ended.")
        try:
            while self._take_in():
                self._steps.expire()
                if not self._steps.idle:
                    self._step()
        except BaseException as reason:
            log.exception("the engine died")
            error = EngineClosedError(
                f"The engine died ({type(reason).__name__}: {reason}); llavakit.load gives a "
                "fresh one."
            )
        finally:
            self._dead.set()
            self._launcher.close()
            self._end_all(error)

    def _step(self) -> None:
        self._steps.step()

    def _end_all(self, error: LlavaKitError) -> None:
        self._steps.end_all(error)
        with self._entry:  # a caller that saw a living loop has put its call by now
            left = list(self._drain())
        for item in left:
            if isinstance(item, Sequence):
                item.channel.fail(error)
            elif isinstance(item, _OnThread):
                item.refuse(error)

    def _drain(self) -> Iterable[_Item]:
        while not self._inbox.empty():
            try:
                yield self._inbox.get_nowait()
            except Empty:
                return

    def _take_in(self) -> bool:
        """Read the inbox, waiting while there is nothing to do; False to stop."""
        if self._steps.idle and _checks():
            self.scheduler.check_integrity()
        first = [self._wait()] if self._steps.idle else []
        for item in itertools.chain(first, self._drain()):
            if isinstance(item, _Nudge):
                continue
            if isinstance(item, _Stop):
                return False
            if isinstance(item, _Cancel):
                self._steps.cancel(item.sequence)
            elif isinstance(item, _OnThread):
                self._steps.land()
                item.run()
            else:
                self._steps.admit(item)
                self._taken_in += 1
        return True

    def _wait(self) -> _Item:
        """Return the next item; a stop if none comes before the patience ends."""
        began = time.monotonic()
        while True:
            try:
                item = self._inbox.get(timeout=self._left(began))
            except Empty:
                if self._retire(began):
                    return _Stop()
                continue
            if not isinstance(item, _Nudge):
                return item

    def _left(self, began: float) -> float | None:
        """Seconds that it still waits, being idle since ``began``; None waits for ever.

        Before its first request it is not idle but new: that request is about to come.
        """
        patience = self._patience()
        left_at = self._left_at
        if patience == math.inf or left_at is None or self._inside:
            return None  # the last caller nudges when it leaves
        left = max(began, left_at) + patience - time.monotonic()
        return min(max(left, 0.0), threading.TIMEOUT_MAX)

    def _retire(self, began: float) -> bool:
        """Take no more requests, unless a caller entered meanwhile."""
        with self._entry:
            if self._left(began) != 0 or not self._inbox.empty():
                return False
            self.retired = True
            self._dead.set()
            return True


def _live(owned: list[EngineLoop], ended: Callable[[bool], None]) -> None:
    """Run a loop's thread; it holds no reference to the loop when it calls ``ended``."""
    loop = owned.pop()
    loop._main()
    retired = loop.retired
    del loop
    ended(retired)
