"""The architecture of the demo model: a LLaVA-1.5 in miniature.

A CLIP vision tower (128 px, patches of 16 px: 64 tokens), a two-layer projector and a Llama, in
the classes of Hugging Face, so that the checkpoint loads wherever LLaVA loads. This file knows
sizes only: no data, no losses, no optimiser.
"""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE_SIZE = 128
PATCH_SIZE = 16
GRID = IMAGE_SIZE // PATCH_SIZE
IMAGE_TOKENS = GRID * GRID
VOCAB_SIZE = 1920
"""Rows of the embedding; the tokenizer fills fewer, the rest is padding."""
MAX_POSITIONS = 4096

VISION_WIDTH = 128
VISION_LAYERS = 5
"""One more than is trained: LLaVA-1.5 reads the last but one (``vision_feature_layer=-2``)."""
TEXT_WIDTH = 192
TEXT_LAYERS = 4


def build_config(*, image_token_id: int, pad_token_id: int) -> LlavaConfig:
    """Return the configuration of the demo model for a tokenizer with these special tokens."""
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=4 * VISION_WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=VISION_WIDTH,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=TEXT_WIDTH,
        intermediate_size=512,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,  # smaller heads are not supported by every serving engine's CPU attention
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=pad_token_id,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        pad_token_id=pad_token_id,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )


def build_model(
    *, seed: int, image_token_id: int = VOCAB_SIZE - 2, pad_token_id: int = VOCAB_SIZE - 1
) -> LlavaForConditionalGeneration:
    """Return a freshly initialised demo model in fp32; the same seed gives the same weights."""
    torch.manual_seed(seed)
    config = build_config(image_token_id=image_token_id, pad_token_id=pad_token_id)
    model = LlavaForConditionalGeneration(config)
    return model.float().train()


def patch_features(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Return what LLaVA-1.5 reads: ``(n, 64, VISION_WIDTH)`` for pixels ``(n, 3, 128, 128)``.

    Only the layers below ``vision_feature_layer`` are run; the last one has no gradient anyway.
    """
    tower = model.model.vision_tower
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    patches: torch.Tensor = hidden[:, 1:]
    return patches


def text_states(
    model: LlavaForConditionalGeneration,
    embeds: torch.Tensor,
    mask: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the Llama on ``(b, l, TEXT_WIDTH)``; ``mask`` is ``(b, 1, l, l)``, true where seen."""
    out = model.model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
    )
    states: torch.Tensor = out.last_hidden_state
    return states
