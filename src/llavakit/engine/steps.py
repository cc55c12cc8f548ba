"""Steps and the requests in them: launch a step, settle the one before, end what is complete.

With *lookahead*, a step is launched before the one before it is settled, so that the device
computes while the host reads tokens and emits them. Whatever ends a sequence (a stop string, a
cancel, an error) is found a step later then: what the step in flight draws for it is dropped.
Its slots may go to others at once (see ``engine.scheduler``). Where the host must know a token
before the next can be sampled (a grammar, a repetition penalty), the whole step is settled first:
no request is slower than without lookahead, and no sequence has to skip a step.

Of the loop's own thread alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llavakit.engine.answer import Answer
from llavakit.engine.launch import Flight, Launcher
from llavakit.engine.sampler import Drawn
from llavakit.engine.scheduler import Scheduler
from llavakit.engine.sequence import Sequence
from llavakit.errors import EngineError, LlavaKitError, OutOfMemoryError, RequestTimeoutError
from llavakit.values import Chunk, Usage

NOT_FINITE = (
    "The model's scores for the next token are not finite numbers (NaN or infinity), so there is "
    'no answer. Numbers overflow in float16: load the model with dtype="bfloat16" or "float32"; if '
    "that does not help, the weights are damaged."
)

VECTORS_NOT_FINITE = (
    "The model's hidden states are not finite numbers (NaN or infinity), so there is no embedding. "
    'Numbers overflow in float16: load the model with dtype="bfloat16" or "float32"; if that does '
    "not help, the weights or the retrieval adapter are damaged."
)


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


class Steps:
    """Takes steps, and ends every request that it was given exactly once.

    Args:
        scheduler: decides what each step computes.
        launcher: launches it.
        counters: totals to go on from; None begins at 0.
        lookahead: whether a step is launched before the one before it is settled.

    Attributes:
        open: sequences that have not ended, by their number.
        counters: totals.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        launcher: Launcher,
        counters: Counters | None = None,
        *,
        lookahead: bool,
    ) -> None:
        self.scheduler = scheduler
        self.counters = Counters() if counters is None else counters
        self.open: dict[int, Sequence] = {}
        self._timed: dict[int, Sequence] = {}  # those of them that have a deadline
        self._launcher = launcher
        self._lookahead = lookahead
        self._flight: Flight | None = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._flight is None and self.scheduler.idle

    def admit(self, sequence: Sequence) -> None:
        """Take in a sequence."""
        self.open[sequence.number] = sequence
        if sequence.deadline is not None:
            self._timed[sequence.number] = sequence
        self.counters.requests += 1
        self.scheduler.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Free a sequence that is no longer awaited, if it is still open; its channel has ended."""
        if sequence.number in self.open:
            self.counters.cancelled += 1
            self._close(sequence)

    def end_all(self, error: LlavaKitError) -> None:
        """End all with an error; no step is taken any more."""
        for sequence in self.open.values():
            sequence.channel.fail(error)
        self.open.clear()
        self._timed.clear()
        self._flight = None

    def expire(self) -> None:
        """End those whose time is over."""
        if not self._timed:
            return
        now = time.monotonic()
        for sequence in list(self._timed.values()):
            if sequence.deadline is not None and now > sequence.deadline:
                timeout = sequence.request.timeout
                self.counters.failed += 1
                self._close(sequence)
                sequence.channel.fail(
                    RequestTimeoutError(f"The request did not finish within {timeout:g} seconds.")
                )

    def step(self) -> None:
        """Launch a step, then settle the one before it; without lookahead, that very step."""
        flight = self._launch()
        self.land()
        if flight is None:
            return
        # Only now: the step before may have ended some of them with their last token.
        self._fail_all(flight.failed)
        if self._lookahead and not flight.looks_back:
            self._flight = flight
        else:
            self._settle(flight)

    def _launch(self) -> Flight | None:
        """Launch the next step; None if nothing can be computed before the last is settled."""
        plan = self.scheduler.schedule()
        if not plan.work:
            return None
        self.counters.steps += 1
        return self._launcher.launch(plan, self._flight)

    def land(self) -> None:
        """Settle the step in flight, if there is one."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._settle(flight)

    def _settle(self, flight: Flight) -> None:
        """Wait for a step, and emit what it sampled for those that still want it."""
        live = [work for work in flight.plan.work if work.sequence.number in self.open]
        if not live:
            return
        try:
            sampled = flight.read()
        except Exception as error:
            # What it computed is void, and a step in flight may go on behind it: no retry.
            self._fail_all({work.sequence: error for work in live})
            return
        flight.plan.work = live
        self.scheduler.commit(flight.plan)
        self._collect(flight)
        advanced = []
        for work, one in zip(flight.completed, sampled, strict=True):
            sequence = work.sequence
            if sequence.number in self.open:
                advanced.append((sequence, self._advance(sequence, one)))
        # All at the end: a thread that waits for a chunk would wake up and slow this one down.
        for sequence, chunk in advanced:
            self._send(sequence, chunk)

    def _collect(self, flight: Flight) -> None:
        """Add a step's vectors to the embeddings that they belong to; end those that are whole."""
        for work, vectors in flight.embedded:
            sequence = work.sequence
            if sequence.number not in self.open:
                continue
            sequence.embedding.parts.append(vectors)
            if not work.completes:
                continue
            try:
                whole = sequence.embedding.vectors()
                if not np.isfinite(whole).all():
                    raise EngineError(VECTORS_NOT_FINITE)
            except Exception as error:
                self._fail(sequence, error)
                continue
            self._count(sequence)
            self._close(sequence, keep=False)
            sequence.channel.put(whole)

    def _advance(self, sequence: Sequence, sampled: Drawn) -> Chunk | Exception | None:
        """Add a sampled token to a sequence; gives what can be sent, or the error that ends it."""
        if not sampled.finite:
            return EngineError(NOT_FINITE)
        sequence.tokens.append(sampled.token)
        self.counters.generated_tokens += 1
        try:
            answer: Answer = sequence.answer
            return answer.push(sampled)
        except Exception as error:
            return error

    def _send(self, sequence: Sequence, chunk: Chunk | Exception | None) -> None:
        if isinstance(chunk, Exception):
            self._fail(sequence, chunk)
            return
        if chunk is not None:
            sequence.channel.put(chunk)
        if sequence.answer.finish_reason is not None:
            self._finish(sequence, sequence.answer)

    def _finish(self, sequence: Sequence, answer: Answer) -> None:
        self._count(sequence)
        self._close(sequence)
        usage = Usage(
            prompt_tokens=sequence.prompt_length,
            completion_tokens=answer.tokens,
            cached_tokens=sequence.cached,
            image_tokens=sequence.image_tokens,
        )
        sequence.channel.put(Chunk(finish_reason=answer.finish_reason, usage=usage))

    def _count(self, sequence: Sequence) -> None:
        self.counters.finished += 1
        self.counters.prompt_tokens += sequence.prompt_length
        self.counters.cached_tokens += sequence.cached

    def _close(self, sequence: Sequence, *, keep: bool = True) -> None:
        # Still open while it is released: if the loop fails here, this channel is ended as well.
        self.scheduler.release(sequence, keep=keep)
        del self.open[sequence.number]
        self._timed.pop(sequence.number, None)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        self.counters.failed += 1
        self._close(sequence, keep=False)
        sequence.channel.fail(_for_users(error))

    def _fail_all(self, errors: Mapping[Sequence, Exception]) -> None:
        for sequence, error in errors.items():
            if sequence.number in self.open:
                self._fail(sequence, error)


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
