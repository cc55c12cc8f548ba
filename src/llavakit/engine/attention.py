"""Keys and values in one arena a layer, and attention over extents of it.

Layout [kv_heads, tokens, head_dim]: a sequence's keys are one contiguous view per head, so
decode reads them without gathering (paged layouts measured 4-10 times slower on a CPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llavakit.engine.scheduler import Copy


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part of a packed forward pass.

    Attributes:
        slot: arena slot of the sequence's first token.
        start: how many of its tokens are computed already.
        count: how many are computed now.
    """

    slot: int
    start: int
    count: int


class KVArena:
    """Keys and values of all layers.

    Args:
        layers, kv_heads, head_dim: the decoder's shape.
        tokens: slots.
    """

    def __init__(
        self,
        layers: int,
        tokens: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (kv_heads, tokens, head_dim)
        # Not zeroed: a slot is always written before it is read, and on a CPU memory that
        # was never touched costs nothing.
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.device = device

    @staticmethod
    def bytes_per_token(layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes that one token takes in all layers."""
        return 2 * layers * kv_heads * head_dim * dtype.itemsize

    def copy(self, copy: Copy) -> None:
        """Copy the keys and values of a prefix to another extent."""
        source = slice(copy.source, copy.source + copy.count)
        target = slice(copy.target, copy.target + copy.count)
        for layer in (*self.keys, *self.values):
            layer[:, target] = layer[:, source]

    def attend(self, rows: Sequence[Row]) -> ExtentAttention:
        """The attention of one forward pass over these rows, packed in this order."""
        return ExtentAttention(self, rows)


class ExtentAttention:
    """Stores keys and values of a packed pass, then attends row by row (see ``model.llava``)."""

    def __init__(self, arena: KVArena, rows: Sequence[Row]) -> None:
        self._arena = arena
        self._rows = rows
        slots = [
            torch.arange(row.slot + row.start, row.slot + row.start + row.count) for row in rows
        ]
        self._slots = torch.cat(slots).to(arena.device)
        self._masks: dict[Row, Tensor] = {}

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        keys, values = self._arena.keys[layer], self._arena.values[layer]
        keys.index_copy_(1, self._slots, key.transpose(0, 1))
        values.index_copy_(1, self._slots, value.transpose(0, 1))
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        position = 0
        for row in self._rows:
            part = slice(position, position + row.count)
            seen = slice(row.slot, row.slot + row.start + row.count)
            if row.count == 1:
                out[part] = _decode(query[part], keys[:, seen], values[:, seen], scaling)
            else:
                out[part] = self._prefill(row, query[part], keys[:, seen], values[:, seen], scaling)
            position += row.count
        return out

    def _prefill(
        self, row: Row, query: Tensor, keys: Tensor, values: Tensor, scaling: float
    ) -> Tensor:
        """Causal attention of [n, heads, dim] over [kv_heads, length, dim], length >= n."""
        attended = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=self._mask(row) if row.start else None,
            is_causal=not row.start,
            scale=scaling,
            enable_gqa=query.shape[1] != keys.shape[0],
        )
        return attended[0].transpose(0, 1)

    def _mask(self, row: Row) -> Tensor:
        """Lower-right causal mask: the new tokens see the prefix and what of them stands before."""
        mask = self._masks.get(row)
        if mask is None:
            length = row.start + row.count
            every = torch.ones(row.count, length, dtype=torch.bool, device=self._arena.device)
            mask = self._masks[row] = every.tril(diagonal=row.start)
        return mask


def _decode(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """Attention of one token [1, heads, dim] over [kv_heads, length, dim]."""
    heads, dim = query.shape[1:]
    kv_heads = keys.shape[0]
    grouped = query.reshape(kv_heads, heads // kv_heads, dim)
    weights = torch.bmm(grouped * scaling, keys.transpose(1, 2))
    weights = torch.softmax(weights, dim=-1, dtype=torch.float32).to(values.dtype)
    return torch.bmm(weights, values).reshape(1, heads, dim)
