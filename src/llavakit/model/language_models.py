"""Which language models the decoders compute as transformers does: one table.

A row is proven by tests: ``tests/model/test_language_models.py`` compares greedy answers, log
probabilities and hidden states of each with transformers. A language model without a row is
compared with transformers before it answers (:mod:`llavakit.model.trial`,
:mod:`llavakit.model.self_check`), and refused if it differs.
"""

from __future__ import annotations

from typing import Any

FUSED = frozenset({"llama", "mistral", "qwen2"})
"""Model types whose layers the fused decoder computes, where they fit (``decoder._fits``)."""

LAYER_BY_LAYER = FUSED | {"qwen3", "granite", "gemma", "phi3"}
"""Model types that HF's own layers compute with the engine's attention: with multipliers of
embeddings, residuals and scores (Granite), scaled embeddings (Gemma), norms of queries and keys
(Qwen3), and merged projections (Phi-3)."""

# Rotary embeddings whose angles depend on how long the longest sequence of a pass is.
_GROWING_ROPE = ("dynamic", "longrope")

_KNOWN_ROPE = ("default", "linear", "llama3", "yarn", *_GROWING_ROPE)

_UNLIMITED = 1 << 20
"""Tokens, for a configuration that declares no limit."""


def proven(text: Any) -> bool:
    """Whether tests have shown that a language model is computed as by transformers.

    Args:
        text: the HF configuration of the language model.
    """
    return text.model_type in LAYER_BY_LAYER and _rope_type(text) in _KNOWN_ROPE


def context_limit(text: Any) -> int:
    """Positions that a decoder was made for, and that this package computes as transformers.

    No further than a sliding window or a chunk of attention reaches, and not beyond the length
    up to which a growing rotary embedding is a constant one: sequences of several lengths share
    a pass.

    Args:
        text: the HF configuration of the language model.
    """
    longest = getattr(text, "max_position_embeddings", None)
    limits = [int(longest) if longest else _UNLIMITED]
    window = getattr(text, "sliding_window", None)
    if window and getattr(text, "use_sliding_window", True):
        limits.append(int(window))
    chunk = getattr(text, "attention_chunk_size", None)
    if chunk:
        limits.append(int(chunk))
    if _rope_type(text) in _GROWING_ROPE:
        original = _rope(text).get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None
        )
        if original:
            limits.append(int(original))
    return min(limits)


def _rope(text: Any) -> dict[str, Any]:
    """The settings of the rotary embedding; one for each kind of layer has none of its own."""
    found = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    return found if isinstance(found, dict) else {}


def _rope_type(text: Any) -> str:
    rope = _rope(text)
    return str(rope.get("rope_type", rope.get("type")) or "default")
