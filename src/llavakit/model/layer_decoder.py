"""HF's own decoder with the engine's attention in it, for what the fused decoder does not fit.

The language model's own ``forward`` runs, so that whatever it does around its layers (embedding
multipliers, several rotary embeddings, parallel blocks, experts) is done by transformers. Only
attention is ours. What the engine's attention does not compute (soft caps, attention sinks, masks
of the model's own) raises :class:`UnsupportedAttention`, so that it cannot be left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from llavakit.errors import CheckpointError

Attend = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""(layer, query [T, heads, dim], key [T, kv_heads, dim], value, scaling) -> [T, heads, dim]"""

Decoder = Callable[[Tensor, Tensor, Attend], Tensor]
"""(embeddings [T, hidden], positions [T], attend) -> hidden states after the norm [T, hidden]"""

ATTENTION = "llavakit"
"""Name under which the engine's attention is registered with transformers."""

# What HF's models hand to an attention function beside tensors and scaling, and what changes
# nothing here: dropout is 0 in inference, positions are in the queries and keys already, and a
# context is never longer than a sliding window (``reader.context_length``).
_WITHOUT_EFFECT = frozenset(
    {
        *("dropout", "sliding_window", "position_ids", "cache_position", "position_embeddings"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "use_cache"),
        *("layer_idx", "max_position_embeddings", "return_dict"),
    }
)

_attend: ContextVar[Attend] = ContextVar("llavakit_attend")


class UnsupportedAttention(CheckpointError):
    """A language model's attention does something that the engine's does not."""


class LayerDecoder:
    """A language model of HF's, with the engine's attention put in.

    Args:
        model: ``LlamaModel`` and the like.
    """

    def __init__(self, model: Any) -> None:
        register_attention()
        self._model = model
        self._before = str(model.config._attn_implementation)
        _set_attention(model, ATTENTION)

    @contextmanager
    def as_in_transformers(self) -> Iterator[None]:
        """Put transformers' own attention back for a while."""
        _set_attention(self._model, self._before)
        try:
            yield
        finally:
            _set_attention(self._model, ATTENTION)

    def __call__(self, embeddings: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        home = embeddings.device

        def attend_at_home(
            layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
        ) -> Tensor:
            # Layers may lie on several GPUs; the arena of keys and values lies on the first.
            seen = attend(layer, query.to(home), key.to(home), value.to(home), scaling)
            return seen.to(query.device)

        # Not an argument of forward: some models do not hand further ones to their layers.
        before = _attend.set(attend_at_home)
        try:
            out = self._model(
                inputs_embeds=embeddings[None],
                position_ids=positions[None],
                use_cache=False,
                return_dict=True,
            )
        finally:
            _attend.reset(before)
        normed: Tensor = out.last_hidden_state
        return normed[0].to(home)


def _set_attention(model: Any, name: str) -> None:
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise UnsupportedAttention(
            f"Language models of type {model.config.model_type!r} do not let their attention be "
            "replaced."
        )


def register_attention() -> None:
    """Register the engine's attention with transformers; safe to call twice."""
    from transformers import AttentionInterface

    attention: Callable[..., Any] = _attention
    AttentionInterface.register(ATTENTION, attention)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """HF's attention interface, in terms of :data:`Attend`; tensors are [1, heads, T, dim]."""
    if attention_mask is not None:
        raise UnsupportedAttention("The language model brings a mask of its own.")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedAttention("The language model's attention looks ahead.")
    for name, option in options.items():
        # Not `in (None, False)`: an option may be a tensor.
        if name not in _WITHOUT_EFFECT and option is not None and option is not False:
            raise UnsupportedAttention(
                f"The language model's attention takes {name}, which llavakit does not compute."
            )
    out = _attend.get()(
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        query.shape[-1] ** -0.5 if scaling is None else scaling,
    )
    return out[None], None
