"""Random retrieval adapters that PEFT writes, and the vectors that PEFT computes with them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from llavakit.engine.embedding import prompt_of
from llavakit.images import open_picture
from llavakit.model.loader import load_reader
from llavakit.model.retrieval import PROJECTION, write_settings
from llavakit.values import Image

DIMENSIONS = 16


@dataclass(frozen=True)
class Reference:
    """An adapter's directory, and the HF model with it.

    Attributes:
        path: of the adapter.
        checkpoint: of its base.
        model: wrapped by PEFT.
    """

    path: Path
    checkpoint: Path
    model: Any

    def vectors(self, content: Image | str) -> torch.Tensor:
        """What transformers and PEFT give for an image or a text."""
        reader = load_reader(self.checkpoint)
        prompt = prompt_of(reader, content, lambda image: open_picture(image.source))
        inputs: dict[str, Any] = {"input_ids": torch.tensor([prompt.tokens])}
        for image in prompt.images:
            made = image.pixels.inputs()
            inputs["pixel_values"] = made["pixel_values"]
            if "image_sizes" in made:
                inputs["pixel_values"] = made["pixel_values"][None]
                inputs["image_sizes"] = made["image_sizes"][None]
        base = self.model.get_base_model()
        with torch.inference_mode():
            hidden = base.model(**inputs).last_hidden_state[0, prompt.first : prompt.last]
            return nn.functional.normalize(getattr(base, PROJECTION)(hidden), dim=-1)


def random_adapter(path: Path, checkpoint: Path, model: Any, seed: int = 0) -> Reference:
    """Put a random adapter into a model, and write it.

    Args:
        path: where it is written.
        checkpoint: the model's directory.
        model: an HF LLaVA model; it is changed.
        seed: of the numbers.
    """
    torch.manual_seed(seed)
    hidden = int(model.config.text_config.hidden_size)
    setattr(model, PROJECTION, nn.Linear(hidden, DIMENSIONS, bias=False))
    names = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        init_lora_weights=False,
        target_modules=rf".*language_model\.layers\.\d+\.(self_attn|mlp)\.({names})",
        modules_to_save=[PROJECTION],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(model, settings).eval()
        made.save_pretrained(path)
    write_settings(path, {"dimensions": DIMENSIONS})
    return Reference(path, checkpoint, made)
