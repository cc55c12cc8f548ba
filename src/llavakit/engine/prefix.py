"""Which computed tokens can serve a new prompt: the prefix cache, as integers.

Keys and values of a token depend on all that stands before it, so two sequences share them
exactly as far as they *begin* alike. Sequences are compared by **virtual ids**: text tokens
by their id, and each token of an image by a number derived from the image's content, its
preprocessing and its place in the image. Two different images therefore never look
alike, although the model's vocabulary has one ``<image>`` token for both.

What is computed lies in **segments**, which form a tree: a segment continues its parent from
some place on. A shared beginning lies in the arena once, however many sequences go on from
it, and is read from there: nothing is copied.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llavakit.engine.extents import Extent

VirtualIds = npt.NDArray[np.int64]


def image_ids(key: str, count: int) -> VirtualIds:
    """Return the virtual ids of an image's tokens: negative, unlike any text token's.

    Args:
        key: what the features depend on: content digest, preprocessing, model revision.
        count: tokens of the image.

    Every token gets 62 bits of a keyed stream (SHA-256 of the key, then a multiplicative
    sequence): two images agree in one place by chance once in 2**62.
    """
    digest = hashlib.sha256(f"{count}:{key}".encode()).digest()
    start, step = np.frombuffer(digest[:16], dtype=np.uint64)
    stream = start + np.arange(count, dtype=np.uint64) * (step | np.uint64(1))
    ids: VirtualIds = -1 - (stream >> np.uint64(2)).astype(np.int64)
    return ids


def common_prefix(one: VirtualIds, other: VirtualIds) -> int:
    """Return how many ids two sequences share from their beginning."""
    length = min(len(one), len(other))
    if not length or one[0] != other[0]:
        return 0
    differs = one[:length] != other[:length]
    first = int(differs.argmax())
    return first if differs[first] else length


class Owner(Protocol):
    """A running sequence, as the tree sees it."""

    def known_ids(self) -> VirtualIds:
        """Return the virtual ids of all its computed tokens, from the first on."""


_uses = itertools.count()


class Segment:
    """A stretch of computed tokens: those from ``base`` on of one or more sequences.

    Attributes:
        extent: where it lies in the arena; token ``base + i`` in slot ``extent.start + i``.
        base: tokens that stand before it, in its parents.
        parent: the segment that it continues; it may leave the parent before its end.
        children: segments that continue this one.
        owner: the running sequence that writes it, or None when it is only kept for later prompts.
    """

    def __init__(
        self,
        extent: Extent,
        base: int = 0,
        parent: Segment | None = None,
        owner: Owner | None = None,
    ) -> None:
        self.extent = extent
        self.base = base
        self.parent = parent
        self.children: list[Segment] = []
        self.owner = owner
        self.used = next(_uses)
        self._ids: VirtualIds = np.empty(0, np.int64)

    @property
    def ids(self) -> VirtualIds:
        """Virtual ids of its computed tokens."""
        return self._ids if self.owner is None else self.owner.known_ids()[self.base :]

    @property
    def idle(self) -> bool:
        """Whether no sequence writes it and no segment continues it."""
        return self.owner is None and not self.children

    @property
    def prefix(self) -> tuple[Extent, ...]:
        """Where the tokens before it lie, in their order."""
        extents: list[Extent] = []
        end, node = self.base, self.parent
        while node is not None:
            extents.append(Extent(node.extent.start, end - node.base))
            end, node = node.base, node.parent
        return tuple(reversed(extents))

    def disown(self) -> None:
        """Let the owner go; its computed tokens stay, used a moment ago."""
        self._ids = self.ids
        self.owner = None
        self.touch()

    def touch(self) -> None:
        """Mark it and what it continues as just used."""
        node: Segment | None = self
        while node is not None:
            node.used = next(_uses)
            node = node.parent


class PrefixTree:
    """All segments of the arena, live and kept.

    Args:
        worth: fewest tokens of a segment that are worth sharing.
    """

    def __init__(self, worth: int = 1) -> None:
        self._worth = worth
        self._roots: list[Segment] = []

    def __iter__(self) -> Iterator[Segment]:
        stack = list(self._roots)
        while stack:
            segment = stack.pop()
            stack += segment.children
            yield segment

    @property
    def kept(self) -> list[Segment]:
        """Segments that no running sequence writes."""
        return [segment for segment in self if segment.owner is None]

    def add(self, segment: Segment) -> None:
        """Put a segment behind its parent; both count as used."""
        self._siblings(segment).append(segment)
        segment.touch()

    def remove(self, segment: Segment) -> None:
        """Take out a segment that nothing continues; its extent is the caller's again."""
        assert not segment.children, "a segment that others continue cannot go"
        self._siblings(segment).remove(segment)

    def _siblings(self, segment: Segment) -> list[Segment]:
        return self._roots if segment.parent is None else segment.parent.children

    def best(self, ids: VirtualIds, but: Segment | None = None) -> tuple[Segment | None, int]:
        """Return where the longest shared prefix ends, and its length; ``but`` is passed over."""
        best: Segment | None = None
        length = 0
        stack = list(self._roots)
        while stack:
            segment = stack.pop()
            if segment is but:
                continue
            shared = segment.base + common_prefix(segment.ids, ids[segment.base :])
            if shared - segment.base < self._worth:
                continue
            if shared > length:
                best, length = segment, shared
            stack += [child for child in segment.children if child.base <= shared]
        return best, length

    def oldest_idle(self, but: Segment | None = None) -> Segment | None:
        """Return the least recently used idle segment other than ``but``."""
        idle = [segment for segment in self if segment.idle and segment is not but]
        return min(idle, key=lambda segment: segment.used, default=None)
