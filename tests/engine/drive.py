"""Runs a scheduler as the engine does, without a model: what a token costs is never known."""

from __future__ import annotations

from llavakit.engine.scheduler import Scheduler, StepPlan
from llavakit.engine.sequence import ImageSpan, Sequence
from llavakit.streams import Channel
from llavakit.values import Message, Request

QUESTION = Request((Message("user", "?"),))


def sequence(
    tokens: list[int], max_tokens: int = 4, images: tuple[ImageSpan, ...] = ()
) -> Sequence:
    """A sequence of any token ids."""
    return Sequence(list(tokens), images, QUESTION, Channel(), max_tokens)


def step(scheduler: Scheduler, token: int = 7) -> StepPlan:
    """One step: schedule, 'run', commit, and draw ``token`` for every complete sequence."""
    plan = scheduler.schedule()
    scheduler.commit(plan)
    for work in plan.work:
        if work.completes:
            work.sequence.tokens.append(token)
    for one in [s for s in scheduler.running if finished(s)]:
        scheduler.release(one)
    return plan


def finished(one: Sequence) -> bool:
    """Whether the answer has its longest length."""
    return len(one.tokens) - one.prompt_length >= one.max_tokens


def run_all(scheduler: Scheduler, limit: int = 10_000) -> int:
    """Step until nothing is left; how many steps it took."""
    steps = 0
    while not scheduler.idle:
        step(scheduler)
        steps += 1
        assert steps < limit, "the scheduler does not come to an end"
    return steps
