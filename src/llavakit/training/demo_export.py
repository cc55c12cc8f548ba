"""Write the demo model as a Hugging Face checkpoint: weights, tokenizer, processor, template."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llavakit.training.demo_model import IMAGE_SIZE, PATCH_SIZE, VISION_LAYERS

TEMPLATE = Path(__file__).with_name("demo_chat_template.jinja")


def export(model: LlavaForConditionalGeneration, tokenizer_folder: Path, out: Path) -> None:
    """Write the checkpoint to ``out`` in fp16; files are replaced one by one, each at once."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    with tempfile.TemporaryDirectory(dir=out.parent) as made:
        folder = Path(made)
        half = LlavaForConditionalGeneration(model.config)
        weights = {name: value.half() for name, value in model.state_dict().items()}
        half = half.half()
        half.load_state_dict(weights)
        zero_untrained_layer(half)
        half.config.dtype = torch.float16
        half.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            do_sample=False,
            max_new_tokens=128,
        )
        half.save_pretrained(folder)
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        images = LlavaImageProcessorPil(
            do_pad=True, size={"shortest_edge": IMAGE_SIZE}, crop_size=size
        )
        LlavaProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=PATCH_SIZE,
            vision_feature_select_strategy="default",
            chat_template=TEMPLATE.read_text(),
            num_additional_image_tokens=1,
        ).save_pretrained(folder)
        for path in sorted(folder.iterdir()):
            path.chmod(0o644)
            shutil.move(path, out / path.name)


def zero_untrained_layer(model: LlavaForConditionalGeneration) -> None:
    """Make the last layer of the tower, which nobody reads, the identity.

    ``vision_feature_layer=-2`` reads the layer before it. Zero output projections keep it harmless
    for whoever reads the last layer by mistake, and make the file compress well.
    """
    layer = model.model.vision_tower.encoder.layers[VISION_LAYERS - 1]
    with torch.no_grad():
        for module in (layer.self_attn.out_proj, layer.mlp.fc2):
            module.weight.zero_()
            module.bias.zero_()
