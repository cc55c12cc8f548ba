"""Short steps that prefill, and those that also decode, in static shapes: captured.

A step of few tokens costs the host more than the device: every layer launches a dozen operations.
Steps of up to ``TOKENS[-1]`` tokens therefore run in the next larger of a few shapes, whose
integers are copied to the device in one table (see :func:`table_of`) and whose embeddings lie in
one buffer; a shape that was needed ``after`` times is captured once and replayed from then on.
Longer steps are all products, and padding them would cost more than it saves: they run eagerly, as
does whatever cannot be captured.

Padding tokens write to the scratch slot and read it alone; nothing reads their results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llavakit.engine.arena import KVArena
from llavakit.engine.attention import ArenaAttention, Tables
from llavakit.engine.decode import CAPTURE_AFTER, StaticDecode
from llavakit.engine.graphs import Capture, Integers, RecordedSteps, as_it_is, power_of_two
from llavakit.engine.layout import CallLayout, Layout, Row, lay_out
from llavakit.engine.pieces import AttentionCall, Kernel
from llavakit.model.llava import Llava

TOKENS = (64, 128, 192, 256, 384, 512)
"""Of a step: the counts that are captured."""
FEWEST_ROWS = 8
MOST_ROWS = 256
FEWEST_PARTS, MOST_PARTS = 4, 8
"""Results that one token is merged from."""


class MixedShape(NamedTuple):
    """A bucket; looked up for every step.

    Attributes:
        tokens: places for new tokens, T.
        rows: places for sequences, R.
        singles: places for splits that a row of one token reads beside its own segment, S.
        behind: places for queries of prefills over their prefix, Q; 0 where nothing is merged.
        parts: results that a token is merged from, P; 0 if every token has one.
    """

    tokens: int
    rows: int
    singles: int = 0
    behind: int = 0
    parts: int = 0

    @property
    def stretches(self) -> int:
        """Of the first call: one a row, one of padding, one a single."""
        return self.rows + 1 + self.singles

    @property
    def sizes(self) -> tuple[int, ...]:
        """Integers of each field of the table, in their order (see :func:`table_of`)."""
        first = self.stretches
        merged = (self.tokens + self.singles,) if self.parts else (0,)
        second = self.rows + 1 if self.behind else 0
        more = (second + 1, second + 1, second, self.behind) if self.behind else (0, 0, 0, 0)
        calls = (first + 1, first + 1, first, *merged, *more)
        return (self.tokens, self.tokens, self.rows, *calls, self.tokens * self.parts)


class StaticMixed(RecordedSteps[MixedShape]):
    """Runs steps that prefill in static shapes.

    Args:
        model: with a fused decoder, on one device.
        arena: its keys and values.
        kernel: attends; takes stretches of several queries.
        capture: records a step.
        after: uses of a bucket before it is captured.
    """

    def __init__(
        self,
        model: Llava,
        arena: KVArena,
        kernel: Kernel,
        *,
        capture: Capture = as_it_is,
        after: int = 0,
    ) -> None:
        assert model.fused is not None, "only a fused decoder runs in static shapes"
        assert kernel.several, "a prefill has several queries"
        super().__init__(model.device, capture, after)
        self._model = model
        self._decoder = model.fused
        self._arena = arena
        self._kernel = kernel
        self._embeddings: dict[int, Tensor] = {}

    def __call__(
        self, rows: Sequence[Row], embeddings: Callable[[], Tensor], ends: Sequence[int]
    ) -> Tensor | None:
        """Return logits [len(ends), vocab] in fp32, or None if this step is for the eager pass.

        The result is overwritten by the next step.

        Args:
            rows: the sequences, packed in this order.
            embeddings: computes those of all new tokens, [T, hidden].
            ends: places of the tokens whose logits are wanted, in their order.
        """
        count = sum(row.count for row in rows)
        if count > TOKENS[-1] or len(rows) > MOST_ROWS:
            return None
        layout = lay_out(rows)
        shape = shape_of(layout, count, len(rows))
        if shape is None or shape in self._broken:
            return None
        new = embeddings()

        def table() -> Integers:
            self._buffer(shape.tokens, new)[:count].copy_(new)
            return table_of(rows, layout, ends, shape, self._arena.scratch)

        logits = self._attempt(shape, table)
        return None if logits is None else logits[: len(ends)]

    def warm_up(self, max_rows: int, progress: Callable[[int, int, str], None]) -> None:
        """Capture the usual shapes before they are needed.

        Runs on the thread that steps run on. Padding alone is computed.

        Args:
            max_rows: of a step.
            progress: is called with the shapes that are done, their number, and the last one.
        """
        shapes = usual_shapes(max_rows)
        like = self._model.embed(torch.zeros(1, dtype=torch.long, device=self._model.device))

        def blank(shape: MixedShape) -> Integers:
            self._buffer(shape.tokens, like)
            return table_of((), None, (), shape, self._arena.scratch)

        def done(count: int, shape: MixedShape) -> None:
            progress(count, len(shapes), f"{shape.tokens} tokens of {shape.rows} rows")

        self._prepare(shapes, blank, done)

    def _buffer(self, tokens: int, like: Tensor) -> Tensor:
        buffer = self._embeddings.get(tokens)
        if buffer is None:
            buffer = self._embeddings[tokens] = like.new_zeros((tokens, like.shape[-1]))
        return buffer

    def _step(self, table: Tensor, shape: MixedShape) -> Tensor:
        """From table and embeddings to logits [R, vocab]; waits for nothing."""
        slots, positions, ends, *rest = torch.split(table, list(shape.sizes))
        *calls, parts = rest
        tables = Tables(
            slots.long(),
            tuple(_calls(calls, shape, self._arena.scratch)),
            parts.view(shape.tokens, shape.parts).long() if shape.parts else None,
        )
        attend = ArenaAttention(self._arena, lambda device: tables, self._kernel)
        hidden = self._decoder(self._embeddings[shape.tokens], positions.long(), attend)
        return self._model.logits(hidden.index_select(0, ends.long()))


def shape_of(layout: Layout, tokens: int, rows: int) -> MixedShape | None:
    """Return the bucket of a step; None if it fits none."""
    places = next((count for count in TOKENS if count >= tokens), None)
    sequences = max(FEWEST_ROWS, power_of_two(rows))
    if places is None or sequences > places:
        return None
    if layout.parts is None:
        return MixedShape(places, sequences)
    singles = len(layout.calls[0].stretches) - rows
    behind = layout.calls[1].stretches if len(layout.calls) > 1 else layout.slots[:0, None]
    queries = int(behind[:, 1].sum()) if len(behind) else 0
    parts = power_of_two(layout.parts.shape[1])
    if len(behind) > sequences or queries > 2 * places or parts > MOST_PARTS:
        return None
    # Few shapes rather than tight ones: an empty call costs nearly nothing, a shape a capture.
    return MixedShape(
        places,
        sequences,
        max(sequences, power_of_two(singles)),
        places if queries <= places else 2 * places,
        max(FEWEST_PARTS, parts),
    )


def usual_shapes(max_rows: int) -> list[MixedShape]:
    """Return shapes of steps with and without a shared beginning, for few rows and for all."""
    most = max(FEWEST_ROWS, power_of_two(min(max_rows, MOST_ROWS)))
    found = []
    for tokens in TOKENS:
        for rows in sorted({FEWEST_ROWS, min(most, tokens)}):
            found += [
                MixedShape(tokens, rows),
                MixedShape(tokens, rows, rows, tokens, FEWEST_PARTS),
            ]
    return found


def table_of(
    rows: Sequence[Row],
    layout: Layout | None,
    ends: Sequence[int],
    shape: MixedShape,
    scratch: int,
) -> Integers:
    """Return a step's integers, one after the other, as :attr:`MixedShape.sizes` counts them.

    They are slots and positions of the tokens, places of the tokens whose logits are wanted; of
    the first call first queries, starts, lengths and places; the same of the second call; and
    parts. Without rows all of it is padding.
    """
    table = np.zeros(sum(shape.sizes), np.int32)
    fields = np.split(table, np.cumsum(shape.sizes)[:-1])
    slots, positions, wanted = fields[:3]
    slots[:] = scratch
    count = sum(row.count for row in rows)
    if layout is not None:
        slots[:count] = layout.slots
        positions[:count] = np.concatenate(
            [np.arange(row.seen, row.seen + row.count) for row in rows]
        )
        wanted[: len(ends)] = ends
    calls = [] if layout is None else list(layout.calls)
    _first_call(fields[3:7], calls[0] if calls else None, len(rows), shape, scratch)
    if shape.behind:
        _second_call(fields[7:11], calls[1] if len(calls) > 1 else None, shape, scratch)
    if shape.parts:
        _fill_parts(fields[11].reshape(shape.tokens, shape.parts), layout, len(rows), shape)
    return table


def _first_call(
    fields: Sequence[Integers],
    call: CallLayout | None,
    rows: int,
    shape: MixedShape,
    scratch: int,
) -> None:
    """Rows over their own segments, the padding tokens, empty rows, and single queries."""
    queries, starts, lengths, places = fields
    own = call.stretches[:rows] if call is not None else np.zeros((0, 4), np.int64)
    single = call.stretches[rows:] if call is not None else own
    count = int(own[:, 1].sum())
    queries[: shape.rows + 1] = shape.tokens  # rows that are not there have no query
    queries[:rows], queries[rows] = own[:, 0], count
    queries[shape.rows + 1 :] = shape.tokens + np.arange(shape.singles + 1)
    starts[:], lengths[:] = scratch, 1
    starts[:rows], lengths[:rows] = own[:, 2], own[:, 3]
    behind = slice(shape.rows + 1, shape.rows + 1 + len(single))
    starts[behind], lengths[behind] = single[:, 2], single[:, 3]
    if shape.parts:
        places[: shape.tokens] = np.arange(shape.tokens)
        if call is not None and call.gather is not None:
            places[shape.tokens : shape.tokens + len(single)] = call.gather[count:]


def _second_call(
    fields: Sequence[Integers],
    call: CallLayout | None,
    shape: MixedShape,
    scratch: int,
) -> None:
    """Prefills over their prefix, then the queries of padding."""
    queries, starts, lengths, places = fields
    stretches = call.stretches if call is not None else np.zeros((0, 4), np.int64)
    queries[:] = shape.behind
    queries[: len(stretches)], queries[len(stretches)] = stretches[:, 0], stretches[:, 1].sum()
    starts[:], lengths[:] = scratch, 1
    starts[: len(stretches)], lengths[: len(stretches)] = stretches[:, 2], stretches[:, 3]
    if call is not None and call.gather is not None:
        places[: len(call.gather)] = call.gather


def _fill_parts(parts: Integers, layout: Layout | None, rows: int, shape: MixedShape) -> None:
    """Where each token's results lie among those of the padded calls."""
    parts[:], parts[:, 0] = -1, np.arange(shape.tokens)
    if layout is None or layout.parts is None:
        return
    found = layout.parts
    count = len(layout.slots)
    first = count + len(layout.calls[0].stretches) - rows  # results of the first call
    moved = np.where(found >= count, found + shape.tokens - count, found)
    ahead = shape.tokens + shape.singles - first
    moved = np.where(found >= first, found + ahead, moved)
    parts[:count, : found.shape[1]] = moved


def _calls(fields: Sequence[Tensor], shape: MixedShape, longest: int) -> list[AttentionCall]:
    """Build the calls of a table's fields."""
    merged = shape.parts > 0
    calls = [_call(fields[:4], shape.tokens, longest, causal=True, merged=merged)]
    if shape.behind:
        calls.append(_call(fields[4:], shape.behind, longest, causal=False, merged=True))
    return calls


def _call(
    fields: Sequence[Tensor], most: int, longest: int, *, causal: bool, merged: bool
) -> AttentionCall:
    queries, starts, lengths, places = fields
    # In main memory the host can read what a kernel that loops asks for.
    stretches = None
    if queries.device.type == "cpu":
        stretches = torch.stack((queries[:-1], queries.diff(), starts[:-1], lengths), dim=1)
    gather = places.long() if merged else None
    return AttentionCall(
        queries, starts, lengths, most, longest, causal, gather=gather, stretches=stretches
    )


def static_mixed(
    model: Llava, arena: KVArena, static: StaticDecode | None, kernel: Kernel | None
) -> StaticMixed | None:
    """Return what runs steps that prefill in static shapes here; None where they run eagerly.

    Args:
        model: the loaded model.
        arena: its keys and values.
        static: runs steps that only decode; None switches static shapes off for these steps too.
        kernel: attends in passes of any kind; None is the processor's compiled one.
    """
    if static is None or kernel is None:
        return None
    if model.device.type == "cuda" and not kernel.static:
        return None  # a loop on the host cannot be captured
    return StaticMixed(model, arena, kernel, capture=static.capture, after=CAPTURE_AFTER)
