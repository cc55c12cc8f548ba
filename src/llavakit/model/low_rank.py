"""LoRA beside a decoder's weights, switched on for one forward pass and off for the next.

``y = W x + scale * B (A x)`` (Hu et al. 2021, https://arxiv.org/abs/2106.09685). Base weights are
shared with the decoder that runs without it: nothing is merged and nothing is copied.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llavakit.errors import CheckpointError
from llavakit.model.decoder import FusedDecoder
from llavakit.model.layer_decoder import Attend, Decoder, LayerDecoder


@dataclass(frozen=True, slots=True, eq=False)
class LowRankPair:
    """One layer's adapter.

    Attributes:
        down: A, [rank, columns].
        up: B with the scale in it, [rows, rank].
    """

    down: Tensor
    up: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRankPair:
        """Return it on a device, in a type."""
        return LowRankPair(self.down.to(device, dtype), self.up.to(device, dtype))


Pairs = Mapping[str, LowRankPair]
"""By the name of the layer within the language model: ``layers.0.self_attn.q_proj``."""

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GROUPS = (_QKV, ("self_attn.o_proj",), ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))


def adapted(decoder: Decoder, language_model: Any, pairs: Pairs) -> Decoder:
    """Return a decoder with an adapter in it; the given one stays as it is.

    Raises:
        CheckpointError: the model has no such layer, or one of another shape.
    """
    check_fit(language_model, pairs)
    if not pairs:
        return decoder
    if isinstance(decoder, FusedDecoder):
        return _adapted_fused(decoder, language_model, pairs)
    assert isinstance(decoder, LayerDecoder)
    return HookedDecoder(decoder, language_model, pairs)


def check_fit(language_model: Any, pairs: Pairs) -> None:
    """Refuse an adapter that does not fit, by the first layer that does not."""
    modules = dict(language_model.named_modules())
    for name, pair in pairs.items():
        layer = modules.get(name)
        if layer is None or not hasattr(layer, "in_features"):
            raise CheckpointError(
                f"The adapter has weights for {name}, which is no linear layer of the language "
                "model; name the model that it was trained on."
            )
        shape = (layer.out_features, layer.in_features)
        if (len(pair.up), pair.down.shape[1]) != shape:
            raise CheckpointError(
                f"The adapter's {name} is {[len(pair.up), pair.down.shape[1]]}, and the model's "
                f"{list(shape)}; name the model that it was trained on."
            )


class LowRank:
    """Weights and the adapters of the layers that were merged into them.

    Args:
        weight, bias: of the merged layers, as the decoder reads them.
        pairs: of each of the layers, or None.
        rows: of each of the layers.
    """

    def __init__(
        self,
        weight: Any,
        bias: Tensor | None,
        pairs: Sequence[LowRankPair | None],
        rows: Sequence[int],
    ) -> None:
        self._weight, self._bias = weight, bias
        self._down = torch.cat([pair.down for pair in pairs if pair is not None])
        self._ups: list[tuple[slice, slice, Tensor]] = []
        row = rank = 0
        for pair, count in zip(pairs, rows, strict=True):
            if pair is not None:
                width = len(pair.down)
                self._ups.append((slice(row, row + count), slice(rank, rank + width), pair.up))
                rank += width
            row += count

    def many(self, x: Tensor) -> Tensor:
        """Multiply: [T, columns] -> [T, rows]."""
        plain = isinstance(self._weight, Tensor)
        out = F.linear(x, self._weight, self._bias) if plain else self._weight.many(x)
        low = F.linear(x.to(self._down.dtype), self._down)
        for rows, ranks, up in self._ups:
            out[:, rows] += F.linear(low[:, ranks], up)
        return out


def _adapted_fused(decoder: FusedDecoder, language_model: Any, pairs: Pairs) -> FusedDecoder:
    layers = []
    for number, (layer, plain) in enumerate(
        zip(decoder.layers, language_model.layers, strict=True)
    ):
        norm, eps, qkv, qkv_bias, dim = layer.before
        out, out_bias, norm2, eps2, gate_up, gate_up_bias, down, down_bias = layer.behind
        weights = [(qkv, qkv_bias), (out, out_bias), (gate_up, gate_up_bias), (down, down_bias)]
        first, second, third, fourth = (
            _with_pairs(weight, bias, names, f"layers.{number}.", plain, pairs, norm)
            for (weight, bias), names in zip(weights, _GROUPS, strict=True)
        )
        twin = copy.copy(layer)
        twin.before = (norm, eps, *first, dim)
        twin.behind = (*second, norm2, eps2, *third, *fourth)
        twin.native = None
        layers.append(twin)
    return decoder.with_layers(layers)


def _with_pairs(
    weight: Any,
    bias: Tensor | None,
    names: Sequence[str],
    prefix: str,
    layer: Any,
    pairs: Pairs,
    like: Tensor,
) -> tuple[Any, Tensor | None]:
    """The weights as the decoder reads them, with the adapters of these layers in them."""
    found = [pairs.get(prefix + name) for name in names]
    if not any(found):
        return weight, bias
    rows = [int(layer.get_submodule(name).out_features) for name in names]
    there = [None if one is None else one.to(like.device, like.dtype) for one in found]
    return LowRank(weight, bias, there, rows), None


_on: ContextVar[object] = ContextVar("llavakit_adapter", default=None)


class HookedDecoder:
    """HF's own decoder, with an adapter added behind its linear layers.

    The hooks do nothing while another decoder runs the same layers.
    """

    def __init__(self, decoder: LayerDecoder, language_model: Any, pairs: Pairs) -> None:
        self._decoder = decoder
        modules = dict(language_model.named_modules())
        self._handles = [
            modules[name].register_forward_hook(self._hook(pair)) for name, pair in pairs.items()
        ]

    def __call__(self, embeddings: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        before = _on.set(self)
        try:
            return self._decoder(embeddings, positions, attend)
        finally:
            _on.reset(before)

    def _hook(self, pair: LowRankPair) -> Any:
        placed: list[LowRankPair] = []

        def add(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            if _on.get() is not self:
                return None
            if not placed:
                placed.append(pair.to(out.device, out.dtype))
            low = F.linear(inputs[0].to(out.device, out.dtype), placed[0].down)
            return out + F.linear(low, placed[0].up)

        return add
