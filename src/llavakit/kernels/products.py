"""Weights and their product: compiled for few rows, and for packed weights always."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from llavakit.kernels import packing
from llavakit.kernels.native import INT4, INT8, MOST_ROWS, Matrix, kernels, matrix, threads
from llavakit.kernels.packing import Packed

_BLOCK_BYTES = 16 << 20
"""Bytes of weights unpacked at once for many rows: they stay in a cache while they are used."""


class Weights:
    """A linear layer's weights in main memory, in fp32, bf16, 8 or 4 bits.

    Args:
        data: [rows, columns], or packed.
        bias: [rows], or None.

    Attributes:
        native: the weights as the compiled kernels read them.
    """

    def __init__(self, data: Tensor | Packed, bias: Tensor | None = None) -> None:
        self.limit_rows({})
        self.data = data
        self.bias = None if bias is None else bias.detach().float().contiguous()
        if isinstance(data, Packed):
            self.rows, self.columns = data.rows, data.columns
            self.native = _packed_matrix(data, self.bias)
        else:
            self.data = data = data.detach()
            self.rows, self.columns = data.shape
            self.native = matrix(data, self.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute ``x @ W.T + bias``: [M, columns] of any float type -> [M, rows] in fp32."""
        compiled = kernels()
        if compiled is not None and self.has_native(len(x)):
            return compiled.linear(x.float(), self.native)
        return self.many(x)

    def has_native(self, rows: int) -> bool:
        """Return whether the compiled kernels are to multiply so many rows with it."""
        if rows <= self._surely or isinstance(self.data, Packed):
            return True
        # Asked for at each call, because threads may be set anew at any time.
        return rows <= self._limits.get(threads(), MOST_ROWS)

    def limit_rows(self, limits: Mapping[int, int]) -> None:
        """Set for how many rows the compiled kernels are faster; packed weights always use them.

        Args:
            limits: number of threads -> rows; the default holds for numbers that are missing.
                See :mod:`llavakit.kernels.calibration`.
        """
        self._limits = limits
        # A decoding step has few rows, and needs no call of torch for the number of threads.
        self._surely = min((MOST_ROWS, *limits.values()))

    def many(self, x: Tensor) -> Tensor:
        """Multiply many rows by a matrix library; packed weights are unpacked in blocks."""
        kind = torch.bfloat16 if computes_bf16() and self._small else torch.float32
        x = x.to(kind)
        if isinstance(self.data, Tensor) and self.data.dtype == kind:
            bias = None if self.bias is None else self.bias.to(kind)
            return F.linear(x, self.data, bias).float()
        out = torch.empty((len(x), self.rows), dtype=torch.float32)
        block = max(packing.PANEL, _BLOCK_BYTES // (self.columns * 4))
        block -= block % packing.PANEL
        for first in range(0, self.rows, block):
            last = min(first + block, self.rows)
            out[:, first:last] = F.linear(x, self._numbers(first, last, kind))
        return out if self.bias is None else out.add_(self.bias)

    @property
    def _small(self) -> bool:
        """Whether fp32 was given up already, so that a product in bf16 loses little more."""
        return isinstance(self.data, Packed) or self.data.dtype == torch.bfloat16

    def _numbers(self, first: int, last: int, kind: torch.dtype) -> Tensor:
        if isinstance(self.data, Tensor):
            return self.data[first:last].to(kind)
        return packing.unpack(self.data, first, last).to(kind)


def _packed_matrix(packed: Packed, bias: Tensor | None) -> Matrix:
    return Matrix(
        packed.data.data_ptr(),
        packed.scales.data_ptr(),
        None if bias is None else bias.data_ptr(),
        packed.rows,
        packed.columns,
        packed.scales.shape[1],
        INT8 if packed.bits == 8 else INT4,
    )


@functools.cache
def computes_bf16() -> bool:
    """Return whether this processor multiplies bf16 itself: AVX512-BF16 or AMX."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)
