"""Attention of a packed pass over segments of the arena, prefill and decode mixed.

Sequences that share a beginning read its keys where they lie, once in memory for all of them. On a
processor one compiled call does all of it (:mod:`llavakit.kernels.attention`); elsewhere it is one
call of a varlen kernel a layer, or two (:mod:`llavakit.engine.pieces`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llavakit.engine.arena import KVArena
from llavakit.engine.layout import Layout, Row, lay_out
from llavakit.engine.pieces import (
    LOOPED,
    VARLEN,
    AttentionCall,
    Kernel,
    attention_call,
    working_kernel,
)
from llavakit.engine.transfer import to_device
from llavakit.errors import EngineError
from llavakit.kernels.attention import Pass
from llavakit.kernels.fused import merge_splits, rotate_and_store
from llavakit.kernels.native import kernels

__all__ = ["Row", "SegmentAttention", "attention_of"]


@dataclass(frozen=True, slots=True)
class Tables:
    """A pass on one device.

    Attributes:
        slots: [T], the arena slots of the new keys and values.
        calls: one or two.
        parts: [T, P], see :func:`llavakit.kernels.fused.merge_splits`; None if nothing is merged.
    """

    slots: Tensor
    calls: tuple[AttentionCall, ...]
    parts: Tensor | None


def tables_of(layout: Layout, device: torch.device) -> Tables:
    """Put a pass's integers on a device."""
    calls = tuple(attention_call(one, device) for one in layout.calls)
    parts = None
    if layout.parts is not None:
        parts = to_device(torch.from_numpy(layout.parts), device)
    return Tables(to_device(torch.from_numpy(layout.slots), device), calls, parts)


class ArenaAttention:
    """Stores a pass's keys and values in the arena, then attends (see ``model.decoder``).

    Args:
        arena: where keys and values lie.
        tables: the pass, on each device that a layer lies on.
        kernel: attends.
    """

    def __init__(
        self, arena: KVArena, tables: Callable[[torch.device], Tables], kernel: Kernel
    ) -> None:
        self._arena = arena
        self._tables = functools.cache(tables)
        self._kernel = kernel

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attend: [T, heads, dim], and keys and values of [T, kv_heads, dim] -> [T, heads, dim]."""
        keys, values, tables = self._of(layer)
        keys.index_copy_(0, tables.slots, key.to(keys.dtype))
        values.index_copy_(0, tables.slots, value.to(values.dtype))
        return self._attend(query, keys, values, tables, scaling)

    def turned(
        self, layer: int, mixed: Tensor, cos: Tensor, sin: Tensor, heads: int, scaling: float
    ) -> Tensor:
        """Attend with queries, keys and values that are not yet rotated to their positions.

        Args:
            layer: its number.
            mixed: queries, keys and values side by side, [T, heads + 2 kv_heads, dim].
            cos, sin: cosines and sines of the positions, [T, 1, dim / 2].
            heads: number of query heads.
            scaling: factor of the scores.
        """
        keys, values, tables = self._of(layer)
        query = rotate_and_store(mixed, cos, sin, keys, values, tables.slots, heads)
        return self._attend(query, keys, values, tables, scaling)

    def _of(self, layer: int) -> tuple[Tensor, Tensor, Tables]:
        keys, values = self._arena.keys[layer], self._arena.values[layer]
        return keys.transpose(0, 1), values.transpose(0, 1), self._tables(keys.device)

    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, tables: Tables, scaling: float
    ) -> Tensor:
        results = []
        for call in tables.calls:
            asked = query if call.gather is None else query.index_select(0, call.gather)
            results.append(self._kernel.attend(asked, keys, values, call, scaling))
        out, lse = results[0]
        if len(results) > 1:
            out = torch.cat([one for one, _ in results])
            lse = torch.cat([one for _, one in results], dim=1)
        return out if tables.parts is None else merge_splits(out, lse, tables.parts)


class SegmentAttention(ArenaAttention):
    """The same by a kernel of :mod:`llavakit.engine.pieces`, on any device."""

    def __init__(self, arena: KVArena, rows: Sequence[Row], kernel: Kernel = LOOPED) -> None:
        super().__init__(arena, functools.partial(tables_of, lay_out(rows)), kernel)


def attention_of(
    arena: KVArena, rows: Sequence[Row], kernel: Kernel | None = None
) -> Pass | ArenaAttention:
    """Return what attends in a packed pass (see ``model.decoder``), compiled where possible.

    Args:
        arena: where keys and values lie.
        rows: the sequences of the pass, packed in this order.
        kernel: the kernel of a device without compiled kernels.
    """
    library = kernels() if arena.caches is not None and kernel is None else None
    if library is None or arena.caches is None:
        return SegmentAttention(arena, rows, kernel or LOOPED)
    stretches = [
        (tuple((e.start, e.length) for e in row.prefix), row.slot, row.start, row.count)
        for row in rows
    ]
    return Pass(library, arena.caches, stretches)


def pass_kernel(
    arena: KVArena,
    heads: int,
    kv_heads: int,
    head_dim: int,
    refused: dict[str, str] | None = None,
) -> Kernel | None:
    """Return the kernel of all passes; None where a processor's compiled kernels attend.

    Args:
        arena: where keys and values lie.
        heads, kv_heads, head_dim: the shape of the model's attention.
        refused: filled with the names of kernels that were passed over, and why.

    Raises:
        EngineError: no kernel gives right numbers.
    """
    if arena.caches is not None and kernels() is not None:
        return None
    home = arena.keys[0]
    if home.device.type != "cuda":
        return LOOPED
    shape = (heads, kv_heads, head_dim)
    found = working_kernel(*shape, home.dtype, home.device, (VARLEN, LOOPED), refused)
    if found is None:
        raise EngineError(f"No attention kernel gives right numbers on {home.device}: {refused}.")
    return found
