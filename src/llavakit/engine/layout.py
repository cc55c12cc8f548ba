"""What each token of a packed pass reads, as the integers of at most two attention calls.

Each row (a sequence's new tokens) reads its own segment causally and the splits of its prefix
(contiguous stretches of the arena) without a mask. One call of a varlen kernel is causal for all
of its stretches or for none, so:

- The first call is causal: every row over its own segment, and behind these every row of a
  single token over each of its other splits, for which causal means nothing.
- The second one is not causal: rows of several tokens over the splits of their prefix. A step has
  it only if a prefill goes on behind a shared beginning.

A token that reads several splits is merged from their results by log-sum-exp (flash-decoding,
https://crfm.stanford.edu/2023/10/12/flashdecoding.html); ``Layout.parts`` says from which. Pure
numpy: a pass is laid out once for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from llavakit.engine.extents import Extent

Integers = npt.NDArray[np.int64]

LEAST_PIECE = 128
"""Tokens. Shorter splits are not worth a block of their own."""


@dataclass(slots=True)
class Row:
    """One sequence's part of a packed forward pass; made for every sequence of every step.

    Attributes:
        prefix: where the tokens before its own segment lie.
        slot: arena slot of its own segment's first token.
        start: how many tokens of its own segment are computed already.
        count: how many are computed now.
    """

    prefix: tuple[Extent, ...]
    slot: int
    start: int
    count: int

    @property
    def own(self) -> int:
        """Tokens of its own segment, those of this pass included."""
        return self.start + self.count

    @property
    def seen(self) -> int:
        """Tokens before this pass."""
        return sum([extent.length for extent in self.prefix]) + self.start

    @property
    def longest(self) -> int:
        """Tokens of the longest stretch that it reads."""
        return max([self.own, *[extent.length for extent in self.prefix]])


@dataclass(frozen=True, slots=True)
class CallLayout:
    """One attention call.

    Attributes:
        stretches: [N, 4]: first query, number of queries, first slot, number of slots.
        gather: [Q], each query's place in the pass; None where they are the pass itself.
        causal: whether the last query of a stretch sees all of it, the one before one slot less,
            and so on.
    """

    stretches: Integers
    gather: Integers | None
    causal: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """A pass.

    Attributes:
        slots: [T], where the new keys and values belong.
        calls: one or two.
        parts: [T, P], places of each token's results among those of all calls, -1 where there are
            fewer; None if every token has one result, which is its own.
    """

    slots: Integers
    calls: tuple[CallLayout, ...]
    parts: Integers | None


def lay_out(rows: Sequence[Row], cuts: int = 1) -> Layout:
    """Lay a pass out.

    Args:
        rows: at least one, packed in this order.
        cuts: splits that a row of one token is cut into, where these stay long enough, so that
            few rows keep a device busy.
    """
    slots = [np.arange(row.slot + row.start, row.slot + row.own, dtype=np.int64) for row in rows]
    own, single, whole = [], [], []
    place = 0
    for row in rows:
        if row.count == 1:
            *others, last = pieces_of(row, cuts)
            own.append((place, 1, last.start, last.length))
            single += [(extent.start, extent.length, place) for extent in others]
        else:
            own.append((place, row.count, row.slot, row.own))
            whole += [(extent.start, extent.length, place, row.count) for extent in row.prefix]
        place += row.count
    # Rows that share a split read it next to each other.
    single.sort()
    places = [np.arange(place)] + [np.array([token]) for _, _, token in single]
    own += [(place + n, 1, start, length) for n, (start, length, _) in enumerate(single)]
    gather = np.concatenate(places) if single else None
    calls = [CallLayout(_table(own), gather, causal=True)]
    if whole:
        behind = [np.arange(first, first + count) for _, _, first, count in whole]
        ends = np.cumsum([len(one) for one in behind])
        stretches = [
            (end - count, count, start, length)
            for end, (start, length, _, count) in zip(ends, whole, strict=True)
        ]
        calls.append(CallLayout(_table(stretches), np.concatenate(behind), causal=False))
    return Layout(np.concatenate(slots), tuple(calls), _parts(place, calls))


def _table(stretches: Sequence[tuple[int, int, int, int]]) -> Integers:
    return np.array(stretches, dtype=np.int64).reshape(-1, 4)


def _parts(tokens: int, calls: Sequence[CallLayout]) -> Integers | None:
    """The places of each token's results, [T, P]; None if every token has exactly one."""
    read = [np.arange(tokens) if call.gather is None else call.gather for call in calls]
    token = np.concatenate(read)
    if len(token) == tokens:
        return None
    order = np.argsort(token, kind="stable")
    counts = np.bincount(token, minlength=tokens)
    column = np.arange(len(token)) - np.repeat(np.cumsum(counts) - counts, counts)
    parts = np.full((tokens, int(counts.max())), -1, dtype=np.int64)
    parts[token[order], column] = order
    return parts


def pieces_of(row: Row, count: int) -> list[Extent]:
    """Split what a row sees: its tree's stretches, the longest cut until there are ``count``."""
    splits = [*row.prefix, Extent(row.slot, row.own)]
    while len(splits) < count:
        longest = max(splits, key=_length)
        half = longest.length // 2
        if half < LEAST_PIECE:
            break
        place = splits.index(longest)
        rest = Extent(longest.start + half, longest.length - half)
        splits[place : place + 1] = Extent(longest.start, half), rest
    return splits


_length = attrgetter("length")
