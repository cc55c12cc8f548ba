"""All layers of a decoder by one compiled call.

The work between two products of a small batch takes less time than a call from Python or waking a
second thread; so a whole pass is one call and one parallel region.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llavakit.kernels.attention import Pass
from llavakit.kernels.native import Cache, Decode, Layer
from llavakit.kernels.products import Weights


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of one Llama layer (RMSNorm, rotary positions, SwiGLU).

    Attributes:
        norm, behind_norm: the norms before and behind the attention, [size] in fp32.
        qkv: [(heads + 2 kv_heads) dim, size].
        out: [size, heads dim].
        gate_up: [2 inner, size], the gate's rows first.
        down: [size, inner].
        scaling: factor of the attention's scores.
    """

    norm: Tensor
    behind_norm: Tensor
    qkv: Weights
    out: Weights
    gate_up: Weights
    down: Weights
    scaling: float

    def native(self) -> Layer:
        """Return the layer as the kernels read it; it must not outlive this object."""
        norms = (self.norm, self.behind_norm)
        assert all(one.is_contiguous() and one.dtype == torch.float32 for one in norms)
        weights = (self.qkv, self.out, self.gate_up, self.down)
        return Layer(
            *(one.data_ptr() for one in norms), *(one.native for one in weights), self.scaling
        )


class Layers:
    """A decoder's layers as the kernels read them.

    Args:
        layers: at least one.
        norm: the norm behind the last one, [size] in fp32.
        eps: epsilon of all norms.
        heads, kv_heads, dim: shape of the attention.
    """

    def __init__(
        self,
        layers: Sequence[LayerWeights],
        norm: Tensor,
        eps: float,
        heads: int,
        kv_heads: int,
        dim: int,
    ) -> None:
        self._layers, self._norm = layers, norm
        self._eps, self._shape = eps, (heads, kv_heads, dim)
        self._native = (Layer * len(layers))(*(one.native() for one in layers))

    def read(self, rows: int) -> bool:
        """Return whether so many tokens are for the kernels, and not for a matrix library."""
        return self._layers[0].qkv.has_native(rows)

    def __call__(self, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Pass) -> Tensor:
        """Run all layers and the norm behind them.

        Args:
            hidden: embeddings, [T, size] in fp32; overwritten.
            cos, sin: cosines and sines of each token's position, [T, ..., half] in fp32.
            attend: the pass, which says what the tokens read.

        Returns:
            [T, size] in fp32.
        """
        heads, kv_heads, dim = self._shape
        step = attend.step(heads // kv_heads)
        count, size = hidden.shape
        inner = self._layers[0].down.columns
        cos, sin = cos.contiguous(), sin.contiguous()
        assert hidden.is_contiguous() and count == step.tokens
        assert len(attend.caches) == len(self._layers)
        numbers = count * (size + 2 * (heads + kv_heads) * dim + 3 * inner)
        scratch, out = torch.empty(numbers, dtype=torch.float32), torch.empty_like(hidden)
        attend.kernels.decode(
            Decode(
                *(_place(self._native), _place(attend.caches.native), len(self._layers)),
                *(count, size, inner, heads, kv_heads, dim, cos.shape[-1]),
                *(cos.data_ptr(), sin.data_ptr(), step.slots, self._norm.data_ptr(), self._eps),
                *(attend.caches.kind, hidden.data_ptr(), scratch.data_ptr(), out.data_ptr()),
            ),
            step.units,
        )
        return out


def _place(array: ctypes.Array[Layer] | ctypes.Array[Cache]) -> int:
    return ctypes.addressof(array)
