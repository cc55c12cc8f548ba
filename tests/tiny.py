"""Tiny random LLaVA checkpoints, built offline, and what plain transformers answers with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}USER: {% elif m['role'] == 'assistant' %} ASSISTANT: {% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}"
    "{% endfor %}ASSISTANT:"
)


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint directory and the reference implementation of it."""

    path: Path

    @cached_property
    def model(self) -> Any:
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(self.path, dtype=torch.float32).eval()

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoImageProcessor, AutoProcessor

        processor = AutoProcessor.from_pretrained(self.path)
        processor.image_processor = AutoImageProcessor.from_pretrained(self.path, backend="pil")
        return processor

    @cached_property
    def forbidden(self) -> list[int]:
        """Ids that the engine never draws, so that both may draw from the same tokens."""
        from llavakit.model.loader import load_reader

        return list(load_reader(self.path).special.forbidden)

    def images(self, pictures: Sequence[PILImage.Image]) -> Any:
        """The images of one prompt as the processor takes them."""
        return list(pictures)

    def generate(
        self,
        conversation: Sequence[tuple[str, Sequence[str | PILImage.Image]]],
        max_tokens: int,
    ) -> list[int]:
        """Greedy tokens of ``transformers.generate`` for (role, parts) turns."""
        pictures = [p for _, parts in conversation for p in parts if not isinstance(p, str)]
        messages = [
            {
                "role": role,
                "content": [
                    {"type": "text", "text": p} if isinstance(p, str) else {"type": "image"}
                    for p in parts
                ],
            }
            for role, parts in conversation
        ]
        text = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        inputs = self.processor(
            images=self.images(pictures) if pictures else None, text=text, return_tensors="pt"
        )
        with torch.inference_mode():
            out = self.model.generate(
                **inputs,
                max_new_tokens=max_tokens,
                do_sample=False,
                suppress_tokens=self.forbidden,
                pad_token_id=0,
            )
        tokens: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
        return tokens


def _tokenizer(path: Path) -> None:
    """A byte-level tokenizer of 262 tokens, so that any text is made of known ones."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    specials = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
    vocab = {token: index for index, token in enumerate(specials)}
    vocab |= {f"<0x{byte:02X}>": len(specials) + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")]
    )
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
        extra_special_tokens={"image_token": "<image>"},
    ).save_pretrained(path)


def _text_config(context: int, hidden: int = 32) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 264,
        "hidden_size": hidden,
        "intermediate_size": hidden * 3 // 2,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 4,
        "initializer_range": 0.3,
    }


def _vision_config(side: int) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": side,
        "patch_size": 8,
        "projection_dim": 32,
        "initializer_range": 0.3,
        "initializer_factor": 12.0,
    }


def tiny_llava(path: Path, context: int = 2048, seed: int = 0, hidden: int = 32) -> TinyModel:
    """A random LLaVA-1.5: 32 pixel views, 16 tokens an image."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=_vision_config(32),
        text_config=_text_config(context, hidden),
        image_token_index=3,
    )
    LlavaForConditionalGeneration(config).save_pretrained(path)
    _tokenizer(path)
    images = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    _save_processor(path, LlavaProcessor, images)
    return TinyModel(path)


def tiny_llava_next(path: Path, context: int = 2048, seed: int = 0) -> TinyModel:
    """A random LLaVA-NeXT: 16 pixel views in grids of up to 3 by 3."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    torch.manual_seed(seed)
    grids = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
    config = LlavaNextConfig(
        vision_config=_vision_config(16),
        text_config=_text_config(context),
        image_token_index=3,
        image_grid_pinpoints=grids,
    )
    model = LlavaNextForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.image_newline)
    model.save_pretrained(path)
    _tokenizer(path)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=grids,
    )
    _save_processor(path, LlavaNextProcessor, images)
    return TinyModel(path)


def _save_processor(path: Path, kind: Any, images: Any) -> None:
    from transformers import AutoTokenizer

    kind(
        image_processor=images,
        tokenizer=AutoTokenizer.from_pretrained(path),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    ).save_pretrained(path)
