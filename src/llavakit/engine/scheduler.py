"""What the next step computes. Pure: queues, integers and numpy ids; no torch, no threads.

Contract: ``add`` and ``release`` may be called between steps only; ``schedule`` plans one
step and reserves all that it needs; the caller launches the plan, and calls ``commit`` when it
was run. One further step may be planned in between: it goes on behind tokens that are being
sampled. Nothing is ever preempted: a sequence is admitted only when its prompt *and* its longest
answer have slots. When nothing runs, free slots and kept segments add up to the arena
(``check_integrity``).

A sequence may be released while a step in flight still writes its slots: the sequence that gets
these slots next is computed by a later step, and steps run in the order in which they are launched
(on CUDA, on one stream of each device). What a step in flight writes is not read by others: only
committed tokens are shared, so a step that fails leaves no invalid keys or values behind.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from llavakit.engine.extents import Extent, ExtentMap
from llavakit.engine.prefix import PrefixTree, Segment, common_prefix
from llavakit.engine.sequence import Sequence

WORTH_WAITING = 32
"""Tokens. A request waits for another one's prefill if that saves it at least so many."""

WORTH_SHARING = 16
"""Tokens. A shorter shared stretch is computed again: that costs one pass a few tokens. Sharing it
would cost every decoding step one more split to read, and separate sequences that read together."""


@dataclass(slots=True, eq=False)
class Work:
    """Tokens ``start`` to ``start + count`` of a sequence are computed in this step.

    Attributes:
        source: -1 if they are known; else the place of the (one) token among those that the
            step before samples.
    """

    sequence: Sequence
    start: int
    count: int
    source: int = -1

    @property
    def completes(self) -> bool:
        """Whether a token is sampled afterwards."""
        return self.start + self.count >= self.sequence.prompt_length


@dataclass(slots=True)
class StepPlan:
    """One step: a forward pass over all work."""

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
        worth_sharing: fewest tokens of a kept segment that a new sequence reads there.
    """

    def __init__(
        self,
        kv_tokens: int,
        max_concurrency: int,
        prefill_chunk: int,
        worth_sharing: int = WORTH_SHARING,
    ) -> None:
        self.kv_tokens = kv_tokens
        self.max_concurrency = max_concurrency
        self.prefill_chunk = prefill_chunk
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._tree = PrefixTree(worth_sharing)
        self._extents = ExtentMap(kv_tokens)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.running)

    @property
    def live_tokens(self) -> int:
        """Slots that running sequences write, or may yet write."""
        return sum(s.extent.length for s in self._tree if s.owner is not None)

    @property
    def kept(self) -> list[Segment]:
        """Segments of finished sequences, which may serve others."""
        return self._tree.kept

    def fits(self, sequence: Sequence) -> bool:
        """Return whether the arena could ever hold the sequence."""
        return sequence.reserve <= self.kv_tokens

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        assert self.fits(sequence), "the engine refuses what can never run"
        self.waiting.append(sequence)

    def schedule(self) -> StepPlan:
        """StepPlan the next step; an empty plan means that nothing can run now."""
        plan = StepPlan()
        budget = self.prefill_chunk
        for sequence in self.running:
            budget -= self._plan_work(plan, sequence, budget)
        for sequence in list(self.waiting):
            if budget <= 0 or len(self.running) >= self.max_concurrency:
                break
            if self._is_held(sequence):
                continue
            if not self._admit(sequence):
                break  # later requests must not overtake: they could starve this one
            budget -= self._plan_work(plan, sequence, budget)
        return plan

    def _plan_work(self, plan: StepPlan, sequence: Sequence, budget: int) -> int:
        """Add the sequence's next tokens to the plan; returns what it took of the budget."""
        start = sequence.launched
        left = len(sequence.tokens) - start
        if start >= sequence.prompt_length:
            if left:
                plan.work.append(Work(sequence, start, left))
            elif start - sequence.prompt_length + 1 < sequence.max_tokens:
                left = 1
                plan.work.append(Work(sequence, start, left, sequence.place))
            sequence.launched = start + left
            return 0
        count = min(left, budget)
        if count <= 0:
            return 0
        plan.work.append(Work(sequence, start, count))
        sequence.launched = start + count
        return count

    def commit(self, plan: StepPlan) -> None:
        """Note that the plan was run; plans are committed in their order."""
        for work in plan.work:
            work.sequence.computed = work.start + work.count

    def release(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Take a sequence out, wherever it stands.

        Args:
            sequence: one that was added and not yet released.
            keep: whether its computed tokens may serve sequences to come.
        """
        segment = sequence.segment
        if segment is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        sequence.segment = None
        segment.disown()
        known = sequence.known_ids()
        redundant = self._tree.best(known, but=segment)[1] == len(known)
        if segment.idle and (redundant or not keep):
            self._evict(segment)
        else:
            segment.extent = self._extents.shrink(segment.extent, len(known) - segment.base)

    def _is_held(self, sequence: Sequence) -> bool:
        """Whether it pays to wait until a running prefill has computed a common prefix."""
        at_hand: int | None = None
        for other in self.running:
            if not other.prefilling:
                continue
            shared = common_prefix(other.virtual, sequence.shareable)
            if shared <= other.computed:
                continue
            if at_hand is None:
                at_hand = self._tree.best(sequence.shareable)[1]
            if shared - at_hand >= WORTH_WAITING:
                return True
        return False

    def _admit(self, sequence: Sequence) -> bool:
        """Give the sequence its segment behind the longest prefix; False if it must wait."""
        parent, shared = self._tree.best(sequence.shareable)
        segment = self._continued(parent, shared, sequence)
        if segment is None:
            extent = self._allocate(sequence.reserve - shared, but=parent)
            if extent is None and parent is not None and parent.idle:
                # The prefix itself is in the way: give it up.
                parent, shared = None, 0
                extent = self._allocate(sequence.reserve)
            if extent is None:
                return False
            segment = Segment(extent, shared, parent, sequence)
            self._tree.add(segment)
        sequence.segment = segment
        sequence.prefix = segment.prefix
        sequence.computed = sequence.launched = sequence.cached = shared
        self.waiting.remove(sequence)
        self.running.append(sequence)
        return True

    def _continued(self, parent: Segment | None, shared: int, sequence: Sequence) -> Segment | None:
        """The kept segment itself, if the prompt continues at its end and there are slots."""
        if parent is None or not parent.idle or shared < parent.base + parent.extent.length:
            return None
        needed = sequence.reserve - parent.base
        if parent.extent.length + self._extents.room_behind(parent.extent) < needed:
            return None
        parent.extent = self._extents.grow(parent.extent, needed)
        parent.owner = sequence
        return parent

    def _allocate(self, length: int, but: Segment | None = None) -> Extent | None:
        """Take a new extent; evict idle segments for it, the least recently used first."""
        while (extent := self._extents.take(length)) is None:
            oldest = self._tree.oldest_idle(but)
            if oldest is None:
                return None
            self._evict(oldest)
        return extent

    def _evict(self, segment: Segment) -> None:
        self._tree.remove(segment)
        self._extents.give(segment.extent)

    def forget(self) -> None:
        """Evict all that no running sequence needs."""
        while (segment := self._tree.oldest_idle()) is not None:
            self._evict(segment)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every slot has exactly one owner and the tree is sound."""
        segments = list(self._tree)
        owned = sorted([*(segment.extent for segment in segments), *self._extents.free])
        position = 0
        for extent in owned:
            assert extent.start == position, f"slots {position} to {extent.start} have no owner"
            position = extent.end
        assert position == self.kv_tokens, "slots are missing at the end of the arena"
        for segment in segments:
            for child in segment.children:
                assert child.parent is segment
                assert segment.base < child.base <= segment.base + len(segment.ids)
        live = [segment.owner for segment in segments if segment.owner is not None]
        assert sorted(map(id, live)) == sorted(map(id, self.running))
