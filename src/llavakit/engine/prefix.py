"""Which computed tokens can serve a new prompt: the prefix cache, as integers.

Keys and values of a token depend on all that stands before it, so two sequences share them
exactly as far as they *begin* alike. Sequences are compared by **virtual ids**: text tokens
by their id, and each token of a picture by a number drawn from the picture's content, its
preprocessing and its place in the picture. Two different pictures therefore never look
alike, although the model's vocabulary has one ``<image>`` token for both.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llavakit.engine.extents import Extent

VirtualIds = npt.NDArray[np.int64]


def image_ids(key: str, count: int) -> VirtualIds:
    """Virtual ids of a picture's tokens: negative, so that no text token is among them.

    Args:
        key: what the features depend on: content digest, preprocessing, model revision.
        count: tokens of the picture.

    Every token gets 62 bits of a keyed stream (SHA-256 of the key, then a multiplicative
    sequence): two pictures agree in one place by chance once in 2**62.
    """
    digest = hashlib.sha256(f"{count}:{key}".encode()).digest()
    start, step = np.frombuffer(digest[:16], dtype=np.uint64)
    stream = start + np.arange(count, dtype=np.uint64) * (step | np.uint64(1))
    ids: VirtualIds = -1 - (stream >> np.uint64(2)).astype(np.int64)
    return ids


def common_prefix(one: VirtualIds, other: VirtualIds) -> int:
    """How many ids two sequences share from their beginning."""
    length = min(len(one), len(other))
    if not length or one[0] != other[0]:
        return 0
    differs = one[:length] != other[:length]
    first = int(differs.argmax())
    return first if differs[first] else length


@dataclass(frozen=True, slots=True, eq=False)
class Donor:
    """The computed tokens of a finished sequence: ``ids[i]`` lives in slot ``extent.start + i``."""

    ids: VirtualIds
    extent: Extent


class DonorTable:
    """Finished prefixes in the order of their last use, the oldest first."""

    def __init__(self) -> None:
        self._donors: OrderedDict[int, Donor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._donors)

    def __iter__(self) -> Iterator[Donor]:
        return iter(self._donors.values())

    @property
    def tokens(self) -> int:
        """Slots held by donors."""
        return sum(donor.extent.length for donor in self)

    def add(self, donor: Donor) -> list[Donor]:
        """Keep a donor; returns those that it makes useless (they begin it), removed."""
        useless = [d for d in self if common_prefix(d.ids, donor.ids) == len(d.ids)]
        for one in useless:
            self.remove(one)
        self._donors[donor.extent.start] = donor
        return useless

    def remove(self, donor: Donor) -> None:
        """Forget a donor; its extent is the caller's again."""
        del self._donors[donor.extent.start]

    def touch(self, donor: Donor) -> None:
        """Mark a donor as just used."""
        self._donors.move_to_end(donor.extent.start)

    def oldest(self, but: Donor | None = None) -> Donor | None:
        """The donor that was not used for longest, other than ``but``."""
        return next((donor for donor in self if donor is not but), None)

    def best(self, ids: VirtualIds) -> tuple[Donor | None, int]:
        """The donor that shares the longest prefix with ``ids``, and how long it is."""
        best: Donor | None = None
        length = 0
        for donor in self:
            shared = common_prefix(donor.ids, ids)
            if shared > length:
                best, length = donor, shared
        return best, length
