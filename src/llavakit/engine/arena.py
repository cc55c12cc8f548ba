"""Keys and values of all sequences: one arena a layer, on that layer's device."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from llavakit.kernels import huge_pages
from llavakit.kernels.attention import Caches
from llavakit.kernels.native import KINDS


class KVArena:
    """Keys and values of all layers, each [kv_heads, tokens + 1, head_dim].

    In memory, heads come first: a segment's keys are one contiguous stretch a head, so decode
    reads them without gathering (paged layouts measured 4-10 times slower on a CPU, tokens first
    up to twice as slow). On CUDA tokens come first, as flash attention wants them. Both look the
    same from here.

    In main memory a slot takes nothing until it is first written, for the arena lies on small
    pages. One token touches a page in each head and layer, for keys and for values: 1.5 MB where
    12 layers have 16 heads, and 766 MB if pages were huge. The compiled attention reads small
    pages 0 to 15% slower, which is a few percent of a step at most.

    Args:
        devices: the device of each layer.
        tokens: slots.
        kv_heads, head_dim: the decoder's shape.
        tokens_first: the layout in memory; None decides by the device.

    Attributes:
        scratch: a slot behind the others, which no sequence owns; padding is written there.
    """

    def __init__(
        self,
        devices: Sequence[torch.device],
        tokens: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        tokens_first: bool | None = None,
    ) -> None:
        def slots(device: torch.device) -> Tensor:
            # Not zeroed: a slot is always written before it is read.
            if device.type == "cuda" if tokens_first is None else tokens_first:
                made = torch.empty((tokens + 1, kv_heads, head_dim), dtype=dtype, device=device)
                return made.transpose(0, 1)
            if device.type == "cpu":
                return huge_pages.sparse((kv_heads, tokens + 1, head_dim), dtype)
            return torch.empty((kv_heads, tokens + 1, head_dim), dtype=dtype, device=device)

        self.keys = [slots(device) for device in devices]
        self.values = [slots(device) for device in devices]
        self.scratch = tokens

    @functools.cached_property
    def caches(self) -> Caches | None:
        """The arena as the compiled kernels read it; None for another device or type."""
        for one in (*self.keys, *self.values):
            if one.device.type != "cpu" or one.dtype not in KINDS or one.stride(2) != 1:
                return None
        return Caches(self.keys, self.values)

    @staticmethod
    def bytes_per_token(layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Return the bytes that one token takes in all layers."""
        return 2 * layers * kv_heads * head_dim * dtype.itemsize
