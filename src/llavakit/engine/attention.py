"""Attention of any packed pass over segments of the arena, prefill and decode mixed.

Sequences that share a beginning read its keys once for all of them: decoding is bound by
memory, and sixteen questions about four pictures then read four pictures and not sixteen.
On a processor one compiled call a layer does all of it (:mod:`llavakit.kernels.attention`); what
stands here is for other devices and types, and for installations without a compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llavakit.engine.arena import KVArena
from llavakit.engine.extents import Extent
from llavakit.engine.transfer import to_device
from llavakit.kernels.attention import Pass
from llavakit.kernels.native import kernels


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part of a packed forward pass.

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
        return sum(extent.length for extent in self.prefix) + self.start


def attention_of(arena: KVArena, rows: Sequence[Row]) -> Pass | SegmentAttention:
    """What attends in a packed pass (see ``model.decoder``): compiled where that is possible.

    Args:
        arena: where keys and values lie.
        rows: the sequences of the pass, packed in this order.
    """
    library = kernels() if arena.caches is not None else None
    if library is None or arena.caches is None:
        return SegmentAttention(arena, rows)
    stretches = [
        (tuple((e.start, e.length) for e in row.prefix), row.slot, row.start, row.count)
        for row in rows
    ]
    return Pass(library, arena.caches, stretches)


class SegmentAttention:
    """The same in torch: stores keys and values of a packed pass, then attends."""

    def __init__(self, arena: KVArena, rows: Sequence[Row]) -> None:
        self._arena = arena
        self._rows = rows
        self._packed: dict[torch.device, _Packed] = {}

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        keys, values = self._arena.keys[layer], self._arena.values[layer]
        packed = self._packed.get(keys.device)
        if packed is None:
            packed = _Packed(self._rows, self._arena.short, keys.device)
            self._packed[keys.device] = packed
        packed.store(keys, key)
        packed.store(values, value)
        return packed.attend(query, keys, values, scaling)


class _Packed:
    """The rows of a pass as indices on one device."""

    def __init__(self, rows: Sequence[Row], short: int, device: torch.device) -> None:
        slots = [torch.arange(row.slot + row.start, row.slot + row.own) for row in rows]
        self._slots = to_device(torch.cat(slots), device)
        self._prefills: list[tuple[slice, _Prefill]] = []
        alike: dict[Any, list[tuple[int, Row]]] = {}
        position = 0
        for row in rows:
            if row.count > 1:
                part = slice(position, position + row.count)
                self._prefills.append((part, _Prefill(row, device)))
            else:
                # Gathering an own segment pays while it is short beside what is shared.
                together = row.own <= max(short, row.seen - row.start)
                key = row.prefix if together else position
                alike.setdefault(key, []).append((position, row))
            position += row.count
        self._decodes = [_Decode(group, device) for group in alike.values()]

    def store(self, slots: Tensor, new: Tensor) -> None:
        """Write the pass's keys, or values, [T, kv_heads, dim]."""
        slots.index_copy_(1, self._slots, new.transpose(0, 1))

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """[T, heads, dim] over [kv_heads, slots, dim]."""
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for part, prefill in self._prefills:
            out[part] = prefill(query[part], keys, values, scaling)
        for decode in self._decodes:
            out[decode.positions] = decode(query[decode.positions], keys, values, scaling)
        return out


class _Prefill:
    """Causal attention of several new tokens of one sequence."""

    def __init__(self, row: Row, device: torch.device) -> None:
        self._pieces = [*row.prefix, Extent(row.slot, row.own)]
        self._mask: Tensor | None = None
        if row.seen:
            # Lower right: the new tokens see all before them, and of themselves what precedes.
            every = torch.ones(row.count, row.seen + row.count, dtype=torch.bool, device=device)
            self._mask = every.tril(diagonal=row.seen)

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """[n, heads, dim] over [kv_heads, slots, dim]."""
        attended = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            self._joined(keys)[None],
            self._joined(values)[None],
            attn_mask=self._mask,
            is_causal=self._mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != keys.shape[0],
        )
        return attended[0].transpose(0, 1)

    def _joined(self, slots: Tensor) -> Tensor:
        views = [slots[:, piece.start : piece.end] for piece in self._pieces]
        return views[0] if len(views) == 1 else torch.cat(views, dim=1)


class _Decode:
    """Attention of one new token each of sequences that share their prefix.

    Scores over the shared pieces are one product for all of them; those over each one's own
    segment are gathered and padded, since these are short beside a picture.

    Attributes:
        positions: the tokens' places in the packed pass.
    """

    def __init__(self, group: Sequence[tuple[int, Row]], device: torch.device) -> None:
        rows = [row for _, row in group]
        self._prefix = rows[0].prefix
        first, last = group[0][0], group[-1][0]
        adjacent = last - first + 1 == len(group)
        self.positions: slice | Tensor = (
            slice(first, last + 1)
            if adjacent
            else to_device(torch.tensor([position for position, _ in group]), device)
        )
        longest = max(row.own for row in rows)
        self._alone = slice(rows[0].slot, rows[0].slot + rows[0].own)
        self._gather: Tensor | None = None
        self._padding: Tensor | None = None
        if len(rows) > 1:
            places = torch.arange(longest)
            own = torch.tensor([row.own for row in rows])[:, None]
            slots = torch.tensor([row.slot for row in rows])[:, None]
            # A padded place reads the first slot of its row and is masked.
            gather = (slots + torch.where(places < own, places, 0)).flatten()
            self._gather = to_device(gather, device)
            self._padding = to_device((places >= own)[:, None, None, :], device)

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """[n, heads, dim] over [kv_heads, slots, dim]."""
        count, heads, dim = query.shape
        kv_heads = keys.shape[0]
        # [kv_heads, n * group, dim]: query heads of one group read the same keys.
        grouped = (query * scaling).view(count, kv_heads, -1, dim).transpose(0, 1)
        grouped = grouped.reshape(kv_heads, -1, dim).contiguous()
        shared = [slice(piece.start, piece.end) for piece in self._prefix]
        scores = [torch.bmm(grouped, keys[:, piece].transpose(1, 2)) for piece in shared]
        scores.append(self._own_scores(grouped, keys, count))
        weights = torch.softmax(torch.cat(scores, dim=-1), dim=-1, dtype=torch.float32)
        parts = torch.split(weights.to(values.dtype), [one.shape[-1] for one in scores], dim=-1)
        out = self._own_values(parts[-1], values, count)
        for piece, part in zip(shared, parts[:-1], strict=True):
            out += torch.bmm(part, values[:, piece])
        return out.view(kv_heads, count, -1, dim).transpose(0, 1).reshape(count, heads, dim)

    def _own_scores(self, grouped: Tensor, keys: Tensor, count: int) -> Tensor:
        """[kv_heads, n * group, longest own segment]."""
        if self._gather is None:
            return torch.bmm(grouped, keys[:, self._alone].transpose(1, 2))
        assert self._padding is not None
        kv_heads, _, dim = grouped.shape
        own = keys[:, self._gather].view(kv_heads * count, -1, dim)
        scores = torch.bmm(grouped.view(kv_heads * count, -1, dim), own.transpose(1, 2))
        scores = scores.view(kv_heads, count, -1, scores.shape[-1]).transpose(0, 1)
        scores = scores.masked_fill(self._padding, float("-inf"))
        return scores.transpose(0, 1).reshape(kv_heads, -1, scores.shape[-1])

    def _own_values(self, weights: Tensor, values: Tensor, count: int) -> Tensor:
        """[kv_heads, n * group, dim]."""
        if self._gather is None:
            return torch.bmm(weights, values[:, self._alone])
        kv_heads, dim = values.shape[0], values.shape[2]
        own = values[:, self._gather].view(kv_heads * count, -1, dim)
        return torch.bmm(weights.reshape(kv_heads * count, -1, own.shape[1]), own).view(
            kv_heads, -1, dim
        )
