"""Weights in 8 and 4 bits: how they are rounded, and how they lie in memory.

Groups of 32 values along a row share a scale in fp16, as in llama.cpp's q8_0 and q4_0 (8.5 and 4.5
bits a weight). Sixteen rows lie together so that one instruction serves them all (see
``cpu.cpp``). Pure torch; also the reference definition of what the compiled kernels compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from llavakit.kernels import huge_pages

if TYPE_CHECKING:
    from llavakit.kernels.native import Kernels

GROUP = 32
"""Values along a row that share a scale."""
PANEL = 16
"""Rows that lie together."""
BITS = (8, 4)
_ROWS_AT_ONCE = 4096
"""Rows that are packed at once, so that packing takes little memory beside the weights."""
_TRIED = (1.0, 0.94, 0.88, 0.82)
"""Shares of the largest value that a 4-bit scale may stand for; the best one for each group is
kept, because a smaller scale rounds the many small values more finely."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Quantised weights [rows, columns].

    Attributes:
        data: uint8, [panels, groups, bytes]: 512 bytes (8 bits) or 256 (4 bits) for 16 rows
            and 32 columns.
        scales: fp16, [panels, groups, 16].
        rows, columns: the matrix; panels and groups are filled up with zeros.
        bits: 8 or 4.
    """

    data: Tensor
    scales: Tensor
    rows: int
    columns: int
    bits: int

    @property
    def nbytes(self) -> int:
        """Bytes of data and scales."""
        return self.data.nbytes + self.scales.nbytes


def pack(weight: Tensor, bits: int, compiled: Kernels | None = None) -> Packed:
    """Round weights [rows, columns] of any float type to 8 or 4 bits.

    Args:
        weight: the weights, in main memory.
        bits: 8 or 4.
        compiled: computes the same several times as fast, bit for bit.

    Raises:
        ValueError: a weight is not finite, or larger than a scale in fp16 can express:
            its whole group would be rounded to nonsense.
    """
    assert bits in BITS
    rows, columns = weight.shape
    panels, groups = -(-rows // PANEL), -(-columns // GROUP)
    # A mapping of its own: among what is allocated and freed meanwhile it would leave holes, which
    # took as much memory again.
    data = huge_pages.empty((panels, groups, PANEL * GROUP * bits // 8), torch.uint8)
    scales = torch.empty((panels, groups, PANEL), dtype=torch.float16)
    for first in range(0, rows, _ROWS_AT_ONCE):
        part = weight[first : first + _ROWS_AT_ONCE]
        part = part if part.dtype in (torch.float32, torch.bfloat16) else part.float()
        if not bool(torch.isfinite(part).all()):
            raise ValueError(f"weights of rows {first} to {first + len(part)} are not finite")
        place = slice(first // PANEL, first // PANEL - (-len(part) // PANEL))
        if compiled is None:
            data[place], scales[place] = _packed_rows(part.float(), bits)
        else:
            compiled.pack(part.detach(), bits, data[place], scales[place])
        if not bool(torch.isfinite(scales[place]).all()):
            raise ValueError(f"weights of rows {first} to {first + len(part)} are too large")
    return Packed(data, scales, rows, columns, bits)


def _packed_rows(part: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    rows, columns = part.shape
    part = F.pad(part, (0, -columns % GROUP, 0, -rows % PANEL))
    grouped = part.view(len(part), -1, GROUP)
    values, scales = _rounded8(grouped) if bits == 8 else _rounded4(grouped)
    panels, groups = len(part) // PANEL, grouped.shape[1]
    scales = scales.view(panels, PANEL, groups).transpose(1, 2)
    # [panels, 16 rows, groups, 8 chunks, 4 values] -> chunks of 4 values of all 16 rows.
    chunks = values.view(panels, PANEL, groups, 8, 4).permute(0, 2, 3, 1, 4)
    if bits == 8:
        return chunks.reshape(panels, groups, -1).view(torch.uint8), scales
    unsigned = (chunks + 8).to(torch.uint8)
    return (unsigned[:, :, :4] | unsigned[:, :, 4:] << 4).reshape(panels, groups, -1), scales


def _scaled(grouped: Tensor, scale: Tensor, least: int, most: int) -> Tensor:
    """Values in steps of ``scale`` [rows, groups]; zeros where that is zero."""
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
    return (grouped * inverse[..., None]).round_().clamp_(least, most)


def _half(scale: Tensor) -> Tensor:
    """Round a scale as it will be stored, so that values are rounded by the stored scale."""
    return scale.half().float()


def _rounded8(grouped: Tensor) -> tuple[Tensor, Tensor]:
    scale = _half(grouped.abs().amax(dim=-1) / 127)
    return _scaled(grouped, scale, -127, 127).to(torch.int8), scale.half()


def _rounded4(grouped: Tensor) -> tuple[Tensor, Tensor]:
    # The value of largest magnitude becomes -8, the one step that only one side has.
    place = grouped.abs().argmax(dim=-1, keepdim=True)
    extreme = grouped.gather(-1, place)[..., 0]
    best = scales = None
    least = torch.full_like(extreme, float("inf"))
    for share in _TRIED:
        scale = _half(extreme * (share / -8))
        values = _scaled(grouped, scale, -8, 7)
        error = (values * scale[..., None] - grouped).square_().sum(dim=-1)
        better = error < least
        if best is None or scales is None:
            best, scales = values, scale
        else:
            best = torch.where(better[..., None], values, best)
            scales = torch.where(better, scale, scales)
        least = torch.where(better, error, least)
    assert best is not None and scales is not None
    return best.to(torch.int8), scales.half()


def unpack(packed: Packed, first: int = 0, last: int | None = None) -> Tensor:
    """Unpack rows ``first`` (a multiple of 16) to ``last``: [rows, columns] in fp32."""
    last = packed.rows if last is None else last
    assert first % PANEL == 0
    place = slice(first // PANEL, -(-last // PANEL))
    data, scales = packed.data[place], packed.scales[place].float()
    panels, groups = scales.shape[:2]
    if packed.bits == 8:
        values = data.view(torch.int8).view(panels, groups, 8, PANEL, 4)
    else:
        both = data.view(panels, groups, 4, PANEL, 4)
        values = torch.cat((both & 15, both >> 4), dim=2).to(torch.int8) - 8
    numbers = values.permute(0, 3, 1, 2, 4).reshape(panels, PANEL, groups, GROUP)
    numbers = numbers * scales.transpose(1, 2)[..., None]
    return numbers.reshape(panels * PANEL, -1)[: last - first, : packed.columns]


def joined(parts: list[Packed]) -> Packed:
    """Join the rows of several matrices of equal columns and bits, bit for bit."""
    first = parts[0]
    rows = sum(part.rows for part in parts)
    panels = -(-rows // PANEL)
    data = huge_pages.empty((panels, *first.data.shape[1:]), torch.uint8)
    scales = torch.empty((panels, *first.scales.shape[1:]), dtype=torch.float16)
    if all(part.rows % PANEL == 0 for part in parts):
        torch.cat([part.data for part in parts], out=data)
        torch.cat([part.scales for part in parts], out=scales)
    else:
        data.copy_(_by_panels(torch.cat([_by_rows(part.data, part.rows) for part in parts])))
        scales.copy_(_by_panels(torch.cat([_by_rows(part.scales, part.rows) for part in parts])))
    return Packed(data, scales, rows, first.columns, first.bits)


def _by_rows(stored: Tensor, rows: int) -> Tensor:
    """[panels, groups, chunks * 16 * n] -> [rows, groups, chunks, n]; scales have one chunk."""
    panels, groups, length = stored.shape
    wide = 4 if stored.dtype == torch.uint8 else 1
    turned = stored.view(panels, groups, length // (PANEL * wide), PANEL, wide)
    return turned.permute(0, 3, 1, 2, 4).reshape(panels * PANEL, groups, -1, wide)[:rows]


def _by_panels(rows: Tensor) -> Tensor:
    count, groups, chunks, wide = rows.shape
    padded = F.pad(rows, (0, 0, 0, 0, 0, 0, 0, -count % PANEL))
    turned = padded.view(-1, PANEL, groups, chunks, wide).permute(0, 2, 3, 1, 4)
    return turned.reshape(len(padded) // PANEL, groups, -1).contiguous()
