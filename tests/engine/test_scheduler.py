from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llavakit.engine.extents import Extent
from llavakit.engine.scheduler import Scheduler
from llavakit.engine.sequence import ImageSpan, Sequence
from tests.engine.drive import finished, run_all, sequence, step


def make(kv_tokens: int = 256, batch: int = 4, chunk: int = 16, worth: int = 1) -> Scheduler:
    return Scheduler(kv_tokens, batch, chunk, worth)


def test_long_prompt_is_computed_in_chunks():
    scheduler = make(chunk=16)
    scheduler.add(sequence(list(range(40))))
    assert [step(scheduler).tokens for _ in range(4)] == [16, 16, 8, 1]


def test_short_prompts_share_one_step():
    scheduler = make(chunk=16)
    for start in (0, 100, 200):
        scheduler.add(sequence([start + i for i in range(5)]))
    assert [work.count for work in step(scheduler).work] == [5, 5, 5]


def test_running_stream_gets_a_token_in_every_step_of_a_long_prefill():
    scheduler = make(chunk=8)
    stream = sequence([1, 2, 3], max_tokens=20)
    scheduler.add(stream)
    step(scheduler)
    scheduler.add(sequence(list(range(100, 140))))
    for _ in range(5):
        before = len(stream.tokens)
        plan = step(scheduler)
        assert len(stream.tokens) == before + 1
        assert plan.tokens <= 8 + 1


def test_next_turn_of_a_chat_continues_in_place():
    scheduler = make()
    first = sequence([1, 2, 3, 4], max_tokens=3)
    scheduler.add(first)
    run_all(scheduler)
    (segment,) = scheduler.kept
    follow = sequence([*first.tokens[:6], 9, 9], max_tokens=3)
    scheduler.add(follow)
    plan = scheduler.schedule()
    assert follow.cached == 6
    assert follow.segment is segment
    assert [(work.start, work.count) for work in plan.work] == [(6, 2)]


def test_chat_that_goes_on_is_kept_longer_than_a_single_question():
    scheduler = make(kv_tokens=60)
    failed = sequence([300 + number for number in range(16)], max_tokens=30)
    chat = sequence([1, 2, 3, 4], max_tokens=3)
    for one in (failed, chat):
        scheduler.add(one)
        step(scheduler)
    scheduler.release(failed, keep=False)
    run_all(scheduler)
    scheduler.add(sequence([100 + number for number in range(16)], max_tokens=2))  # in its place
    run_all(scheduler)
    follow = sequence([*chat.tokens[:6], 9, 9], max_tokens=3)
    scheduler.add(follow)
    run_all(scheduler)
    assert follow.cached == 6 and len(scheduler.kept) == 2
    # No room beside both: what nobody came back to goes.
    scheduler.add(sequence([200 + number for number in range(40)], max_tokens=2))
    run_all(scheduler)
    again = sequence([*follow.tokens[:10], 8], max_tokens=2)
    scheduler.add(again)
    scheduler.schedule()
    assert again.cached == 10


def test_second_question_reads_the_shared_beginning_where_it_lies():
    scheduler = make()
    scheduler.add(sequence([1, 2, 3, 4, 5, 6], max_tokens=2))
    run_all(scheduler)
    (first,) = scheduler.kept
    other = sequence([1, 2, 3, 4, 8], max_tokens=2)
    scheduler.add(other)
    scheduler.schedule()
    assert other.cached == 4
    assert other.segment is not None
    assert other.segment.prefix == (Extent(first.extent.start, 4),)
    assert other.segment.extent.length == other.reserve - 4


def test_shared_beginning_stays_while_someone_reads_it():
    scheduler = make(kv_tokens=40)
    scheduler.add(sequence(list(range(20)), max_tokens=2))
    run_all(scheduler)
    reader = sequence([*range(15), 90, 91], max_tokens=8)
    scheduler.add(reader)
    step(scheduler)
    scheduler.forget()
    assert [segment.extent.length for segment in scheduler.kept] == [21]
    run_all(scheduler)


def test_equal_prompts_leave_one_prefix_behind():
    scheduler = make()
    for _ in range(5):
        scheduler.add(sequence([1, 2, 3, 4], max_tokens=3))
        run_all(scheduler)
    assert len(scheduler.kept) == 1


def test_whole_prompt_in_the_cache_still_computes_one_token():
    scheduler = make()
    for _ in range(2):
        again = sequence([1, 2, 3, 4], max_tokens=2)
        scheduler.add(again)
        run_all(scheduler)
    assert again.cached == 3


def test_requests_that_begin_alike_wait_for_one_prefill():
    scheduler = make(kv_tokens=2000, chunk=64)
    shared = list(range(100))
    group = [sequence([*shared, 500 + i], max_tokens=2) for i in range(3)]
    for one in group:
        scheduler.add(one)
    assert len(step(scheduler).work) == 1  # the others wait
    run_all(scheduler)
    assert [one.cached for one in group] == [0, 100, 100]


@pytest.mark.parametrize(("saved", "waits"), [(31, False), (32, True)])
def test_a_request_waits_for_its_twin_where_that_saves_32_tokens_and_not_for_fewer(saved, waits):
    scheduler = make(kv_tokens=2000, chunk=256, worth=1)
    shared = list(range(saved))
    for end in (500, 600):
        scheduler.add(sequence([*shared, end, end + 1], max_tokens=2))
    assert (len(step(scheduler).work) == 1) == waits


def test_requests_that_differ_from_the_start_do_not_wait():
    scheduler = make(kv_tokens=2000, chunk=64)
    for start in (0, 1000, 2000):
        scheduler.add(sequence([start + i for i in range(20)], max_tokens=2))
    assert len(step(scheduler).work) == 3


def test_a_few_common_tokens_are_computed_again_and_leave_no_small_pieces():
    scheduler = make(worth=4)
    for tokens, expected in (
        ([1, 2, 3, 4, 5, 6], 0),
        ([1, 2, 3, 9, 9, 9], 0),  # three in common
        ([1, 2, 3, 4, 5, 8, 8, 8], 5),
        ([1, 2, 3, 4, 5, 8, 8, 7], 5),  # five of the first, and only two of the second
    ):
        one = sequence(tokens, max_tokens=2)
        scheduler.add(one)
        run_all(scheduler)
        assert one.cached == expected
        scheduler.check_integrity()


def test_two_pictures_in_the_same_words_share_only_what_stands_before_them():
    scheduler = make()
    for key, expected in (("red", 0), ("blue", 2), ("red", 7)):
        image = ImageSpan(2, 4, key, None)
        one = sequence([1, 2, 3, 3, 3, 3, 5, 6], max_tokens=2, images=(image,))
        scheduler.add(one)
        run_all(scheduler)
        assert one.cached == expected


def test_old_prefixes_make_room_for_new_requests():
    scheduler = make(kv_tokens=40)
    for start in range(0, 1000, 100):
        scheduler.add(sequence([start + i for i in range(20)], max_tokens=5))
        run_all(scheduler)
        scheduler.check_integrity()
    assert 0 < sum(segment.extent.length for segment in scheduler.kept) <= 40


def test_request_that_does_not_fit_now_is_not_overtaken():
    scheduler = make(kv_tokens=40, chunk=100)
    scheduler.add(sequence(list(range(20)), max_tokens=10))
    step(scheduler)
    big = sequence([50 + i for i in range(30)], max_tokens=5)
    small = sequence([90], max_tokens=2)
    scheduler.add(big)
    scheduler.add(small)
    step(scheduler)
    assert list(scheduler.waiting) == [big, small]
    run_all(scheduler)


def test_failed_sequence_leaves_no_prefix_behind():
    scheduler = make()
    one = sequence([1, 2, 3])
    scheduler.add(one)
    step(scheduler)
    scheduler.release(one, keep=False)
    assert scheduler.kept == []
    scheduler.check_integrity()


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Submit, step, abort and evict in any order: nothing shared, nothing leaked, all end."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = make(60, 3, 7)
        self.open: list[Sequence] = []
        # What each slot holds: the virtual ids of the tokens up to it, as the arena would.
        self.slots: dict[int, tuple[int, ...]] = {}

    @initialize(worth=st.sampled_from([1, 4]))
    def sharing_is_worth(self, worth: int) -> None:
        self.scheduler = make(60, 3, 7, worth)

    @rule(
        prompt=st.lists(st.integers(0, 2), min_size=1, max_size=25),
        max_tokens=st.integers(1, 12),
        picture=st.sampled_from(["", "red", "blue"]),
    )
    def submit(self, prompt: list[int], max_tokens: int, picture: str) -> None:
        images: tuple[ImageSpan, ...] = ()
        if picture:
            prompt = [*prompt[:3], 3, 3, 3, 3, *prompt[3:]]
            images = (ImageSpan(min(3, len(prompt) - 4), 4, picture, None),)
        one = sequence(prompt, max_tokens, images)
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

    @rule(token=st.integers(0, 2))
    def step(self, token: int) -> None:
        plan = self.scheduler.schedule()
        assert plan.work or not self.open, "work is waiting, but nothing is planned"
        for work in plan.work:
            self._compute(work.sequence, work.start, work.count)
        self.scheduler.commit(plan)
        for work in plan.work:
            if work.completes:
                work.sequence.tokens.append(token)
        for one in [s for s in self.scheduler.running if finished(s)]:
            self.scheduler.release(one)
            self.open.remove(one)

    def _compute(self, one: Sequence, start: int, count: int) -> None:
        ids = [*one.virtual.tolist(), *one.tokens[one.prompt_length :]]
        segment = one.segment
        assert segment is not None
        before = [slot for e in segment.prefix for slot in range(e.start, e.end)]
        own = [segment.extent.start + place for place in range(segment.extent.length)]
        slots = before + own
        assert len(before) == segment.base
        # Attention reads every slot before the new tokens: they must hold this very prefix.
        for place in range(start):
            assert self.slots[slots[place]] == tuple(ids[: place + 1])
        for place in range(start, start + count):
            assert place >= segment.base, "a shared slot would be overwritten"
            self.slots[slots[place]] = tuple(ids[: place + 1])

    @invariant()
    def every_slot_has_one_owner(self) -> None:
        self.scheduler.check_integrity()

    @invariant()
    def batch_is_bounded(self) -> None:
        assert len(self.scheduler.running) <= 3

    def teardown(self) -> None:
        for _ in range(500):
            if self.scheduler.idle:
                break
            self.step(1)
        assert self.scheduler.idle, "a request never ended"
        assert self.scheduler.live_tokens == 0
        self.scheduler.check_integrity()


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
