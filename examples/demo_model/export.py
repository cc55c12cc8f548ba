"""Write the demo model as a Hugging Face checkpoint: weights, tokenizer, processor, template."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from .model import IMAGE_SIZE, PATCH_SIZE, VISION_LAYERS

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
WEIGHTS = "model.safetensors"


def describe(
    config: LlavaConfig, tokenizer: PreTrainedTokenizerFast, out: Path, dtype: torch.dtype
) -> None:
    """Write all but the weights, which will be of this type."""
    out.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(config)
    config.dtype = dtype
    config.architectures = [LlavaForConditionalGeneration.__name__]
    config.save_pretrained(out)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=128,
    ).save_pretrained(out)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    shortest = {"shortest_edge": IMAGE_SIZE}
    images = LlavaImageProcessorPil(do_pad=True, size=shortest, crop_size=size)
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE.read_text(),
        num_additional_image_tokens=1,
    ).save_pretrained(out)


def write_weights(model: LlavaForConditionalGeneration, out: Path) -> None:
    """Write the weights, at once or not at all: with them the directory is whole."""
    with tempfile.TemporaryDirectory(dir=out) as made:
        model.save_pretrained(made)  # the names of tensors in files are not those of modules
        (Path(made) / WEIGHTS).chmod(0o644)
        (Path(made) / WEIGHTS).replace(out / WEIGHTS)


def zero_untrained_layer(model: LlavaForConditionalGeneration) -> None:
    """Make the last layer of the tower, which nobody reads, the identity.

    ``vision_feature_layer=-2`` reads the layer before it. Zero output projections keep it harmless
    for whoever reads the last layer by mistake, and make the file compress well.
    """
    layer = model.model.vision_tower.encoder.layers[VISION_LAYERS - 1]
    for module in (layer.self_attn.out_proj, layer.mlp.fc2):
        torch.nn.init.zeros_(module.weight)
        torch.nn.init.zeros_(module.bias)
