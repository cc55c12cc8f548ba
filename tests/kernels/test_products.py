from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.kernels.native import MOST_ROWS, Kernels, kernels
from llavakit.kernels.packing import pack, unpack
from llavakit.kernels.products import Weights

KINDS = ["fp32", "bf16", "8bit", "4bit"]


def made(kind: str, rows: int, columns: int, bias: bool = True) -> tuple[Weights, torch.Tensor]:
    """Weights, and the numbers that they stand for."""
    noise = torch.Generator().manual_seed(rows * 1000 + columns)
    weight = torch.randn(rows, columns, generator=noise)
    shift = torch.randn(rows, generator=noise) if bias else None
    if kind == "fp32":
        return Weights(weight, shift), weight
    if kind == "bf16":
        return Weights(weight.bfloat16(), shift), weight.bfloat16().float()
    packed = pack(weight, int(kind[0]))
    return Weights(packed, shift), unpack(packed)


def relative(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 70),
    columns=st.integers(1, 200),
    count=st.integers(1, MOST_ROWS + 3),
    bias=st.booleans(),
)
def test_product_is_that_of_the_numbers_that_the_weights_stand_for(
    kind, rows, columns, count, bias
):
    weights, numbers = made(kind, rows, columns, bias)
    x = torch.randn(count, columns, generator=torch.Generator().manual_seed(count))
    shift = None if weights.bias is None else weights.bias.double()
    right = F.linear(x.double(), numbers.double(), shift)
    # Rows meet quantised weights in int8 of their own: half a step of 127 in a group.
    coarse = kind in ("8bit", "4bit") and kernels() is not None
    step = 0.51 / 127 if coarse else 1e-6
    most = x.abs().amax(dim=1, keepdim=True) * numbers.abs().sum(dim=1) + 1
    assert bool(((weights(x) - right).abs() <= step * most).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_bit_for_bit_whatever_is_computed_beside_it(kind, library: Kernels):
    weights, _ = made(kind, 100, 330)
    x = torch.randn(MOST_ROWS, 330, generator=torch.Generator().manual_seed(1))
    together = weights(x)
    for count in (1, 2, 3, 5, 16):
        for first in (0, 7):
            part = slice(first, first + count)
            assert torch.equal(weights(x[part]), together[part])
    if kind in ("8bit", "4bit"):
        assert torch.equal(weights(torch.cat((x, x, x)))[:MOST_ROWS], together)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stays_so_and_harms_no_other(kind, value, library: Kernels):
    weights, _ = made(kind, 40, 64)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(2))
    clean = weights(x)
    x[1, 50] = value
    found = weights(x)
    assert not bool(torch.isfinite(found[1]).any())
    others = [0, 2, 3]
    assert torch.equal(found[others], clean[others])


@pytest.mark.parametrize("kind", KINDS)
def test_one_and_two_threads_give_the_same_bits(kind, library: Kernels):
    weights, _ = made(kind, 100, 330)
    x = torch.randn(3, 330, generator=torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(weights(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_compiler_the_product_is_the_same_but_for_rounding(kind, in_torch: None):
    weights, numbers = made(kind, 40, 96)
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(4))
    assert weights.bias is not None
    assert kernels() is None
    right = F.linear(x.double(), numbers.double(), weights.bias.double())
    assert relative(weights(x), right) < 1e-5


def test_large_matrices_are_unpacked_in_blocks_without_a_compiler(monkeypatch, in_torch: None):
    from llavakit.kernels import products

    monkeypatch.setattr(products, "_BLOCK_BYTES", 4 * 96 * 33)
    weights, numbers = made("4bit", 100, 96)
    x = torch.randn(50, 96, generator=torch.Generator().manual_seed(5))
    assert weights.bias is not None
    assert (
        relative(weights(x), F.linear(x.double(), numbers.double(), weights.bias.double())) < 1e-5
    )
