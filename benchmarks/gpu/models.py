"""Large LLaVA models from configuration alone: random weights, made on the GPU, no download."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.bench_model import save_processor
from llavakit.model.quantization import KEPT, Quantization, bitsandbytes, check_quantized


@dataclass(frozen=True)
class Spec:
    """The shape of a published checkpoint.

    Attributes:
        name: of the model.
        family: of its transformers class.
        hidden, intermediate, layers, heads, kv_heads, vocabulary: of the language model.
        side: of one view in pixels; the tower is CLIP ViT-L/14, as in all of them.
        vision: hidden size and layers of the tower.
    """

    name: str
    family: Literal["llava", "llava_next"]
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    side: int = 336
    vision: tuple[int, int] = (1024, 24)

    def tiny(self) -> Spec:
        """The same family in a size for a CPU."""
        return replace(
            self,
            name=f"{self.name}, tiny",
            hidden=128,
            intermediate=192,
            layers=2,
            heads=4,
            kv_heads=4 if self.kv_heads == self.heads else 2,
            vocabulary=600,
            side=56,
            vision=(64, 3),
        )

    def config(self) -> Any:
        """The HF configuration."""
        from transformers import LlavaConfig, LlavaNextConfig

        width, depth = self.vision
        vision = {
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": depth,
            "num_attention_heads": width // 64,
            "image_size": self.side,
            "patch_size": 14,
            "projection_dim": 768,
        }
        text = {
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        if self.family == "llava":
            return LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
        grids = [
            [a * self.side, b * self.side] for a, b in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
        ]
        return LlavaNextConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=3,
            image_grid_pinpoints=grids,
        )


SEVEN = Spec("llava-1.5-7b", "llava", 4096, 11008, 32, 32, 32, 32064)
LARGE = Spec("llava-v1.6-34b", "llava_next", 7168, 20480, 60, 56, 8, 64064)


def save_without_weights(spec: Spec, path: Path) -> Path:
    """What reads prompts (configuration, tokenizer, image processor), written to a directory."""
    config = spec.config()
    path.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(path)
    save_processor(path, config)
    named = json.loads((path / "config.json").read_text())
    named["architectures"] = [type(config).__name__.replace("Config", "ForConditionalGeneration")]
    (path / "config.json").write_text(json.dumps(named))
    return path


def build(
    spec: Spec, device: torch.device, dtype: torch.dtype, kind: Quantization | None = None
) -> Any:
    """The model with random weights, quantised in place if asked for."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    with device:
        model = AutoModelForImageTextToText.from_config(spec.config(), dtype=dtype).eval()
    model.requires_grad_(False)
    if kind is not None:
        _quantise(model, kind, device, dtype)
        check_quantized(model, kind)
    return model


def _quantise(model: Any, kind: Quantization, device: torch.device, dtype: torch.dtype) -> None:
    """As ``from_pretrained`` does it (see ``llavakit.model.quantization``), without a file."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and not name.startswith(KEPT):
            model.set_submodule(name, _quantised(layer, kind, device, dtype))


def _quantised(layer: nn.Linear, kind: Quantization, device: torch.device, dtype: Any) -> Any:
    library = bitsandbytes()
    shape = (layer.in_features, layer.out_features, layer.bias is not None)
    if kind == "4bit":
        made = library.nn.Linear4bit(
            *shape, dtype, compress_statistics=True, quant_type="nf4", device="meta"
        )
        made.weight = library.nn.Params4bit(
            layer.weight.data, compress_statistics=True, quant_type="nf4", module=made
        ).to(device)
    else:
        made = library.nn.Linear8bitLt(*shape, has_fp16_weights=False, device="meta")
        # It quantises on the way from the host to the device.
        made.weight = library.nn.Int8Params(
            layer.weight.data.cpu(), requires_grad=False, has_fp16_weights=False
        ).to(device)
    made.bias = layer.bias
    return made
