"""The language model's decoder over packed tokens, in fewer and larger operations.

The same mathematics as the HF modules (Llama, Mistral, Qwen2): RMSNorm, rotary positions
(https://arxiv.org/abs/2104.09864), grouped-query attention, SwiGLU. Query, key and value
weights are one matrix, gate and up another, and cosines are looked up in a table; small
batches are bound by the number of operations, so this is where decoding gets its speed.
Models that do not fit (quantised, adapted, other families) run layer by layer through HF.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attend = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""(layer, query [T, heads, dim], key [T, kv_heads, dim], value, scaling) -> [T, heads, dim]"""

ATTENTION = "llavakit"
"""Name under which the engine's attention is registered with transformers."""

FUSED_FAMILIES = ("llama", "mistral", "qwen2")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")

Decoder = Callable[[Tensor, Tensor, Attend], Tensor]
"""(embeddings [T, hidden], positions [T], attend) -> hidden states after the norm [T, hidden]"""


def decoder_of(language_model: Any) -> Decoder:
    """The fastest decoder that fits the language model (``LlamaModel`` and the like)."""
    return FusedDecoder(language_model) if _fits(language_model) else LayerDecoder(language_model)


def _fits(model: Any) -> bool:
    config = model.config
    if config.model_type not in FUSED_FAMILIES or config.hidden_act not in ("silu", "swish"):
        return False
    if getattr(model.rotary_emb, "rope_type", "") not in STATIC_ROPE:
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
    # Quantised and adapted layers are subclasses or wrappers; parts on several devices cannot
    # be put together.
    return all(type(part) is nn.Linear for part in linear) and (
        len({part.weight.device for part in linear}) == 1
    )


class FusedDecoder:
    """Merged weights, one table of rotary cosines; the HF modules keep views of the weights."""

    def __init__(self, model: Any) -> None:
        config = model.config
        self._layers = [_FusedLayer(layer, config) for layer in model.layers]
        self._norm = model.norm.weight
        self._eps = float(config.rms_norm_eps)
        positions = torch.arange(config.max_position_embeddings, device=self._norm.device)
        with torch.inference_mode():
            cos, sin = model.rotary_emb(self._norm[None, None], position_ids=positions[None])
        half = cos.shape[-1] // 2  # both halves of the channels turn by the same angles
        self._cos, self._sin = cos[0, :, None, :half].clone(), sin[0, :, None, :half].clone()

    def __call__(self, embeddings: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        cos, sin = self._cos[positions], self._sin[positions]
        hidden = embeddings
        for number, layer in enumerate(self._layers):
            hidden = layer(number, hidden, cos, sin, attend)
        return F.rms_norm(hidden, (hidden.shape[-1],), self._norm, self._eps)


class _FusedLayer:
    """One decoder layer."""

    def __init__(self, layer: Any, config: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._eps = float(config.rms_norm_eps)
        self._dim = int(attention.head_dim)
        self._scaling = float(attention.scaling)
        self._heads = int(config.num_attention_heads)
        self._kv_heads = int(config.num_key_value_heads)
        self._norm_in = layer.input_layernorm.weight
        self._norm_out = layer.post_attention_layernorm.weight
        self._qkv, self._qkv_bias = _merge(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out, self._out_bias = attention.o_proj.weight, attention.o_proj.bias
        self._gate_up, self._gate_up_bias = _merge(mlp.gate_proj, mlp.up_proj)
        self._down, self._down_bias = mlp.down_proj.weight, mlp.down_proj.bias

    def __call__(
        self, number: int, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend
    ) -> Tensor:
        width = hidden.shape[-1:]
        normed = F.rms_norm(hidden, width, self._norm_in, self._eps)
        mixed = F.linear(normed, self._qkv, self._qkv_bias).view(len(hidden), -1, self._dim)
        turned = _rotate(mixed[:, : self._heads + self._kv_heads], cos, sin)
        query, key = turned[:, : self._heads], turned[:, self._heads :]
        value = mixed[:, self._heads + self._kv_heads :]
        seen = attend(number, query, key, value, self._scaling).reshape(len(hidden), -1)
        hidden = hidden + F.linear(seen, self._out, self._out_bias)
        normed = F.rms_norm(hidden, width, self._norm_out, self._eps)
        gate, up = F.linear(normed, self._gate_up, self._gate_up_bias).chunk(2, dim=-1)
        return hidden + F.linear(F.silu(gate) * up, self._down, self._down_bias)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn [T, heads, dim] by each token's angles [T, 1, dim / 2]."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _merge(*parts: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """One matrix of several; the parts become views of it, so that no memory is doubled."""
    with torch.no_grad():
        weight = torch.cat([part.weight for part in parts])
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


class LayerDecoder:
    """HF's own layers, with the engine's attention put in."""

    def __init__(self, model: Any) -> None:
        register_attention()
        model.set_attn_implementation(ATTENTION)
        self._model = model

    def __call__(self, embeddings: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        home = embeddings.device

        def attend_at_home(
            layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
        ) -> Tensor:
            # Layers may lie on several GPUs; the arena of keys and values lies on the first.
            seen = attend(layer, query.to(home), key.to(home), value.to(home), scaling)
            return seen.to(query.device)

        hidden = embeddings[None]
        rotary = self._model.rotary_emb(hidden, position_ids=positions[None])
        for layer in self._model.layers[: self._model.config.num_hidden_layers]:
            hidden = layer(
                hidden,
                attention_mask=None,
                position_embeddings=rotary,
                use_cache=False,
                attend=attend_at_home,
            )
        normed: Tensor = self._model.norm(hidden)
        return normed[0].to(home)


def register_attention() -> None:
    """Tell transformers of the engine's attention; safe to call twice."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    attend: Attend,
    **unused: Any,
) -> tuple[Tensor, None]:
    """HF's attention interface, in terms of :data:`Attend`; tensors are [1, heads, T, dim]."""
    out = attend(
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scaling,
    )
    return out[None], None
