"""Steps that are launched ahead: the same answers, and no trace of the tokens too many."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llavakit import Message, SamplingParams
from llavakit.engine.config import EngineConfig
from llavakit.engine.engine import Engine
from llavakit.engine.runner import ModelRunner
from llavakit.engine.sampler import Drawing
from llavakit.engine.scheduler import Scheduler, StepPlan, Work
from llavakit.engine.sequence import Sequence
from llavakit.errors import EngineClosedError, EngineError, LlavaKitError, RequestTimeoutError
from llavakit.model.llava import Llava
from llavakit.model.loader import Reader, load_reader, load_weights
from llavakit.streams import gather
from llavakit.values import Chunk, Completion, Request
from tests.engine.drive import sequence
from tests.tiny import TinyModel

QUESTIONS = ["hi", "What is it?", "And now\nin two lines", "a" * 40, "hi you", "你好🐱"]


@pytest.fixture(scope="module")
def reader(tiny: TinyModel) -> Reader:
    return load_reader(tiny.path)


@pytest.fixture(scope="module")
def llava(reader: Reader) -> Llava:
    return load_weights(reader, device="cpu", dtype="float32")


Make = Callable[..., Engine]


@pytest.fixture
def make(reader: Reader, llava: Llava) -> Iterator[Make]:
    made = []

    def make(ahead: bool = True, **settings: Any) -> Engine:
        chosen = {"max_concurrency": 4, "prefill_chunk": 24, **settings}
        made.append(Engine(reader, EngineConfig("tiny", lookahead=ahead, **chosen), llava))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


class Asked:
    """A request under way, and the engine's own record of it: texts of a random model are alike."""

    def __init__(
        self, engine: Engine, text: str, params: SamplingParams, timeout: float | None = None
    ) -> None:
        caught: list[Sequence] = []
        submit = engine._loop.submit

        def watch(sequence: Sequence) -> None:
            caught.append(sequence)
            submit(sequence)

        engine._loop.submit = watch  # type: ignore[method-assign]
        request = Request((Message("user", [text]),), params, timeout=timeout)
        try:
            self.stream = engine.submit(request, lambda image: pytest.fail("no pictures here"))
        finally:
            del engine._loop.submit
        self.sequence = caught[0]

    def completion(self) -> Completion:
        """All of the answer."""
        return gather(self.stream)

    def tokens(self) -> list[int]:
        """Its tokens, when it has ended."""
        self.completion()
        return self.drawn

    @property
    def drawn(self) -> list[int]:
        """Its tokens so far."""
        return self.sequence.tokens[self.sequence.prompt_length :]


def ask_all(engine: Engine, params: list[SamplingParams]) -> list[Asked]:
    """All at once."""
    return [Asked(engine, QUESTIONS[n % len(QUESTIONS)], one) for n, one in enumerate(params)]


def tokens(engine: Engine, params: list[SamplingParams]) -> list[list[int]]:
    """Of requests that are asked at once."""
    return [one.tokens() for one in ask_all(engine, params)]


def check_nothing_is_left(engine: Engine) -> None:
    steps = engine._loop._steps
    for _ in range(1000):
        if steps.idle and not engine._loop.backlog:
            break
        time.sleep(0.005)
    assert steps.idle and not steps.open and not steps._timed
    engine._loop.scheduler.check_integrity()
    stats = engine.stats()
    assert stats["kv_tokens_live"] == 0 and stats["halved_steps"] == 0
    assert stats["requests"] == stats["finished"] + stats["cancelled"] + stats["failed"]


def launched_ahead(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts works whose token the host did not know, a number for each step."""
    counts: list[int] = []
    run = engine._loop.runner.run

    def watch(plan: StepPlan, drawn: torch.Tensor | None = None) -> Any:
        counts.append(sum(work.source >= 0 for work in plan.work))
        return run(plan, drawn)

    monkeypatch.setattr(engine._loop.runner, "run", watch)
    return counts


GREEDY = SamplingParams(temperature=0, max_tokens=20)
KINDS = {
    "greedy": [GREEDY] * 6,
    "seeds": [SamplingParams(temperature=1.5, seed=n, max_tokens=15 + n) for n in range(6)],
    "logprobs": [
        SamplingParams(temperature=1.0, seed=n, logprobs=(None, 0, 3)[n % 3], max_tokens=16)
        for n in range(6)
    ],
    "lengths": [replace(GREEDY, max_tokens=n) for n in (1, 2, 3, 5, 9, 2)],
    "stop strings": [
        SamplingParams(temperature=1.2, seed=n, max_tokens=24, stop=("e", "a", "1"))
        for n in range(6)
    ],
    "penalties": [replace(GREEDY, repetition_penalty=(1.0, 1.7)[n % 2]) for n in range(6)],
    "grammars": [
        replace(GREEDY, grammar=(None, "[a-z]{3,8}", "(yes|no)")[n % 3]) for n in range(6)
    ],
    "all kinds": [
        GREEDY,
        SamplingParams(temperature=0.8, seed=3, top_p=0.9, logprobs=2, max_tokens=16),
        replace(GREEDY, grammar="[0-9]{2,5}"),
        SamplingParams(temperature=1.5, seed=9, repetition_penalty=1.3, max_tokens=16),
        replace(GREEDY, max_tokens=1),
        SamplingParams(temperature=1.2, seed=5, max_tokens=24, stop=("o",)),
    ],
}


def same(one: Completion, other: Completion) -> None:
    assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
    assert one.usage is not None and other.usage is not None
    assert one.usage.completion_tokens == other.usage.completion_tokens
    assert [p.token for p in one.logprobs] == [p.token for p in other.logprobs]
    assert [p.logprob for p in one.logprobs] == pytest.approx(
        [p.logprob for p in other.logprobs], abs=1e-4
    )


@pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_usage_and_counters_are_those_without_lookahead(
    make: Make, kind: str, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = [make(ahead, static_decode=static) for ahead in (False, True)]
    counts = [launched_ahead(engine, monkeypatch) for engine in engines]
    for _ in range(2):
        asked = [ask_all(engine, KINDS[kind]) for engine in engines]
        for one, other in zip(*asked, strict=True):
            same(one.completion(), other.completion())
            assert one.drawn == other.drawn
    for name in ("generated_tokens", "prompt_tokens", "finished", "failed"):
        assert len({engine.stats()[name] for engine in engines}) == 1
    assert not sum(counts[0]) and sum(counts[1])
    for engine in engines:
        check_nothing_is_left(engine)


def _cached(completion: Completion) -> int:
    assert completion.usage is not None
    return completion.usage.cached_tokens


def test_second_identical_request_finds_the_same_in_the_cache(make: Make) -> None:
    """A stop token, too, is a last token whose successor is being computed already."""
    params = replace(GREEDY, stop=("e", "a", "o", "i"), temperature=1.3, seed=4, max_tokens=64)
    kept = []
    for ahead in (False, True):
        engine = make(ahead)
        cached = [
            _cached(Asked(engine, "a" * 40 + text, params).completion())
            for text in ("", "", " and", "", " or")
        ]
        stats = engine.stats()
        kept.append((cached, stats["kv_tokens_kept"], stats["kept_prefixes"]))
        check_nothing_is_left(engine)
    assert kept[0] == kept[1] and kept[0][0][1] > 0


def test_no_step_is_launched_behind_a_last_token_that_is_known_as_such(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    counts = launched_ahead(engine, monkeypatch)
    [drawn] = tokens(engine, [replace(GREEDY, max_tokens=5)])
    assert len(drawn) == 5
    assert counts == [0, 1, 1, 1, 1]


def test_rows_that_look_back_are_settled_first(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    counts = launched_ahead(engine, monkeypatch)
    tokens(engine, [replace(GREEDY, repetition_penalty=1.5)])
    assert sum(counts) == 0


LONG = replace(GREEDY, max_tokens=80)


class Gate:
    """Holds back the reading of one step's tokens, so that the one behind it is in flight.

    It is the fourth step that draws tokens for two sequences.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self._seen = 0
        read = Drawing.read

        def wait(drawing: Drawing) -> Any:
            self._seen += len(drawing.tokens) == 2
            if self._seen == 4 and not self.reached.is_set():
                self.reached.set()
                assert self.go.wait(30)
                self.last()
            return read(drawing)

        monkeypatch.setattr(Drawing, "read", wait)

    def last(self) -> None:
        """What happens before the tokens are read."""


def test_cancel_with_a_step_in_flight_frees_the_sequence_and_harms_no_other(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    expected = tokens(engine, [LONG] * 2)
    gate = Gate(monkeypatch)
    asked = [Asked(engine, text, LONG) for text in QUESTIONS[:2]]
    assert gate.reached.wait(30)
    asked[0].stream.close()
    gate.go.set()
    assert asked[1].tokens() == expected[1]
    check_nothing_is_left(engine)
    assert engine.stats()["cancelled"] == 1
    assert tokens(engine, [LONG] * 2) == expected


def test_time_that_is_over_with_a_step_in_flight_ends_only_that_request(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    expected = tokens(engine, [LONG] * 2)
    gate = Gate(monkeypatch)
    asked = [Asked(engine, QUESTIONS[0], LONG, 0.5), Asked(engine, QUESTIONS[1], LONG)]
    assert gate.reached.wait(30)
    time.sleep(0.6)
    gate.go.set()
    with pytest.raises(RequestTimeoutError):
        asked[0].completion()
    assert asked[1].tokens() == expected[1]
    check_nothing_is_left(engine)


def test_step_that_fails_in_flight_ends_its_requests_and_no_others(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    expected = tokens(engine, [LONG] * 3)

    class Broken(Gate):
        def last(self) -> None:
            raise RuntimeError("the device gave up")

    gate = Broken(monkeypatch)
    asked = [Asked(engine, text, LONG) for text in QUESTIONS[:2]]
    assert gate.reached.wait(30)
    late = Asked(engine, QUESTIONS[2], LONG)
    gate.go.set()
    for one in asked:
        with pytest.raises(EngineError, match="gave up"):
            one.completion()
    assert late.tokens() == expected[2]
    check_nothing_is_left(engine)
    assert tokens(engine, [LONG] * 3) == expected


def test_pass_that_fails_for_one_sequence_is_halved_and_goes_on_ahead(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that go on stand at other places among the drawn tokens than before."""
    engine = make()
    expected = tokens(engine, [GREEDY] * 4)
    computed = ModelRunner._computed
    bad: list[Sequence] = []

    def fail(self: ModelRunner, work: Any, *rest: Any) -> Any:
        if not bad and len(work) == 4 and all(one.source >= 0 for one in work):
            bad.append(work[1].sequence)
        if any(one.sequence in bad for one in work):
            raise RuntimeError("not this one")
        return computed(self, work, *rest)

    monkeypatch.setattr(ModelRunner, "_computed", fail)
    asked = [Asked(engine, text, GREEDY) for text in QUESTIONS[:4]]
    ended = []
    for one in asked:
        try:
            ended.append(one.tokens())
        except EngineError:
            ended.append([])
    assert ended.count([]) == 1
    assert all(drawn in ([], whole) for drawn, whole in zip(ended, expected, strict=True))
    assert engine.stats()["halved_steps"] == 2 and engine.stats()["failed"] == 1


def test_sampler_that_fails_ends_only_the_requests_of_its_step(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    sampler = engine._loop._launcher._sampler

    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(sampler, "launch", fail)
        with pytest.raises(LlavaKitError, match="no memory"):
            tokens(engine, [GREEDY])
    assert tokens(engine, [GREEDY])[0]
    check_nothing_is_left(engine)


def _shifted(drawn: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    return drawn.roll(1)


def _stale(drawn: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    return before if len(before) == len(drawn) else drawn


@pytest.mark.parametrize("fault", [_shifted, _stale])
def test_wrong_tokens_of_the_step_before_would_be_noticed(
    make: Make, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands above would be blind if a wrong source gave the same answers."""
    engine = make()
    expected = tokens(engine, [GREEDY] * 4)
    run = engine._loop.runner.run
    last: list[torch.Tensor] = []

    def wrong(plan: StepPlan, drawn: torch.Tensor | None = None) -> Any:
        if drawn is not None:
            last.append(drawn)
            drawn = fault(drawn, last[-2] if len(last) > 1 else drawn)
        return run(plan, drawn)

    monkeypatch.setattr(engine._loop.runner, "run", wrong)
    assert tokens(engine, [GREEDY] * 4) != expected


# Functions between steps


def test_function_runs_on_the_loops_own_thread_with_no_step_in_flight(make: Make) -> None:
    engine = make()
    asked = [Asked(engine, text, replace(GREEDY, max_tokens=60)) for text in QUESTIONS[:3]]
    seen = []

    def look() -> str:
        seen.append(engine._loop._steps._flight)
        return threading.current_thread().name

    names = [engine._loop.run_between_steps(look).result(30) for _ in range(20)]
    assert set(names) == {engine._loop._thread.name}
    assert seen == [None] * 20
    for one in asked:
        assert one.completion().finish_reason in ("stop", "length")


def test_what_a_function_raises_is_the_callers(make: Make) -> None:
    engine = make()

    def fail() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        engine._loop.run_between_steps(fail).result(30)
    assert tokens(engine, [GREEDY])[0]


def test_no_function_is_lost_when_the_engine_ends(make: Make) -> None:
    engine = make()
    loop = engine._loop
    inside, go = threading.Event(), threading.Event()

    def block() -> int:
        inside.set()
        assert go.wait(30)
        return 7

    first = loop.run_between_steps(block)
    assert inside.wait(30)
    cancelled = loop.run_between_steps(lambda: 1)
    assert cancelled.cancel()
    second = loop.run_between_steps(lambda: 2)
    loop._inbox.put(type("Odd", (), {})())  # type: ignore[arg-type]  # it dies of this one
    third = loop.run_between_steps(lambda: 3)
    go.set()
    assert (first.result(30), second.result(30)) == (7, 2)
    with pytest.raises(EngineClosedError):
        third.result(30)
    loop._thread.join(30)
    with pytest.raises(EngineClosedError):
        loop.run_between_steps(lambda: 4)


# Many of all kinds


def test_random_arrivals_and_cancels_leave_nothing_behind(make: Make) -> None:
    engine = make(kv_cache_bytes=500 * 2 * 2 * 2 * 8 * 4)
    dice = random.Random(5)
    expected = {text: Asked(engine, text, GREEDY).tokens() for text in QUESTIONS}
    running: list[tuple[str, Asked]] = []
    for _ in range(120):
        text = dice.choice(QUESTIONS)
        running.append((text, Asked(engine, text, GREEDY)))
        if dice.random() < 0.3:
            left = running.pop()[1].stream
            for _chunk in zip(range(dice.randrange(4)), left, strict=False):
                pass
            left.close()
        if dice.random() < 0.2 and running:
            text, one = running.pop(dice.randrange(len(running)))
            assert one.tokens() == expected[text]
        if dice.random() < 0.1:
            integrity = engine._loop.scheduler.check_integrity
            engine._loop.run_between_steps(integrity).result(30)
    for text, one in running:
        chunks: list[Chunk] = list(one.stream)
        assert sum(chunk.finish_reason is not None for chunk in chunks) == 1
        assert one.drawn == expected[text]
    check_nothing_is_left(engine)
    assert engine.stats()["cancelled"] > 5


class AnyOrderOfFlights(RuleBasedStateMachine):
    """Launch, settle, fail, abort and evict in any order, with up to one step in flight behind
    another: every token is computed behind its own prefix, and no slot has two owners."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(60, 3, 7, 1)
        self.open: list[Sequence] = []
        self.flights: list[tuple[StepPlan, dict[Sequence, int], list[Sequence]]] = []
        # What each slot holds: the ids of all tokens up to it; None where a pass failed.
        self.slots: dict[int, tuple[int, ...] | None] = {}

    @rule(prompt=st.lists(st.integers(0, 2), min_size=1, max_size=25), most=st.integers(1, 12))
    def submit(self, prompt: list[int], most: int) -> None:
        one = sequence(prompt, most)
        if self.scheduler.fits(one):
            self.scheduler.add(one)
            self.open.append(one)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 100), keep=st.booleans())
    def abort(self, which: int, keep: bool) -> None:
        self.scheduler.release(self.open.pop(which % len(self.open)), keep=keep)

    @rule()
    def evict(self) -> None:
        self.scheduler.forget()

    @precondition(lambda self: len(self.flights) < 2)
    @rule(tokens=st.lists(st.integers(0, 2), min_size=3, max_size=3), bad=st.integers(0, 12))
    def launch(self, tokens: list[int], bad: int) -> None:
        plan = self.scheduler.schedule()
        if not plan.work:
            assert self.flights or not self.open, "work is waiting, but nothing is planned"
            return
        before = list(self.flights[-1][1].values()) if self.flights else []
        failed = [work.sequence for work in plan.work[bad : bad + 1]]
        drawn: dict[Sequence, int] = {}
        for work, token in zip(plan.work, tokens, strict=False):
            self._compute(work, before, work.sequence in failed)
            if work.completes and work.sequence not in failed:
                work.sequence.place = len(drawn)
                drawn[work.sequence] = token
        self.flights.append((plan, drawn, failed))
        if len(self.flights) > 1:
            self.settle(False)
        self._end(failed)

    @precondition(lambda self: self.flights)
    @rule(fails=st.sampled_from([False, False, False, True]), stop=st.booleans())
    def settle(self, fails: bool, stop: bool = False) -> None:
        plan, drawn, _ = self.flights.pop(0)
        plan.work = [work for work in plan.work if work.sequence in self.open]
        if fails:
            self._end([work.sequence for work in plan.work])
            return
        self.scheduler.commit(plan)
        for one, token in drawn.items():
            if one in self.open:
                one.tokens.append(token)
                if stop or len(one.tokens) - one.prompt_length >= one.max_tokens:
                    self.open.remove(one)
                    self.scheduler.release(one)

    def _end(self, failed: list[Sequence]) -> None:
        for one in failed:
            if one in self.open:
                self.open.remove(one)
                self.scheduler.release(one, keep=False)

    def _compute(self, work: Work, before: list[int], void: bool) -> None:
        one, segment = work.sequence, work.sequence.segment
        assert segment is not None
        ids = list(one.tokens)
        if work.source >= 0:
            assert work.start == len(ids) and work.count == 1
            ids.append(before[work.source])
        assert len(ids) >= work.start + work.count
        slots = [slot for e in one.prefix for slot in range(e.start, e.end)]
        assert len(slots) == segment.base
        slots += range(segment.extent.start, segment.extent.end)
        for place in range(work.start):
            assert self.slots[slots[place]] == tuple(ids[: place + 1])
        for place in range(work.start, work.start + work.count):
            assert place >= segment.base, "a shared slot would be overwritten"
            self.slots[slots[place]] = None if void else tuple(ids[: place + 1])

    @invariant()
    def every_slot_has_one_owner(self) -> None:
        self.scheduler.check_integrity()

    def teardown(self) -> None:
        for _ in range(500):
            if self.scheduler.idle and not self.flights:
                break
            if self.flights:
                self.settle(False)
            self.launch([1, 1, 1], 12)
        assert self.scheduler.idle, "a request never ended"
        assert self.scheduler.live_tokens == 0
        self.scheduler.check_integrity()


TestAnyOrderOfFlights = AnyOrderOfFlights.TestCase
TestAnyOrderOfFlights.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(LlavaKitError, match="lookahead"):
        EngineConfig("demo", lookahead="sometimes")  # type: ignore[arg-type]
