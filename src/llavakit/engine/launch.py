"""Launches a step: a pass of the model and the sampling behind it, without waiting for either."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from torch import Tensor

from llavakit.engine.grammar import allowed
from llavakit.engine.runner import ModelRunner
from llavakit.engine.sampler import Drawing, Drawn, Sampler, Seen
from llavakit.engine.scheduler import StepPlan, Work
from llavakit.engine.sequence import Sequence
from llavakit.errors import EngineError


@dataclass(slots=True, eq=False)
class Flight:
    """A step that was launched.

    Attributes:
        plan: what it computes.
        completed: works behind which a token is sampled, in the order of the tokens.
        embedded: works of embeddings, and the vectors of their tokens.
        sampling: those tokens; None if there are none.
        failed: sequences that could not be launched, and why.
        looks_back: whether the next step can only be launched when these tokens are known.
    """

    plan: StepPlan
    completed: list[Work] = field(default_factory=list)
    embedded: list[tuple[Work, Tensor]] = field(default_factory=list)
    sampling: Drawing | None = None
    failed: dict[Sequence, Exception] = field(default_factory=dict)
    looks_back: bool = False

    @property
    def tokens(self) -> Tensor | None:
        """The sampled tokens on the device, [N]; None if there are none."""
        return None if self.sampling is None else self.sampling.tokens

    def read(self) -> list[Drawn]:
        """Return the sampled tokens; waits for the device."""
        return [] if self.sampling is None else self.sampling.read()


class Launcher:
    """Launches steps.

    Args:
        runner: computes logits.
        sampler: samples the tokens.
        name: shown in the name of the thread that works out what grammars allow.
    """

    def __init__(self, runner: ModelRunner, sampler: Sampler, name: str) -> None:
        self._runner = runner
        self._sampler = sampler
        self._masks = ThreadPoolExecutor(1, f"llavakit-masks-{name}")

    def close(self) -> None:
        """Let its thread end."""
        self._masks.shutdown(wait=False)

    def launch(self, plan: StepPlan, before: Flight | None = None) -> Flight:
        """Launch a step, perhaps ahead of the tokens of the one before, which is in flight."""
        masks = [
            (work, self._masks.submit(work.sequence.answer.matcher.fill))
            for work in plan.work
            if _has_grammar(work.sequence) and work.completes
        ]
        outcome = self._runner.run(plan, None if before is None else before.tokens)
        flight = Flight(plan, outcome.completed, outcome.embedded, failed=outcome.failed)
        flight.failed.update(_failures(masks))
        if outcome.logits is not None:
            try:
                self._sample(flight, outcome.logits)
            except Exception as error:
                flight.failed |= {work.sequence: error for work in flight.completed}
                flight.completed = []
        for place, work in enumerate(flight.completed):
            work.sequence.place = place
        return flight

    def _sample(self, flight: Flight, logits: Tensor) -> None:
        """Sample the tokens of a step behind its pass."""
        answers = [work.sequence.answer for work in flight.completed]
        draws = [answer.draw for answer in answers]
        flight.looks_back = any(answer.looks_back for answer in answers)
        if not flight.looks_back:
            flight.sampling = self._sampler.launch(logits, draws)
            return
        seen = [
            _seen(work.sequence) if draw.penalises else None
            for work, draw in zip(flight.completed, draws, strict=True)
        ]
        masks = allowed([answer.matcher for answer in answers], logits)
        flight.sampling = self._sampler.launch(logits, draws, seen, masks)


def _has_grammar(sequence: Sequence) -> bool:
    return sequence.answer is not None and sequence.answer.matcher is not None


def _seen(sequence: Sequence) -> Seen:
    answer = sequence.prompt_length
    return Seen(sequence.tokens[:answer], sequence.tokens[answer:])


def _failures(masks: Iterable[tuple[Work, Future[None]]]) -> dict[Sequence, Exception]:
    """Wait for masks; return the sequences whose grammar failed, and why."""
    return {
        work.sequence: error if isinstance(error, Exception) else EngineError(str(error))
        for work, mask in masks
        if (error := mask.exception()) is not None
    }
