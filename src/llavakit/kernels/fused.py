"""Two steps of a decoder's attention on a GPU, each as one operator.

Each is defined in torch, for any device, and is one Triton kernel on CUDA where Triton works. As
custom operators they are opaque to ``torch.compile``, which neither splits nor copies the arena,
and count as one operator each; Triton is looked for when the first CUDA tensor arrives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def rotate_and_store(
    mixed: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    heads: int,
) -> Tensor:
    """Rotate queries and keys by their positions' angles; store keys and values in the arena.

    Rotary positions over all channels (RoFormer, https://arxiv.org/abs/2104.09864) in Llama's
    order: channel c is paired with channel c + dim / 2. In torch it is computed in the type of
    ``mixed``, operation by operation, as the decoder does; in Triton in fp32, rounded once.

    Args:
        mixed: queries, keys and values of each token, [T, heads + 2 kv_heads, dim], contiguous.
        cos, sin: cosines and sines of each token's angles, [T, dim / 2] or [T, 1, dim / 2], in any
            float type.
        keys, values: one layer of the arena, [slots, kv_heads, dim], whose channels lie side by
            side, in any float type; rows ``slots`` are overwritten.
        slots: where each token belongs, [T] int64, each inside the arena (in Triton, one outside
            it is not written; in torch it is an error). Where several tokens have the same slot,
            any of them may remain.
        heads: number of query heads.

    Returns:
        The rotated queries, [T, heads, dim], contiguous, in the type of ``mixed``.
    """
    tokens, every, dim = mixed.shape
    if not mixed.is_contiguous() or every != heads + 2 * keys.shape[1]:
        raise ValueError(
            f"mixed is {mixed.shape}; it must be {heads} + 2 * {keys.shape[1]} contiguous heads"
        )
    if keys.shape[2] != dim or values.shape != keys.shape:
        raise ValueError(
            f"keys are {keys.shape} and values {values.shape}; both must have {dim} channels"
        )
    if keys.stride(-1) != 1 or values.stride(-1) != 1:
        raise ValueError("the channels of a head are not adjacent in the arena")
    for angles in (cos, sin):
        if angles.shape not in ((tokens, dim // 2), (tokens, 1, dim // 2)) or dim % 2:
            raise ValueError(f"angles are {angles.shape}; {tokens} tokens need {dim} / 2 of them")
    if slots.shape != (tokens,) or slots.dtype != torch.int64:
        raise ValueError(
            f"slots are {slots.shape} in {slots.dtype}; {tokens} tokens need as many in int64"
        )
    return _rotate_and_store(mixed, cos, sin, keys, values, slots, heads)  # type: ignore[no-any-return]


def merge_splits(out: Tensor, lse: Tensor, splits: Tensor) -> Tensor:
    """Merge the attention over several splits of what a token reads, in fp32.

    The last step of flash-decoding (https://crfm.stanford.edu/2023/10/12/flashdecoding.html):
    splits weigh as much as the sums of their exponentiated scores.

    Args:
        out: attention over each split alone, [N, heads, dim].
        lse: log of each split's sum of exponentiated scores, [heads, N] fp32; -inf is an empty
            split, which counts for nothing, whatever its row in ``out`` holds.
        splits: places in N of each token's splits, [T, P] int32 or int64, at least one; -1 where a
            token has fewer. (Others outside N count for nothing in Triton; in torch they
            are errors.)

    Returns:
        [T, heads, dim] in the type of ``out``; zeros where all splits are empty.
    """
    count, heads, _ = out.shape
    if lse.shape != (heads, count) or lse.dtype != torch.float32:
        raise ValueError(
            f"lse is {lse.shape} in {lse.dtype}; out {out.shape} needs [heads, N] in fp32"
        )
    if splits.dim() != 2 or not splits.shape[1] or splits.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"splits are {splits.shape} in {splits.dtype}; they must be [T, P] in int32 or int64"
        )
    return _merge_splits(out, lse, splits)  # type: ignore[no-any-return]


def computed_by(device: torch.device) -> str:
    """Return ``"triton"`` or ``"torch"``: what these operators run in, as far as is known yet."""
    return "triton" if device.type == "cuda" and _Fastest.triton else "torch"


def rotate_and_store_in_torch(
    mixed: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    heads: int,
) -> Tensor:
    """Define :func:`rotate_and_store` in plain torch, which gives all shapes."""
    shape = (len(mixed), 1, mixed.shape[-1] // 2)
    cos, sin = (angles.reshape(shape).to(mixed.dtype) for angles in (cos, sin))
    kept = keys.shape[1]
    query, key, value = torch.split(mixed, [heads, kept, kept], dim=1)
    keys.index_copy_(0, slots, rotate(key, cos, sin).to(keys.dtype))
    values.index_copy_(0, slots, value.to(values.dtype))
    return rotate(query, cos, sin)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [T, heads, dim] by each token's angles [T, 1, dim / 2]."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def merge_splits_in_torch(out: Tensor, lse: Tensor, splits: Tensor) -> Tensor:
    """Define :func:`merge_splits` in plain torch, which gives all shapes."""
    missing = splits < 0
    places = splits.clamp(min=0).long()
    scores = lse.t()[places]  # [T, P, heads]
    empty = missing[..., None] | (scores == -torch.inf)
    weights = scores.masked_fill(empty, -torch.inf).softmax(dim=1)
    # Softmax over nothing is NaN, and so may be a row that was never computed: 0 * NaN is NaN.
    weights = weights.masked_fill(empty, 0)
    rows = out[places].float().masked_fill(empty[..., None], 0)
    return (weights[..., None] * rows).sum(dim=1).to(out.dtype)


class _Fastest:
    """An operator in Triton; all of them in torch once Triton has failed.

    Args:
        name: name of the function in :mod:`llavakit.kernels.fused_triton`.
        in_torch: the same work.
    """

    triton = True

    def __init__(self, name: str, in_torch: Callable[..., Tensor]) -> None:
        self._name, self._in_torch = name, in_torch

    def __call__(self, *arguments: Tensor | int) -> Tensor:
        if _Fastest.triton:
            try:
                return self._in_triton(*arguments)
            except torch.OutOfMemoryError:
                raise
            # A missing or failing compiler raises many types of errors, and has written nothing
            # yet: the same arguments are good for torch.
            except Exception as error:
                _Fastest.triton = False
                # Triton has no build for some systems: that deserves no warning.
                missing = isinstance(error, ModuleNotFoundError)
                level = logging.INFO if missing else logging.WARNING
                log.log(level, "no Triton here; torch computes instead of it", exc_info=not missing)
        return self._in_torch(*arguments)

    def _in_triton(self, *arguments: Tensor | int) -> Tensor:
        from llavakit.kernels import fused_triton

        result: Tensor = getattr(fused_triton, self._name)(*arguments)
        return result


_rotate_and_store = torch.library.custom_op(
    "llavakit::rotate_and_store", rotate_and_store_in_torch, mutates_args=("keys", "values")
)
_merge_splits = torch.library.custom_op(
    "llavakit::merge_splits", merge_splits_in_torch, mutates_args=()
)
_rotate_and_store.register_kernel("cuda", _Fastest("rotate_and_store", rotate_and_store_in_torch))
_merge_splits.register_kernel("cuda", _Fastest("merge_splits", merge_splits_in_torch))


@_rotate_and_store.register_fake
def _rotated_shape(
    mixed: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    heads: int,
) -> Tensor:
    return mixed.new_empty((mixed.shape[0], heads, mixed.shape[2]))


@_merge_splits.register_fake
def _merged_shape(out: Tensor, lse: Tensor, splits: Tensor) -> Tensor:
    return out.new_empty((splits.shape[0], *out.shape[1:]))
