"""The one thread that owns the model. What it does in a step is in ``engine.steps``.

Other threads talk to it through one inbox and hear from it through each request's channel;
the one lock is for counting who comes in. Every request ends exactly once, whatever happens
to the others.
"""

from __future__ import annotations

import itertools
import logging
import threading
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
    """Asks the loop to end."""


@dataclass(frozen=True, slots=True)
class _Call(Generic[T]):
    function: Callable[[], T]
    result: Future[T]

    def run(self) -> None:
        if self.result.set_running_or_notify_cancel():
            try:
                self.result.set_result(self.function())
            except BaseException as error:  # the caller's, whatever it is
                self.result.set_exception(error)

    def refuse(self, error: Exception) -> None:
        if self.result.set_running_or_notify_cancel():
            self.result.set_exception(error)


_Item = Sequence | _Cancel | _Call[Any] | _Stop


class EngineLoop:
    """Runs sequences until it is told to stop.

    Args:
        scheduler: decides what each step computes.
        runner: computes it.
        sampler: draws the tokens.
        name: shown in the thread's name.
        max_waiting: most sequences that wait for their first step.
        lookahead: whether a step is launched before the one before it is settled.
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
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self._launcher = Launcher(runner, sampler, name)
        self._steps = Steps(scheduler, self._launcher, lookahead=lookahead)
        self._max_waiting = max_waiting
        self._door = threading.Lock()
        self._submitted = 0  # written behind the door
        self._taken_in = 0  # written by the loop's own thread
        self._inbox: SimpleQueue[_Item] = SimpleQueue()
        self._dead = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"llavakit-{name}", daemon=True)
        self._thread.start()

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
    def backlog(self) -> int:
        """Requests that wait for their first step; never too few, whenever it is read."""
        # Read in this order: who moves from the inbox to the queue meanwhile counts twice.
        return self._submitted - self._taken_in + len(self.scheduler.waiting)

    def check_room(self) -> None:
        """Raise QueueFullError if no further sequence may wait."""
        if self.backlog >= self._max_waiting:
            raise QueueFullError(
                f"{self._max_waiting} requests are waiting already; try again later or "
                "raise max_waiting."
            )

    def submit(self, sequence: Sequence) -> None:
        """Hand over a sequence; its channel will end, in any case.

        Raises:
            QueueFullError: too many wait.
        """
        with self._door:  # or two that come together would both be the last one
            self.check_room()
            self._submitted += 1
        self._inbox.put(sequence)
        if self.dead:
            # The loop may have ended just before: nobody else would end this channel.
            sequence.channel.fail(EngineClosedError("The engine was closed."))

    def cancel(self, sequence: Sequence) -> None:
        """Free a sequence at the next step. Never blocks; safe in a finaliser."""
        self._inbox.put(_Cancel(sequence))

    def run_between_steps(self, function: Callable[[], T]) -> Future[T]:
        """Have a function run by the loop's own thread, with no step in flight.

        It runs in ``torch.inference_mode``; what it raises is in the future.

        Raises:
            EngineClosedError: the engine was closed. If that happens later, it is in the future.
        """
        call: _Call[T] = _Call(function, Future())
        with self._door:  # or the loop might end in between, and nobody would read the inbox
            if self.dead:
                raise EngineClosedError("The engine was closed.")
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
        with self._door:  # whoever has seen a living loop has put his call by now
            left = list(self._drain())
        for item in left:
            if isinstance(item, Sequence):
                item.channel.fail(error)
            elif isinstance(item, _Call):
                item.refuse(error)

    def _drain(self) -> Iterable[_Item]:
        while not self._inbox.empty():
            try:
                yield self._inbox.get_nowait()
            except Empty:
                return

    def _take_in(self) -> bool:
        """Read the inbox, waiting while there is nothing to do; False when told to stop."""
        first = [self._inbox.get()] if self._steps.idle else []
        for item in itertools.chain(first, self._drain()):
            if isinstance(item, _Stop):
                return False
            if isinstance(item, _Cancel):
                self._steps.cancel(item.sequence)
            elif isinstance(item, _Call):
                self._steps.land()
                item.run()
            else:
                self._steps.admit(item)
                self._taken_in += 1
        return True
