"""The one thread that owns the model. Every step is three verbs: schedule, run, commit.

Other threads talk to it through one inbox and hear from it through each request's channel;
the one lock is for counting who comes in. Every request ends exactly once, whatever happens
to the others.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch

from llavakit.engine.answer import Answer
from llavakit.engine.grammar import allowed
from llavakit.engine.runner import ModelRunner, Outcome
from llavakit.engine.sampler import Drawn, Sampler
from llavakit.engine.scheduler import Plan, Scheduler
from llavakit.engine.sequence import Sequence
from llavakit.errors import (
    EngineClosedError,
    EngineError,
    LlavaKitError,
    OutOfMemoryError,
    QueueFullError,
    RequestTimeoutError,
)
from llavakit.values import Chunk, Usage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Cancel:
    sequence: Sequence


class _Stop:
    """Asks the loop to end."""


@dataclass(slots=True)
class Counters:
    """Totals since the engine began."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


class EngineLoop:
    """Runs sequences until it is told to stop.

    Args:
        scheduler: decides what each step computes.
        runner: computes it.
        sampler: draws the tokens.
        name: shown in the thread's name.
        max_waiting: most sequences that wait for their first step.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        sampler: Sampler,
        name: str,
        max_waiting: int,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.counters = Counters()
        self._sampler = sampler
        self._max_waiting = max_waiting
        self._door = threading.Lock()
        self._submitted = 0  # written behind the door
        self._taken_in = 0  # written by the loop's own thread
        self._inbox: SimpleQueue[Sequence | _Cancel | _Stop] = SimpleQueue()
        self._open: dict[int, Sequence] = {}
        self._masks = ThreadPoolExecutor(1, f"llavakit-masks-{name}")
        self._dead = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"llavakit-{name}", daemon=True)
        self._thread.start()

    # Called from any thread

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

    def stop(self, timeout: float | None = 10.0) -> None:
        """End every request with an error and the thread with them."""
        self._dead.set()
        self._inbox.put(_Stop())
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    # The loop's own thread

    def _main(self) -> None:
        error: LlavaKitError = EngineClosedError("The engine was closed; the request was ended.")
        try:
            while self._take_in():
                self._expire()
                if not self.scheduler.idle:
                    self._step()
        except BaseException as reason:
            log.exception("the engine died")
            error = EngineClosedError(
                f"The engine died ({type(reason).__name__}: {reason}); llavakit.load gives a "
                "fresh one."
            )
        finally:
            self._dead.set()
            self._masks.shutdown(wait=False)
            self._end_all(error)

    def _end_all(self, error: LlavaKitError) -> None:
        left = [item for item in self._drain() if isinstance(item, Sequence)]
        for sequence in itertools.chain(self._open.values(), left):
            sequence.channel.fail(error)
        self._open.clear()

    def _drain(self) -> Iterable[Sequence | _Cancel | _Stop]:
        while True:
            try:
                yield self._inbox.get_nowait()
            except Empty:
                return

    def _take_in(self) -> bool:
        """Read the inbox, waiting while there is nothing to do; False when told to stop."""
        first = [self._inbox.get()] if self.scheduler.idle else []
        for item in itertools.chain(first, self._drain()):
            if isinstance(item, _Stop):
                return False
            if isinstance(item, _Cancel):
                if item.sequence.number in self._open:
                    self.counters.cancelled += 1
                    self._close(item.sequence)
            else:
                self._open[item.number] = item
                self.counters.requests += 1
                self.scheduler.add(item)
                self._taken_in += 1
        return True

    def _close(self, sequence: Sequence, *, keep: bool = True) -> None:
        # Still open while it is released: whoever dies here ends this one's channel too.
        self.scheduler.release(sequence, keep=keep)
        del self._open[sequence.number]

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        self.counters.failed += 1
        self._close(sequence, keep=False)
        sequence.channel.fail(_for_users(error))

    def _expire(self) -> None:
        now = time.monotonic()
        for sequence in list(self._open.values()):
            if sequence.deadline is not None and now > sequence.deadline:
                timeout = sequence.request.timeout
                self.counters.failed += 1
                self._close(sequence)
                sequence.channel.fail(
                    RequestTimeoutError(f"The request did not finish within {timeout:g} seconds.")
                )

    @torch.inference_mode()
    def _step(self) -> None:
        plan = self.scheduler.schedule()
        masks = [
            (work, self._masks.submit(work.sequence.answer.matcher.fill))
            for work in plan.work
            if work.completes and work.sequence.answer.matcher is not None
        ]
        outcome = self.runner.run(plan)
        failed = dict(outcome.failed)
        for work, mask in masks:
            if (error := mask.exception()) is not None:
                failed[work.sequence] = (
                    error if isinstance(error, Exception) else EngineError(str(error))
                )
        self._commit(plan, outcome, failed)

    def _commit(self, plan: Plan, outcome: Outcome, failed: dict[Sequence, Exception]) -> None:
        self.counters.steps += 1
        plan.work = [work for work in plan.work if work.sequence not in failed]
        for sequence, error in failed.items():
            self._fail(sequence, error)
        self.scheduler.commit(plan)
        drawn = self._draw(outcome)
        for work, one in zip(outcome.completed, drawn, strict=True):
            if work.sequence not in failed:
                self._advance(work.sequence, one)

    def _draw(self, outcome: Outcome) -> list[Drawn]:
        if outcome.logits is None:
            return []
        sequences = [work.sequence for work in outcome.completed]
        draws = [sequence.answer.draw for sequence in sequences]
        seen = [s.tokens if s.request.params.repetition_penalty != 1.0 else None for s in sequences]
        masks = allowed([sequence.answer.matcher for sequence in sequences], outcome.logits)
        return self._sampler(outcome.logits, draws, seen, masks)

    def _advance(self, sequence: Sequence, drawn: Drawn) -> None:
        """Add a drawn token to a sequence and tell what can be told."""
        answer: Answer = sequence.answer
        sequence.tokens.append(drawn.token)
        self.counters.generated_tokens += 1
        try:
            chunk = answer.push(drawn)
        except Exception as error:
            self._fail(sequence, error)
            return
        if chunk is not None:
            sequence.channel.put(chunk)
        if answer.finish_reason is not None:
            self._finish(sequence, answer)

    def _finish(self, sequence: Sequence, answer: Answer) -> None:
        self.counters.finished += 1
        self.counters.prompt_tokens += sequence.prompt_length
        self.counters.cached_tokens += sequence.cached
        self._close(sequence)
        usage = Usage(
            prompt_tokens=sequence.prompt_length,
            completion_tokens=answer.tokens,
            cached_tokens=sequence.cached,
            image_tokens=sequence.image_tokens,
        )
        sequence.channel.put(Chunk(finish_reason=answer.finish_reason, usage=usage))


def _for_users(error: Exception) -> Exception:
    """An error of llavakit's own tree, with the cause chained."""
    if isinstance(error, LlavaKitError):
        return error
    result: Any
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        result = OutOfMemoryError(
            "The device has no memory left for this request; lower max_tokens, kv_cache_bytes or "
            "max_concurrency, or load the model in 4 bits."
        )
    else:
        result = EngineError(f"The model failed on this request: {type(error).__name__}: {error}")
    result.__cause__ = error
    return result  # type: ignore[no-any-return]
