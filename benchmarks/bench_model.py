"""The model of the benchmarks: LLaVA-1.5's shape with random weights, small enough for a CPU.

A CLIP tower of 336 pixels and patch 14 (576 image tokens, as the real one) with narrow
layers, and a Llama of 6 layers and 512 channels. Built from configuration alone.
"""

from __future__ import annotations

from pathlib import Path

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
    _save_processor(path, vocabulary)
    return path


def _save_processor(path: Path, vocabulary: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    words = ["<unk>", "<s>", "</s>", "<image>"]
    words += [chr(code) for code in range(33, 127)]
    words += [f"w{number}" for number in range(vocabulary - len(words))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
        extra_special_tokens={"image_token": "<image>"},
    )
    fast.save_pretrained(path)
    LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            do_pad=True, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        ),
        tokenizer=fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    ).save_pretrained(path)


def pictures(count: int) -> list[PILImage.Image]:
    """Pictures of noise, 336 by 336 pixels."""
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randint(0, 256, (336, 336, 3), generator=generator) for _ in range(count)]
    return [PILImage.fromarray(one.to(torch.uint8).numpy()) for one in noise]


def question(number: int, words: int = 20) -> str:
    """A question of so many tokens; each number has its own."""
    return " ".join(f"w{(number * 131 + place * 17) % 5000}" for place in range(words))
