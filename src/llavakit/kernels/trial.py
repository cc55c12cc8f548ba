"""A trial of compiled kernels: their numbers beside plain torch in fp64, before they are used."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llavakit.kernels import packing
from llavakit.kernels.attention import Caches, Pass
from llavakit.kernels.decoding import Layers, LayerWeights
from llavakit.kernels.native import INT4, INT8, Kernels, Matrix, matrix
from llavakit.kernels.products import Weights

FP32_ERROR = 1e-5
"""Relative to the largest number; correct kernels stay below a tenth of it."""


def error_of(kernels: Kernels) -> str | None:
    """Return what is wrong with the kernels on this machine, or None."""
    noise = torch.Generator().manual_seed(0)
    try:
        for trial in (_products, _packed_products, _attention, _decoder):
            worst = trial(kernels, noise)
            if not worst < FP32_ERROR:
                return f"{trial.__name__.strip('_').replace('_', ' ')}: error {worst:.1e}"
    except Exception as error:  # a call that fails is as good a reason as a wrong number
        return f"{type(error).__name__}: {error}"
    return None


def _deviation(found: Tensor, right: Tensor) -> float:
    error = float((found.double() - right).abs().max() / right.abs().max())
    return error if error == error else float("inf")


def _products(kernels: Kernels, noise: torch.Generator) -> float:
    worst = 0.0
    for rows, columns in ((70, 96), (33, 1100), (5, 7)):
        weight, bias = torch.randn(rows, columns, generator=noise), torch.randn(rows)
        for kind in (torch.float32, torch.bfloat16):
            stored = weight.to(kind)
            for count in (1, 2, 3, 5, 16):
                x = torch.randn(count, columns, generator=noise)
                right = F.linear(x.double(), stored.double(), bias.double())
                found = kernels.linear(x, matrix(stored, bias))
                worst = max(worst, _deviation(found, right))
    return worst


def _packed_products(kernels: Kernels, noise: torch.Generator) -> float:
    worst = 0.0
    for bits in packing.BITS:
        weight = torch.randn(40, 100, generator=noise)
        packed = packing.pack(weight, bits)
        again = packing.pack(weight, bits, kernels)
        worst = max(worst, _deviation(packing.unpack(again), packing.unpack(packed).double()))
        view = Matrix(
            *(packed.data.data_ptr(), packed.scales.data_ptr(), None, 40, 100),
            *(packed.scales.shape[1], INT8 if bits == 8 else INT4),
        )
        numbers = packing.unpack(packed).double()
        for count in (1, 4, 7):
            # Rows that int8 holds exactly: what is left is the kernel's own error.
            x = torch.randint(-127, 128, (count, 100), generator=noise).float()
            x[:, ::32] = 127
            right = F.linear(x.double(), numbers)
            worst = max(worst, _deviation(kernels.linear(x, view), right))
    return worst


def _decoder(kernels: Kernels, noise: torch.Generator) -> float:
    """Two layers over three tokens: two of one prompt, and one of another."""
    size, inner, heads, kv_heads, dim = 48, 70, 4, 2, 16

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise)

    row = (heads + 2 * kv_heads) * dim
    layers = [
        LayerWeights(
            norm=some(size),
            behind_norm=some(size),
            qkv=Weights(some(row, size), some(row)),
            out=Weights(some(size, heads * dim)),
            gate_up=Weights(some(2 * inner, size)),
            down=Weights(some(size, inner)),
            scaling=0.3,
        )
        for _ in range(2)
    ]
    norm, hidden, angles = some(size), some(3, size), some(3, dim // 2)
    cos, sin = angles.cos(), angles.sin()
    stores = [some(kv_heads, 20, dim) for _ in range(4)]
    keys, values = stores[:2], stores[2:]
    attend = Pass(kernels, Caches(keys, values), [((), 3, 0, 2), ((), 9, 0, 1)])
    found = Layers(layers, norm, 1e-5, heads, kv_heads, dim)(hidden.clone(), cos, sin, attend)
    right = hidden.double()
    for layer in layers:
        right = _layer(right, layer, cos.double()[:, None], sin.double()[:, None], (heads, dim))
    return _deviation(found, F.rms_norm(right, (size,), norm.double(), 1e-5))


def _layer(
    hidden: Tensor, layer: LayerWeights, cos: Tensor, sin: Tensor, shape: tuple[int, int]
) -> Tensor:
    """A layer in fp64; the second token sees the first, the third itself alone."""
    heads, dim = shape
    mixed = _product(_normed(hidden, layer.norm), layer.qkv).view(3, -1, dim)
    kv_heads = (mixed.shape[1] - heads) // 2
    first, second = mixed[:, : heads + kv_heads].chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    query = turned[:, :heads]
    key, value = (
        one.repeat_interleave(heads // kv_heads, dim=1)
        for one in (turned[:, heads:], mixed[:, heads + kv_heads :])
    )
    scores = torch.einsum("thd,shd->hts", query, key) * layer.scaling
    hidden_from = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 1, 0]], dtype=torch.bool)
    weights = scores.masked_fill(hidden_from, float("-inf")).softmax(dim=-1)
    seen = torch.einsum("hts,shd->thd", weights, value).flatten(1)
    hidden = hidden + _product(seen, layer.out)
    gate, up = _product(_normed(hidden, layer.behind_norm), layer.gate_up).chunk(2, dim=-1)
    return hidden + _product(F.silu(gate) * up, layer.down)


def _normed(hidden: Tensor, norm: Tensor) -> Tensor:
    return F.rms_norm(hidden, hidden.shape[-1:], norm.double(), 1e-5)


def _product(x: Tensor, weights: Weights) -> Tensor:
    assert isinstance(weights.data, Tensor)
    bias = None if weights.bias is None else weights.bias.double()
    return F.linear(x, weights.data.double(), bias)


def _attention(kernels: Kernels, noise: torch.Generator) -> float:
    worst = 0.0
    for heads, kv_heads, dim in ((4, 4, 64), (8, 2, 40)):

        def some(*shape: int) -> Tensor:
            return torch.randn(shape, generator=noise)

        keys, values = some(kv_heads, 400, dim), some(kv_heads, 400, dim)
        # Two that share a stretch, one alone, and a prefill of five tokens behind a stretch.
        rows = [(((10, 130),), 200, 5, 1), (((10, 130),), 210, 0, 1), ((), 220, 70, 1)]
        rows.append((((150, 9), (10, 66)), 300, 3, 5))
        attend = Pass(kernels, Caches([keys], [values]), rows)
        total = sum(row[3] for row in rows)
        query, key, value = (
            some(total, heads, dim),
            some(total, kv_heads, dim),
            some(total, kv_heads, dim),
        )
        out = attend(0, query, key, value, 0.3)
        place = 0
        for prefix, slot, start, count in rows:
            seen = [s for a, n in prefix for s in range(a, a + n)]
            for number in range(count):
                slots = [*seen, *range(slot, slot + start + number + 1)]
                k = keys[:, slots].double().repeat_interleave(heads // kv_heads, dim=0)
                v = values[:, slots].double().repeat_interleave(heads // kv_heads, dim=0)
                stored = torch.stack((keys[:, slots[-1]], values[:, slots[-1]])).double()
                given = torch.stack((key[place], value[place])).double()
                worst = max(worst, _deviation(stored, given))
                weights = torch.softmax((k @ query[place].double()[..., None])[..., 0] * 0.3, -1)
                right = (weights[:, None] @ v)[:, 0]
                worst = max(worst, _deviation(out[place], right))
                place += 1
    return worst
