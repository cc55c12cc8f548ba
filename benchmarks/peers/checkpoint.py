"""The checkpoint that all engines load: LLaVA-1.5 with random weights, in a shape for a CPU.

Its tokenizer is a byte-level BPE, which transformers, vLLM and llama.cpp all read, and is made
by rule: every word of one to three letters is one token. Answers consist of such words alone,
so each can be put back into a prompt as the very tokens it was.
"""

from __future__ import annotations

import itertools
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from benchmarks.peers.work import TEMPLATE

SPECIAL = ["<unk>", "<s>", "</s>", "<image>"]
# Byte-level BPE writes a space as Ġ and a line feed as Ċ.
ALPHABET = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaVA: tower, text model, vocabulary."""

    vision: dict[str, int]
    text: dict[str, int]
    vocabulary: int = 8000
    image_size: int = 336


def _shape(vision: tuple[int, ...], text: tuple[int, ...], **more: int) -> Shape:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    tower = dict(zip(names, vision, strict=True))
    decoder = dict(zip(names, text, strict=True))
    return Shape(
        {**tower, "projection_dim": tower["hidden_size"]},
        {**decoder, "num_key_value_heads": decoder["num_attention_heads"]},
        **more,
    )


SHAPES = {
    "small": _shape((128, 512, 4, 4), (512, 1376, 6, 8)),
    "medium": _shape((256, 1024, 6, 8), (1024, 2816, 12, 16)),
    "tiny": _shape((32, 64, 2, 2), (64, 128, 2, 2), vocabulary=800, image_size=56),
}
"""``small`` is the model of ``benchmarks.run``; ``medium`` has weights enough to be worth
quantising; ``tiny`` is for dry runs."""


def words_of(shape: Shape) -> list[str]:
    """The words that are one token each, in the order of their ids."""
    letters = string.ascii_lowercase
    all_words = (
        "".join(word) for size in (1, 2, 3) for word in itertools.product(letters, repeat=size)
    )
    return list(itertools.islice(all_words, shape.vocabulary - len(SPECIAL) - len(ALPHABET)))


def build(path: Path, shape: Shape) -> tuple[Any, Any]:
    """Write the checkpoint to ``path``; return its model and its tokenizer."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = {"model_type": "clip_vision_model", "image_size": shape.image_size, "patch_size": 14}
    text = {
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.05,
    }
    config = LlavaConfig(
        vision_config={**vision, **shape.vision},
        text_config={**text, **shape.text},
        image_token_index=SPECIAL.index("<image>"),
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        _answer_in_words(model)
        _make_images_matter(model, shape.image_size)
    model.save_pretrained(path)
    tokenizer = _tokenizer(shape)
    _save_processor(path, tokenizer, shape.image_size)
    return model, tokenizer


def _answer_in_words(model: Any) -> None:
    """Give all tokens but words a logit of 0, which is never the largest.

    No answer then ends early, and none has tokens that its text would not give back.
    """
    model.lm_head.weight[: len(SPECIAL) + len(ALPHABET)] = 0


def _make_images_matter(model: Any, side: int) -> None:
    """Scale the projector's output to the size of word embeddings; random weights give less."""
    noise = torch.randn(2, 3, side, side)
    features = model.model.get_image_features(pixel_values=noise).pooler_output
    last = model.model.multi_modal_projector.linear_2
    scale = model.config.text_config.initializer_range / torch.cat(list(features)).std()
    last.weight *= scale
    last.bias *= scale


def _tokenizer(shape: Shape) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # A word grows letter by letter, and everything that it begins with is a word.
    spaced = [f"Ġ{word}" for word in words_of(shape)]
    merges = [(word[:-1], word[-1]) for word in spaced]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *ALPHABET, *spaced])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        chat_template=TEMPLATE,
        extra_special_tokens={"image_token": "<image>"},
    )


def _save_processor(path: Path, tokenizer: Any, side: int) -> None:
    from transformers import LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    tokenizer.save_pretrained(path)
    LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    ).save_pretrained(path)


def save_images(folder: Path, count: int, side: int) -> None:
    """Write ``count`` images as ``0.png`` and so on: patches of colour under noise.

    They have the size that the model takes, so that no engine's resizing counts.
    """
    generator = np.random.default_rng(7)
    folder.mkdir(exist_ok=True)
    for number in range(count):
        colours = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        smooth = PILImage.fromarray(colours).resize((side, side), PILImage.Resampling.BILINEAR)
        noisy = np.asarray(smooth).astype(int) + generator.integers(-25, 26, (side, side, 3))
        PILImage.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
