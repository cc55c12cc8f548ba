"""Warm an engine up before its first request, so that no request waits for one-time work.

Usual requests are run through the whole engine, and the steps of all batch sizes are compiled and
captured where decoding runs in static shapes. No answer depends on it: what fails is logged and
left to the requests, which meet the same error unless only the warm-up caused it.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Protocol, TypeAlias

from PIL import Image as PILImage

from llavakit.errors import EngineClosedError
from llavakit.streams import AnswerStream, gather
from llavakit.values import Image, Message, Request, SamplingParams

log = logging.getLogger(__name__)

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called after each task: how many are done, of how many, and what the last one was."""

_SIDE = 336
"""Side of the blank image in pixels; the model's processor resizes it."""


class Loop(Protocol):
    """The part of the engine's loop that is needed here."""

    @property
    def dead(self) -> bool:
        """Whether it takes no more requests."""

    def run_between_steps(self, function: Callable[[], Any], /) -> Future[Any]:
        """Run a function on the thread that owns the model."""


class StaticSteps(Protocol):
    """What is needed of what runs steps in static shapes."""

    def warm_up(self, max_rows: int, progress: Progress, /) -> None:
        """Compile and capture the steps of all batches of up to so many rows."""


def warm_up(
    submit: Callable[[Request], AnswerStream],
    loop: Loop,
    static: Iterable[StaticSteps],
    *,
    max_rows: int,
    picture: bool,
    progress: Progress | None = None,
) -> None:
    """Run, compile and capture what requests will need; returns when all of it is done.

    Args:
        submit: queues a request.
        loop: runs steps, and what goes between them.
        static: what runs steps in static shapes.
        max_rows: most sequences that run at once.
        picture: whether a blank image is asked about, too.
        progress: see :data:`Progress`; called on this thread and on the engine's.

    Raises:
        EngineClosedError: the engine was closed meanwhile.
    """
    began = time.monotonic()

    def tell(done: int, total: int, what: str) -> None:
        if loop.dead:  # close() does not wait for all that is left
            raise EngineClosedError("The engine was closed while it was warming up.")
        log.info("warming up: %s (%d of %d)", what, done, total)
        if progress is not None:
            progress(done, total, what)

    def ask() -> None:
        asked = {"a question": _request()}
        if picture:
            asked["an image"] = _request(Image(PILImage.new("RGB", (_SIDE, _SIDE), "grey")))
        for done, (what, request) in enumerate(asked.items(), start=1):
            with submit(request) as chunks:
                gather(chunks)
            tell(done, len(asked), what)

    def capture() -> None:
        for one in static:
            loop.run_between_steps(functools.partial(one.warm_up, max_rows, tell)).result()

    for work in (ask, capture):
        try:
            work()
        except EngineClosedError:
            raise
        except Exception:
            log.warning("the warm-up failed; requests do without what is missing", exc_info=True)
    log.info("warmed up in %.1f s", time.monotonic() - began)


def _request(*pictures: Image) -> Request:
    """A request of one prefill and, unless the answer ends at once, one decoding step."""
    return Request((Message("user", [*pictures, "Hi"]),), SamplingParams(max_tokens=2))
