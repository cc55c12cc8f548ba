"""A trial of compiled kernels: their numbers beside plain torch in fp64, before they are used."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llavakit.kernels import packing
from llavakit.kernels.native import INT4, INT8, Kernels, Matrix, matrix

FP32_ERROR = 1e-5
"""Relative to the largest number; right kernels stay below a tenth of it."""


def error_of(kernels: Kernels) -> str | None:
    """What is wrong with the kernels on this machine, or None."""
    noise = torch.Generator().manual_seed(0)
    try:
        for trial in (_products, _packed_products, _halves, _attention):
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


def _halves(kernels: Kernels, noise: torch.Generator) -> float:
    """A layer's two halves."""
    size, inner, heads, dim, count = 48, 70, 3, 16, 3

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise)

    hidden, norm, angles = some(count, size), some(size), some(count, dim // 2)
    cos, sin = angles.cos(), angles.sin()
    qkv = some(heads * dim, size)
    found = kernels.enter(hidden, norm, 1e-5, matrix(qkv), cos, sin, 2, dim)
    wide = hidden.double()
    normed = F.rms_norm(wide, (size,), norm.double(), 1e-5)
    mixed = F.linear(normed, qkv.double()).view(count, heads, dim)
    first, second = mixed[:, :2].chunk(2, dim=-1)
    c, s = cos.double()[:, None], sin.double()[:, None]
    turned = torch.cat((first * c - second * s, second * c + first * s), dim=-1)
    right = torch.cat((turned, mixed[:, 2:]), dim=1).flatten(1)
    worst = _deviation(found, right)
    seen, out, gate_up, down = (
        some(count, 32),
        some(size, 32),
        some(2 * inner, size),
        some(size, inner),
    )
    found = kernels.leave(hidden, seen, matrix(out), norm, 1e-5, matrix(gate_up), matrix(down))
    middle = wide + F.linear(seen.double(), out.double())
    gate, up = F.linear(F.rms_norm(middle, (size,), norm.double(), 1e-5), gate_up.double()).chunk(
        2, dim=-1
    )
    right = middle + F.linear(F.silu(gate) * up, down.double())
    return max(worst, _deviation(found, right))


def _attention(kernels: Kernels, noise: torch.Generator) -> float:
    from llavakit.kernels.attention import Step, attend

    worst = 0.0
    for heads, kv_heads, dim in ((4, 4, 64), (8, 2, 40)):

        def some(*shape: int) -> Tensor:
            return torch.randn(shape, generator=noise)

        keys, values = some(kv_heads, 400, dim), some(kv_heads, 400, dim)
        # Two that share a stretch, one alone, and a prefill of five tokens behind a stretch.
        rows = [(((10, 130),), 200, 5, 1), (((10, 130),), 210, 0, 1), ((), 220, 70, 1)]
        rows.append((((150, 9), (10, 66)), 300, 3, 5))
        step = Step(rows, heads // kv_heads)
        total = step.tokens
        query, key, value = (
            some(total, heads, dim),
            some(total, kv_heads, dim),
            some(total, kv_heads, dim),
        )
        out = attend(kernels, step, query, key, value, keys, values, 0.3)
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
