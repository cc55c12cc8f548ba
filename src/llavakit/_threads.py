"""Work on a thread for a caller that may be cancelled before it is done."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def off_loop(pool: ThreadPoolExecutor, work: Callable[[], T], undo: Callable[[T], None]) -> T:
    """Return the result of ``work``, run on a thread; undo it if its caller is cancelled."""
    # The caller's context, such as its trace, goes along.
    done = pool.submit(contextvars.copy_context().run, work)
    try:
        return await asyncio.wrap_future(done)
    except asyncio.CancelledError:
        undo_when_done(done, undo)
        raise


def undo_when_done(done: Future[T], undo: Callable[[T], None]) -> None:
    """Undo what a thread has done, or will have done, after its caller was cancelled."""

    def finish(future: Future[T]) -> None:
        if not future.cancelled() and future.exception() is None:
            undo(future.result())

    done.add_done_callback(finish)
