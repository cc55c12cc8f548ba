"""Tiny random checkpoints of the published retrievers, built offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

DIMENSIONS = 16
_ROWS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]


def _tokenizer(specials: Sequence[str], **settings: Any) -> Any:
    """A tokenizer of bytes, so that any text is made of known tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    first = ["<unk>", "<s>", "</s>", "<pad>", *specials]
    vocab = {token: number for number, token in enumerate(first)}
    vocab |= {f"<0x{byte:02X}>": len(first) + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")]
    )
    tokenizer.add_special_tokens(first)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        **settings,
    )


def _text(vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        **more,
    }


_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}


def colpali(path: Path) -> None:
    """16 tokens of each image, a grid of 4 by 4; queries are padded on the right."""
    from transformers import (
        ColPaliConfig,
        ColPaliForRetrieval,
        ColPaliProcessor,
        PaliGemmaConfig,
    )
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    text = _text(1500, model_type="gemma", num_key_value_heads=1, head_dim=8)
    config = PaliGemmaConfig(
        vision_config={**_SIGLIP, "projection_dim": 32},
        text_config=text,
        image_token_index=4,
        projection_dim=32,
    )
    images = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    images.image_seq_length = 16
    tokens = _tokenizer(["<image>"], extra_special_tokens={"image_token": "<image>"})
    _save(
        path,
        ColPaliForRetrieval(ColPaliConfig(vlm_config=config, embedding_dim=DIMENSIONS)),
        ColPaliProcessor(images, tokens),
    )


def colqwen2(path: Path) -> None:
    """A token for each 14 by 14 pixels, 2 to 40 of an image; all is padded on the left."""
    from transformers import (
        ColQwen2Config,
        ColQwen2ForRetrieval,
        ColQwen2Processor,
        Qwen2VLConfig,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        vision_config={**vision, "patch_size": 7},
        text_config=_text(300, num_key_value_heads=2, rope_parameters=rope),
        vision_start_token_id=6,
        vision_end_token_id=7,
        image_token_id=8,
        video_token_id=9,
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=7, size={"shortest_edge": 2 * 14**2, "longest_edge": 40 * 14**2}
    )
    names = ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
    tokens = [f"<|{name}|>" for name in (*names, "endoftext")]
    _save(
        path,
        ColQwen2ForRetrieval(ColQwen2Config(vlm_config=config, embedding_dim=DIMENSIONS)),
        ColQwen2Processor(images, _tokenizer(tokens, padding_side="left")),
    )


def colmodernvbert(path: Path) -> None:
    """4 tokens of each tile of 28 by 28 pixels, and of the whole; up to 3 tiles a side."""
    from transformers import (
        ColModernVBertConfig,
        ColModernVBertForRetrieval,
        ColModernVBertProcessor,
        ModernVBertConfig,
    )
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )

    named = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    tokens = _tokenizer([*named, "<|begin_of_text|>", *_ROWS])
    text = _text(320, model_type="modernbert", cls_token_id=1, sep_token_id=2)
    config = ModernVBertConfig(
        vision_config=_SIGLIP,
        text_config={**text, "local_attention": 16, "global_attn_every_n_layers": 2},
        image_token_id=5,
        pixel_shuffle_factor=2,
    )
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 84}, max_image_size={"longest_edge": 28}
    )
    _save(
        path,
        ColModernVBertForRetrieval(
            ColModernVBertConfig(vlm_config=config, embedding_dim=DIMENSIONS)
        ),
        ColModernVBertProcessor(images, tokens, image_seq_len=4),
    )


BUILDERS = {"colpali": colpali, "colqwen2": colqwen2, "colmodernvbert": colmodernvbert}


def _save(path: Path, model: Any, processor: Any) -> None:
    from llavakit.model.reader import without_bar

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Larger than a fresh model's: attention must depend on what is attended to.
            scale = 0.3 if weight.dim() > 1 else 0.1
            shift = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            weight.copy_(scale * torch.randn(weight.shape, generator=generator) + shift)
    with without_bar():
        model.save_pretrained(path)
    processor.save_pretrained(path)
