"""What the next step computes. Pure: queues, integers and numpy ids; no torch, no threads.

Contract: ``add`` and ``release`` may be called between steps only; ``schedule`` plans one
step and reserves all that it needs; the caller runs the plan, then calls ``commit``. Nothing
is ever preempted: a sequence is admitted only when its prompt *and* its longest answer have
slots. When nothing runs, free slots and donors add up to the arena (``check_integrity``).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from llavakit.engine.extents import Extent, ExtentMap
from llavakit.engine.prefix import Donor, DonorTable, common_prefix
from llavakit.engine.sequence import Sequence

WORTH_WAITING = 32
"""Tokens. A request waits for another one's prefill if that saves it at least so many."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Keys and values to copy inside the arena before the forward pass."""

    source: int
    target: int
    count: int


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens ``start`` to ``start + count`` of a sequence are computed in this step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def completes(self) -> bool:
        """Whether a token is drawn afterwards."""
        return self.start + self.count == len(self.sequence.tokens)


@dataclass(slots=True)
class Plan:
    """One step: copies first, then one forward pass over all work."""

    copies: list[Copy] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens that the forward pass computes."""
        return sum(work.count for work in self.work)


class Scheduler:
    """First come, first served, within the KV arena and the batch.

    Args:
        kv_tokens: slots of the arena.
        max_concurrency: most sequences that run at once.
        prefill_chunk: most prompt tokens computed in one step, over all sequences.
    """

    def __init__(self, kv_tokens: int, max_concurrency: int, prefill_chunk: int) -> None:
        self.kv_tokens = kv_tokens
        self.max_concurrency = max_concurrency
        self.prefill_chunk = prefill_chunk
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.donors = DonorTable()
        self._extents = ExtentMap(kv_tokens)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.running)

    @property
    def live_tokens(self) -> int:
        """Slots reserved by running sequences."""
        return sum(sequence.extent.length for sequence in self.running)

    def fits(self, sequence: Sequence) -> bool:
        """Whether the arena could ever hold the sequence."""
        return sequence.reserve <= self.kv_tokens

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        assert self.fits(sequence), "the engine refuses what can never run"
        self.waiting.append(sequence)

    def schedule(self) -> Plan:
        """Plan the next step; an empty plan means that nothing can run now."""
        plan = Plan()
        budget = self.prefill_chunk
        for sequence in self.running:
            budget -= self._plan_work(plan, sequence, budget)
        for sequence in list(self.waiting):
            if budget <= 0 or len(self.running) >= self.max_concurrency:
                break
            if self._is_held(sequence):
                continue
            if not self._admit(sequence, plan):
                break  # whoever comes later must not overtake: he could starve this one
            budget -= self._plan_work(plan, sequence, budget)
        return plan

    def _plan_work(self, plan: Plan, sequence: Sequence, budget: int) -> int:
        """Add the sequence's next tokens to the plan; returns what it took of the budget."""
        left = len(sequence.tokens) - sequence.computed
        if not sequence.prefilling:
            plan.work.append(Work(sequence, sequence.computed, left))
            return 0
        count = min(left, budget)
        if count > 0:
            plan.work.append(Work(sequence, sequence.computed, count))
        return max(count, 0)

    def commit(self, plan: Plan) -> None:
        """Note that the plan was run."""
        for work in plan.work:
            work.sequence.computed = work.start + work.count

    def release(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Take a sequence out, wherever it stands.

        Args:
            sequence: one that was added and not yet released.
            keep: whether its computed tokens may serve others; False after a failed step,
                whose keys and values cannot be trusted.
        """
        if sequence not in self.running:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        extent, sequence.extent = sequence.extent, Extent(0, 0)
        if not keep or not sequence.computed:
            self._extents.give(extent)
            return
        kept = self._extents.shrink(extent, sequence.computed)
        for useless in self.donors.add(Donor(sequence.known_ids(), kept)):
            self._extents.give(useless.extent)

    def _is_held(self, sequence: Sequence) -> bool:
        """Whether it pays to wait until a running prefill has computed a common prefix."""
        at_hand: int | None = None
        for other in self.running:
            if not other.prefilling:
                continue
            shared = self._useful(sequence, common_prefix(other.virtual, sequence.virtual))
            if shared <= other.computed:
                continue
            if at_hand is None:
                at_hand = self._best_source(sequence)[1]
            if shared - at_hand >= WORTH_WAITING:
                return True
        return False

    @staticmethod
    def _useful(sequence: Sequence, shared: int) -> int:
        # One token at least must be computed, or there would be no logits to draw from.
        return min(shared, sequence.prompt_length - 1)

    def _best_source(self, sequence: Sequence) -> tuple[Donor | Sequence | None, int]:
        """Whose keys and values begin like the sequence, and for how many tokens."""
        ids = sequence.virtual[: sequence.prompt_length - 1]
        best: Donor | Sequence | None
        best, length = self.donors.best(ids)
        for other in self.running:
            shared = common_prefix(other.known_ids(), ids)
            if shared > length:
                best, length = other, shared
        return best, length

    def _admit(self, sequence: Sequence, plan: Plan) -> bool:
        """Give the sequence its extent, with the longest prefix at hand; False if it must wait."""
        source, shared = self._best_source(sequence)
        extent = self._reuse(source, shared, sequence) or self._allocate(sequence, source)
        if extent is None and isinstance(source, Donor):
            # The prefix itself is in the way: give it up.
            self._evict(source)
            source, shared = None, 0
            extent = self._extents.take(sequence.reserve)
        if extent is None:
            return False
        if source is not None and shared:
            origin = source.extent.start
            if origin != extent.start:
                plan.copies.append(Copy(origin, extent.start, shared))
            if isinstance(source, Donor) and origin != extent.start:
                self.donors.touch(source)
        sequence.extent = extent
        sequence.computed = sequence.cached = shared
        self.waiting.remove(sequence)
        self.running.append(sequence)
        return True

    def _reuse(
        self, source: Donor | Sequence | None, shared: int, sequence: Sequence
    ) -> Extent | None:
        """Continue in a donor's own slots if nothing of it is lost and there is room behind."""
        if not isinstance(source, Donor) or shared < source.extent.length:
            return None
        room = source.extent.length + self._extents.room_behind(source.extent)
        if room < sequence.reserve:
            return None
        self.donors.remove(source)
        return self._extents.grow(source.extent, sequence.reserve)

    def _allocate(self, sequence: Sequence, source: Donor | Sequence | None) -> Extent | None:
        """A new extent; makes room by evicting donors, the least recently used first."""
        protected = source if isinstance(source, Donor) else None
        while (extent := self._extents.take(sequence.reserve)) is None:
            oldest = self.donors.oldest(but=protected)
            if oldest is None:
                return None
            self._evict(oldest)
        return extent

    def _evict(self, donor: Donor) -> None:
        self.donors.remove(donor)
        self._extents.give(donor.extent)

    def drop_donors(self) -> None:
        """Forget all finished prefixes (after a failure, or to free them for a test)."""
        for donor in list(self.donors):
            self._evict(donor)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every slot has exactly one owner."""
        owned = [sequence.extent for sequence in self.running]
        owned += [donor.extent for donor in self.donors]
        owned += self._extents.free
        owned.sort()
        position = 0
        for extent in owned:
            assert extent.start == position, f"slots {position} to {extent.start} have no owner"
            position = extent.end
        assert position == self.kv_tokens, "slots are missing at the end of the arena"
