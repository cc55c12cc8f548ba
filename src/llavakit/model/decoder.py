"""The language model's decoder over packed tokens, in fewer and larger operations.

The same mathematics as the HF modules of ``language_models.FUSED``: RMSNorm, rotary positions
(https://arxiv.org/abs/2104.09864), grouped-query attention, SwiGLU. Query, key and value
weights are one matrix, gate and up another, and cosines are looked up in a table; small
batches are bound by the number of operations, so this is where decoding gets its speed.
Models that do not fit (quantised by bitsandbytes, adapted, other families) run layer by layer
through HF (:mod:`llavakit.model.layer_decoder`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llavakit.kernels import huge_pages
from llavakit.kernels.attention import Pass
from llavakit.kernels.decoding import Layers, LayerWeights
from llavakit.kernels.fused import rotate
from llavakit.kernels.native import KINDS
from llavakit.kernels.packing import joined
from llavakit.kernels.products import Weights
from llavakit.model.language_models import FUSED
from llavakit.model.layer_decoder import Attend, Decoder, LayerDecoder
from llavakit.model.packed import PackedLinear


@runtime_checkable
class TurningAttend(Protocol):
    """An :data:`Attend` that can also turn queries and keys to their places itself."""

    def turned(
        self, layer: int, mixed: Tensor, cos: Tensor, sin: Tensor, heads: int, scaling: float
    ) -> Tensor:
        """Queries, keys and values [T, heads + 2 kv_heads, dim] -> [T, heads, dim]."""


STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def decoder_of(language_model: Any) -> Decoder:
    """The fastest decoder that fits the language model (``LlamaModel`` and the like)."""
    return FusedDecoder(language_model) if _fits(language_model) else LayerDecoder(language_model)


def _fits(model: Any) -> bool:
    config = model.config
    if config.model_type not in FUSED or config.hidden_act not in ("silu", "swish"):
        return False
    # A subclass may compute something else, and so may a rotary embedding of a part of a head.
    if not type(model).__module__.startswith(f"transformers.models.{config.model_type}."):
        return False
    rotary = model.rotary_emb
    if getattr(rotary, "rope_type", "") not in STATIC_ROPE:
        return False
    if 2 * len(rotary.inv_freq) != int(model.layers[0].self_attn.head_dim):
        return False
    layers = model.layers[: config.num_hidden_layers]
    linear = [
        part
        for layer in layers
        for part in (
            *(getattr(layer.self_attn, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
            *(getattr(layer.mlp, name) for name in ("gate_proj", "up_proj", "down_proj")),
        )
    ]
    # Layers quantised by others and adapted ones are subclasses or wrappers; parts on several
    # devices cannot be put together, and accelerate's hooks, which move tensors between them,
    # must be called.
    return (
        len({type(part) for part in linear}) == 1
        and (
            type(linear[0]) is nn.Linear
            # Packed layers are merged for the kernels, which know no fp16.
            or (type(linear[0]) is PackedLinear and model.norm.weight.dtype in KINDS)
        )
        and len({part.weight.device for part in linear}) == 1
        and not any(hasattr(module, "_hf_hook") for module in model.modules())
    )


def device_of(module: Any) -> torch.device:
    """Where a module computes, also if accelerate keeps its weights elsewhere (``device_map``)."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):  # several may be put behind each other
            place = getattr(one, "execution_device", None)
            if place is not None:
                return (
                    torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
                )
    device: torch.device = next(module.parameters()).device
    return device


class FusedDecoder:
    """Merged weights, one table of rotary cosines; the HF modules keep views of the weights.

    On a processor all layers are one compiled call where few tokens are computed, and activations
    are fp32 whatever the weights are, unless it computes in bf16 itself.

    Attributes:
        heads: of the queries.
        layers: in their order.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        self.heads = int(config.num_attention_heads)
        self.layers = [_FusedLayer(layer, config) for layer in model.layers]
        self._norm = model.norm.weight
        self._eps = float(config.rms_norm_eps)
        native = [layer.native for layer in self.layers if layer.native is not None]
        self._wide = bool(native)
        if self._wide:
            self._norm = self._norm.detach().float()
        self._cos, self._sin = self._table(model)
        self._native = (
            Layers(native, self._norm, self._eps, *self.layers[0].shape) if native else None
        )
        self._enter, self._leave = _enter, _leave

    def _table(self, model: Any) -> tuple[Tensor, Tensor]:
        """Cosines and sines of each place: [places, 1, dim / 2]."""
        positions = torch.arange(model.config.max_position_embeddings, device=self._norm.device)
        like = model.norm.weight[None, None]
        with torch.inference_mode():
            cos, sin = model.rotary_emb(like, position_ids=positions[None])
        half = cos.shape[-1] // 2  # both halves of the channels turn by the same angles
        cos, sin = cos[0, :, None, :half].clone(), sin[0, :, None, :half].clone()
        return (cos.float(), sin.float()) if self._wide else (cos, sin)

    def __call__(self, embeddings: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        cos, sin = self._cos[positions], self._sin[positions]
        if self._native and isinstance(attend, Pass) and self._native.read(len(embeddings)):
            # They compute in place, and the embeddings are the caller's.
            hidden = embeddings.float().contiguous()
            hidden = hidden.clone() if hidden is embeddings else hidden
            return self._native(hidden, cos, sin, attend).to(embeddings.dtype)
        hidden = embeddings.float() if self._wide else embeddings
        turning = attend if isinstance(attend, TurningAttend) else None
        for number, layer in enumerate(self.layers):
            mixed = self._enter(hidden, *layer.before)
            if turning is not None:
                seen = turning.turned(number, mixed, cos, sin, self.heads, layer.scaling)
            else:
                seen = attend(number, *_turned(mixed, cos, sin, layer.shape), layer.scaling)
            hidden = self._leave(hidden, seen, *layer.behind)
        normed = F.rms_norm(hidden, (hidden.shape[-1],), self._norm, self._eps)
        return normed.to(embeddings.dtype)

    @property
    def matrices(self) -> list[tuple[Weights, ...]]:
        """Each layer's weights, where compiled kernels read them."""
        native = [layer.native for layer in self.layers if layer.native is not None]
        return [(one.qkv, one.out, one.gate_up, one.down) for one in native]

    def with_layers(self, layers: Sequence[_FusedLayer]) -> FusedDecoder:
        """The same decoder with other layers, which torch computes one after the other."""
        twin = copy.copy(self)
        twin.layers, twin._native = list(layers), None
        return twin

    def compiled(self, compile: Callable[[Any], Any]) -> FusedDecoder:
        """The same decoder, weights shared, with both halves of a layer compiled.

        Halves and not the whole: all layers are one piece of code with other weights, so that
        a batch size is compiled in seconds, however deep the model is, and a compiler never
        sees the arena, which it might copy.

        Args:
            compile: ``torch.compile`` with its options.
        """
        twin = copy.copy(self)
        twin._enter, twin._leave = compile(_enter), compile(_leave)
        twin._native = None
        return twin


class _FusedLayer:
    """One decoder layer: what its halves before and behind the attention read.

    Attributes:
        shape: heads, key heads, channels of a head.
        native: the same for the compiled kernels; None on other devices.
    """

    def __init__(self, layer: Any, config: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        eps = float(config.rms_norm_eps)
        self.shape = (
            int(config.num_attention_heads),
            int(config.num_key_value_heads),
            int(attention.head_dim),
        )
        parts = (
            (attention.q_proj, attention.k_proj, attention.v_proj),
            (attention.o_proj,),
            (mlp.gate_proj, mlp.up_proj),
            (mlp.down_proj,),
        )
        norms = (layer.input_layernorm.weight, layer.post_attention_layernorm.weight)
        self.scaling = float(attention.scaling)
        self.native: LayerWeights | None = None
        pairs: list[tuple[Any, Tensor | None]]
        if norms[0].device.type == "cpu" and norms[0].dtype in KINDS:
            norms = (norms[0].detach().float(), norms[1].detach().float())
            weights = [_weights(*one) for one in parts]
            qkv, out, gate_up, down = weights
            self.native = LayerWeights(*norms, qkv, out, gate_up, down, self.scaling)
            pairs = [_for_torch(one) for one in weights]
        else:
            pairs = [_merge(*one) for one in parts]
        first, second, third, fourth = pairs
        self.before = (norms[0], eps, *first, self.shape[2])
        self.behind = (*second, norms[1], eps, *third, *fourth)


def _weights(*parts: Any) -> Weights:
    """One matrix of several layers; the modules keep views of it, or give theirs up."""
    if isinstance(parts[0], PackedLinear):
        packed = joined([part.packed for part in parts]) if len(parts) > 1 else parts[0].packed
        bias = None
        if parts[0].bias is not None:
            bias = torch.cat([part.bias.detach() for part in parts])
        if len(parts) > 1:
            for part in parts:
                part.give_up()
        return Weights(packed, bias)
    weight, bias = _merge(*parts)
    return Weights(weight, bias)


def _for_torch(weights: Weights) -> tuple[Any, Tensor | None]:
    """What the halves in torch read: plain fp32 as it is, everything else by its own product."""
    if isinstance(weights.data, Tensor) and weights.data.dtype == torch.float32:
        return weights.data, weights.bias
    return weights, None


def _enter(
    hidden: Tensor, norm: Tensor, eps: float, weight: Any, bias: Tensor | None, dim: int
) -> Tensor:
    """Queries, keys and values, [T, heads + 2 kv_heads, dim]."""
    normed = F.rms_norm(hidden, hidden.shape[-1:], norm, eps)
    return _product(normed, weight, bias).view(len(hidden), -1, dim)


def _turned(
    mixed: Tensor, cos: Tensor, sin: Tensor, shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys turned to their places, and values: [T, heads or kv_heads, dim]."""
    heads, kv_heads, _ = shape
    turned = rotate(mixed[:, : heads + kv_heads], cos, sin)
    return turned[:, :heads], turned[:, heads:], mixed[:, heads + kv_heads :]


def _leave(
    hidden: Tensor,
    seen: Tensor,
    out: Any,
    out_bias: Tensor | None,
    norm: Tensor,
    eps: float,
    gate_up: Any,
    gate_up_bias: Tensor | None,
    down: Any,
    down_bias: Tensor | None,
) -> Tensor:
    """What the layer adds to the hidden states: the attention's result and the SwiGLU's."""
    hidden = hidden + _product(seen.reshape(len(hidden), -1), out, out_bias)
    normed = F.rms_norm(hidden, hidden.shape[-1:], norm, eps)
    gate, up = _product(normed, gate_up, gate_up_bias).chunk(2, dim=-1)
    return hidden + _product(F.silu(gate) * up, down, down_bias)


def _product(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """With plain weights, or with :class:`Weights`, which know their bias."""
    return F.linear(x, weight, bias) if isinstance(weight, Tensor) else weight.many(x)


def _merge(*parts: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """One matrix of several; the parts become views of it, so that no memory is doubled."""
    if len(parts) == 1 and parts[0].weight.is_contiguous():
        return parts[0].weight, parts[0].bias
    with torch.no_grad():
        weight = _joined([part.weight for part in parts])
        bias = None
        if all(part.bias is not None for part in parts):
            bias = torch.cat([part.bias for part in parts])
        first = 0
        for part in parts:
            last = first + part.out_features
            part.weight.data = weight[first:last]
            if bias is not None:
                part.bias.data = bias[first:last]
            first = last
    return weight, bias


def _joined(weights: Sequence[Tensor]) -> Tensor:
    if weights[0].device.type != "cpu":
        return torch.cat(tuple(weights))
    shape = (sum(len(weight) for weight in weights), *weights[0].shape[1:])
    return torch.cat(tuple(weights), out=huge_pages.empty(shape, weights[0].dtype))
