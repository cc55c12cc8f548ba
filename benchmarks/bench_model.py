"""The model of the benchmarks: LLaVA-1.5's shape with random weights, small enough for a CPU.

A CLIP tower of 336 pixels and patch 14 (576 image tokens, as the real one) with narrow
layers, and a Llama of 6 layers and 512 channels. Built from configuration alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}USER: {% else %} ASSISTANT: {% endif %}"
    "{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}"
    "{% endfor %}ASSISTANT:"
)


def build(path: Path, *, vocabulary: int = 8000) -> Path:
    """Write the checkpoint to ``path`` and return it."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 128,
    }
    text = {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.05,
    }
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    LlavaForConditionalGeneration(config).save_pretrained(path)
    save_processor(path, config)
    return path


def save_processor(path: Path, config: Any) -> None:
    """Write the tokenizer and the image processor that a LLaVA configuration needs.

    Words are ``w0``, ``w1`` and so on, one token each, so that prompts have the length that a
    benchmark wants.
    """
    from transformers import LlavaNextProcessor, LlavaProcessor

    tokenizer = _tokenizer(config.text_config.vocab_size)
    tokenizer.save_pretrained(path)
    side = config.vision_config.image_size
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    if config.model_type == "llava_next":
        from transformers.models.llava_next.image_processing_pil_llava_next import (
            LlavaNextImageProcessorPil,
        )

        kind: Any = LlavaNextProcessor
        grids = config.image_grid_pinpoints
        images: Any = LlavaNextImageProcessorPil(image_grid_pinpoints=grids, **size)
    else:
        from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

        kind, images = LlavaProcessor, LlavaImageProcessorPil(do_pad=True, **size)
    kind(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    ).save_pretrained(path)


def _tokenizer(vocabulary: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "<image>"]
    words += [chr(code) for code in range(33, 127)]
    words += [f"w{number}" for number in range(vocabulary - len(words))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
        extra_special_tokens={"image_token": "<image>"},
    )


def pictures(count: int, side: int = 336) -> list[PILImage.Image]:
    """Images of noise, 336 by 336 pixels unless told otherwise."""
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randint(0, 256, (side, side, 3), generator=generator) for _ in range(count)]
    return [PILImage.fromarray(one.to(torch.uint8).numpy()) for one in noise]


def question(number: int, words: int = 20, known: int = 5000) -> str:
    """A question of so many tokens, out of so many words; each number has its own."""
    return " ".join(f"w{(number * 131 + place * 17) % known}" for place in range(words))
