from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.kernels.packing import GROUP, Packed, joined, pack, unpack

SHAPES = st.tuples(st.integers(1, 50), st.integers(1, 100))


def random(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, bits=st.sampled_from([8, 4]), seed=st.integers(0, 99))
def test_no_weight_is_further_from_itself_than_half_a_step_of_its_group(shape, bits, seed):
    weight = random(*shape, seed=seed)
    found = unpack(pack(weight, bits))
    assert found.shape == weight.shape
    padded = torch.nn.functional.pad(weight, (0, -shape[1] % GROUP))
    largest = padded.view(shape[0], -1, GROUP).abs().amax(dim=-1).repeat_interleave(GROUP, dim=1)
    step = largest[:, : shape[1]] / (127 if bits == 8 else 8)
    # 4 bits have no +8, and their scale may stand for less than the largest value.
    allowed = 0.51 if bits == 8 else 2.0
    assert bool(((found - weight).abs() <= allowed * step + 1e-6).all())


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, bits=st.sampled_from([8, 4]), at=st.integers(0, 3))
def test_any_stretch_of_rows_is_unpacked_as_in_the_whole(shape, bits, at):
    packed = pack(random(*shape), bits)
    first = min(16 * at, (shape[0] - 1) // 16 * 16)
    assert torch.equal(unpack(packed, first), unpack(packed)[first:])


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    columns=st.integers(1, 80),
    bits=st.sampled_from([8, 4]),
)
def test_matrices_are_joined_bit_for_bit_whatever_their_heights(rows, columns, bits):
    parts = [pack(random(count, columns, seed=n), bits) for n, count in enumerate(rows)]
    whole = joined(parts)
    assert (whole.rows, whole.columns) == (sum(rows), columns)
    assert torch.equal(unpack(whole), torch.cat([unpack(part) for part in parts]))


def test_weights_take_four_and_a_half_or_eight_and_a_half_bits():
    weight = random(64, 128)
    assert pack(weight, 4).nbytes * 8 / weight.numel() == 4.5
    assert pack(weight, 8).nbytes * 8 / weight.numel() == 8.5


def test_four_bit_scales_that_are_searched_lose_less_than_those_of_the_largest_value():
    weight = random(64, 256)
    grouped = weight.view(64, -1, GROUP)
    place = grouped.abs().argmax(dim=-1, keepdim=True)
    scale = grouped.gather(-1, place) / -8
    plain = (grouped / scale).round().clamp(-8, 7) * scale
    searched = unpack(pack(weight, 4)).view_as(grouped)
    assert (searched - grouped).norm() < 0.97 * (plain - grouped).norm()


@pytest.mark.parametrize("bits", [8, 4])
def test_groups_of_zeros_stay_zeros_and_tiny_weights_stay_finite(bits):
    weight = torch.zeros(3, 64)
    weight[1, 5] = 1e-30
    found = unpack(pack(weight, bits))
    assert bool(torch.isfinite(found).all()) and float(found.abs().max()) < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    weight = random(20, 40)
    weight[17, 3] = value
    with pytest.raises(ValueError, match="rows 0 to 20 are not finite"):
        pack(weight, 8)


def test_weights_beyond_fp16_are_refused_and_not_packed_as_infinity():
    with pytest.raises(ValueError, match="too large"):
        pack(torch.full((2, 32), 1e9), 8)


def test_packed_weights_are_values():
    assert isinstance(pack(random(2, 2), 4), Packed)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compiled_packing_is_the_same_bit_for_bit(bits, dtype, library):
    weight = random(70, 333)
    weight[0], weight[1], weight[2, :9] = 0, weight[1] * 1e-5, 1e-6
    weight = weight.to(dtype)
    plain, compiled = pack(weight, bits), pack(weight, bits, library)
    assert torch.equal(plain.data, compiled.data) and torch.equal(plain.scales, compiled.scales)


def test_compiled_packing_refuses_what_is_not_finite_or_too_large(library):
    with pytest.raises(ValueError, match="not finite"):
        pack(torch.full((2, 32), float("nan")), 4, library)
    with pytest.raises(ValueError, match="too large"):
        pack(torch.full((2, 32), 1e9), 8, library)
