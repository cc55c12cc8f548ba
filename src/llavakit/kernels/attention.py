"""Attention of a packed pass over stretches of the arena by the compiled kernel.

A pass is cut into *units*: tokens that read the same stretches, each followed by a stretch of its
own. Sequences that decode behind a shared prefix are one unit; a prefill is several, whose tokens
share all that lies before them and end with the triangle among themselves. Whatever is mixed in a
pass, it is one call a layer, or one for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llavakit.kernels.native import KINDS, Attention, Cache, Kernels, Units

Stretch = tuple[int, int]
"""First slot, and number of slots."""

RowOf = tuple[tuple[Stretch, ...], int, int, int]
"""A sequence: stretches before its own segment; the segment's first slot; how many of its tokens
are computed already; how many are computed now."""

MOST_QUERIES = 64
"""Queries of one unit and key head: their scores and sums stay in the L1 cache."""
WORTH_TURNING = 4
"""Fewest queries of a stretch for which the kernel transposes its keys."""


class Step:
    """The units of one pass, the same for all layers.

    Args:
        rows: the sequences, packed in this order.
        group: query heads that share a key head.

    Attributes:
        tokens: number of tokens in the pass.
    """

    def __init__(self, rows: Sequence[RowOf], group: int) -> None:
        self._group = group
        self._tails: list[tuple[int, int, int]] = []
        self._firsts, self._shared_firsts = [0], [0]
        self._shared: list[Stretch] = []
        slots: list[int] = []
        alike: dict[tuple[Stretch, ...], list[tuple[int, int, int]]] = {}
        place = 0
        for prefix, slot, start, count in rows:
            slots += range(slot + start, slot + start + count)
            if count == 1:
                alike.setdefault(prefix, []).append((place, slot, start + 1))
            else:
                self._add_prefill(prefix, slot, start, count, place)
            place += count
        for prefix, tails in alike.items():
            self._add_decodes(prefix, tails)
        self.tokens = place
        self._kept = self._arrays(slots)
        self.units = Units(len(self._firsts) - 1, *(one.ctypes.data for one in self._kept[:-1]))

    @property
    def slots(self) -> int:
        """Address of the slots of the new keys and values."""
        return int(self._kept[-1].ctypes.data)

    def _add(self, shared: Sequence[Stretch], tails: Sequence[tuple[int, int, int]]) -> None:
        self._shared += shared
        self._shared_firsts.append(len(self._shared))
        self._tails += tails
        self._firsts.append(len(self._tails))

    def _add_prefill(
        self, prefix: tuple[Stretch, ...], slot: int, start: int, count: int, place: int
    ) -> None:
        most = max(1, min(32, MOST_QUERIES // self._group))
        for first in range(0, count, most):
            before = start + first
            shared = [*prefix, (slot, before)] if before else list(prefix)
            last = min(first + most, count)
            tails = [(place + n, slot + before, n - first + 1) for n in range(first, last)]
            self._add(shared, tails)

    def _add_decodes(self, prefix: tuple[Stretch, ...], tails: list[tuple[int, int, int]]) -> None:
        if len(tails) == 1 and self._group >= WORTH_TURNING:
            # Its query heads share its own segment, too.
            place, slot, length = tails[0]
            self._add([*prefix, (slot, length)], [(place, slot, 0)])
            return
        most = max(1, MOST_QUERIES // self._group)
        for first in range(0, len(tails), most):
            self._add(prefix, tails[first : first + most])

    def _arrays(self, slots: list[int]) -> list[np.ndarray]:
        tails = np.array(self._tails, dtype=np.int64).reshape(-1, 3)
        shared = np.array(self._shared, dtype=np.int64).reshape(-1, 2)
        return [
            np.ascontiguousarray(one, dtype=np.int64)
            for one in (
                *(self._firsts, tails[:, 0], tails[:, 1], tails[:, 2]),
                *(self._shared_firsts, shared[:, 0], shared[:, 1], slots),
            )
        ]


class Caches:
    """Keys and values of all layers as the kernels read them; the tensors must outlive it.

    Args:
        keys, values: a tensor for each layer, [kv_heads, slots, dim], fp32 or bf16 in main memory.

    Attributes:
        native: an array of them, as the kernels take it.
        kind: their type, a value of ``KINDS``.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.native = (Cache * len(keys))(*map(_cache, keys, values))
        self.kind = KINDS[keys[0].dtype]

    def __len__(self) -> int:
        return len(self.native)


def _cache(keys: Tensor, values: Tensor) -> Cache:
    assert keys.stride(2) == values.stride(2) == 1 and keys.dtype == values.dtype
    return Cache(
        *(keys.data_ptr(), values.data_ptr(), keys.stride(0), keys.stride(1)),
        *(values.stride(0), values.stride(1)),
    )


class Pass:
    """Stores a packed pass's keys and values, then attends, a layer at a time.

    A decoder may instead run all layers in one call, see :mod:`llavakit.kernels.decoding`.

    Args:
        kernels: compiled.
        caches: where keys and values lie.
        rows: the sequences, packed in this order.
    """

    def __init__(self, kernels: Kernels, caches: Caches, rows: Sequence[RowOf]) -> None:
        self.kernels = kernels
        self.caches = caches
        self._rows = rows
        self._step: Step | None = None

    def step(self, group: int) -> Step:
        """Describe what reads what, where so many query heads share a key head."""
        if self._step is None:
            self._step = Step(self._rows, group)
        return self._step

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attend: [T, heads, dim], and keys and values of [T, kv_heads, dim] -> [T, heads, dim]."""
        step = self.step(query.shape[1] // key.shape[1])
        query_, key, value = (_heads_adjacent(one) for one in (query, key, value))
        count, heads, dim = query.shape
        assert count == step.tokens
        out = torch.empty((count, heads, dim), dtype=torch.float32)
        cache = self.caches.native[layer]
        self.kernels.attend(
            Attention(
                *(query_.data_ptr(), key.data_ptr(), value.data_ptr()),
                *(query_.stride(0), key.stride(0), value.stride(0)),
                *(cache.keys, cache.values),
                *(cache.key_head, cache.key_slot, cache.value_head, cache.value_slot),
                *(step.slots, count, heads, key.shape[1], dim, scaling, self.caches.kind),
                out.data_ptr(),
            ),
            step.units,
        )
        return out.to(query.dtype)


def _heads_adjacent(one: Tensor) -> Tensor:
    """Convert to fp32, with a token's heads adjacent in memory."""
    one = one.float()
    return one if one.stride()[1:] == (one.shape[2], 1) else one.contiguous()
