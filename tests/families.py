"""A tiny random checkpoint of every family of the catalog, in the shape of its real ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image as PILImage

from llavakit.model.fastvit import own_tower
from tests.tiny import TinyModel

Vocabulary = Literal["llama", "video", "pixtral", "yi", "llama3", "qwen"]

# Images first, then the words: what the converted checkpoints' templates do.
IMAGES = "{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>' + line }}{% endfor %}"
VIDEOS = IMAGES.replace("image", "video")
WORDS = "{% for c in m['content'] if c['type'] == 'text' %}"
PICTURES = IMAGES + WORDS
VICUNA = (
    "{% set line = '\n' %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'][0]['text'] + ' ' }}{% else %}"
    "{{ m['role'].upper() + ': ' }}" + PICTURES + "{{ c['text'] + ' ' }}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = (
    "{% set line = '\n' %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ '<<SYS>>\n' + m['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif m['role'] == 'user' %}"
    "{{ '[INST] ' }}" + PICTURES + "{{ c['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'][0]['text'] + '</s> ' }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% set line = '' %}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    + PICTURES
    + "{{ '\n' + c['text'] + '<|eot_id|>' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% set line = '' %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    + PICTURES
    + "{{ '\n' + c['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IN_ORDER = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{{ '[/INST]' }}{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endif %}{% endfor %}"
)
# A system text where none is given, and a line break behind each turn.
FASTVLM = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    + CHATML.replace("'<|im_end|>'", "'<|im_end|>\n'")
)
VICUNA_VIDEO = VICUNA.replace(PICTURES, IMAGES + VIDEOS + WORDS)
CHATML_VIDEO = CHATML.replace(PICTURES, IMAGES + VIDEOS + WORDS)
GRIDS = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
FASTVIT_SIDE = 128
FASTVIT = {
    "model_type": "timm_wrapper",
    "architecture": "fastvit_mci3",
    "hidden_size": 64,
    "model_args": {
        "inference_mode": True,
        "layers": [1, 2, 1, 1, 2],
        "embed_dims": [8, 16, 16, 32, 32],
        "mlp_ratios": [2, 2, 2, 2, 2],
    },
    "label_names": [],
    "num_classes": 0,
    "num_features": 64,
    "global_pool": "avg",
    "do_pooling": True,
    "pretrained_cfg": {"tag": "apple_mclip2_dfndr2b", "num_classes": 0, "custom_load": False},
}
"""A small FastViT-HD, as the published files write a large one."""

MANY_GRIDS = [[19 * a, 19 * b] for a in range(1, 5) for b in range(1, 5)]


@dataclass(frozen=True)
class Family:
    """What its tiny checkpoint is made of.

    Attributes:
        names: the models of the catalog that are of this family.
        model: model type of the whole.
        tower: ``clip``, ``siglip``, ``pixtral`` or ``fastvit``.
        text: differences of the language model from a small Llama.
        vocabulary: kind of tokenizer.
        template: chat template.
        more: further settings of the whole.
    """

    names: tuple[str, ...]
    model: str
    tower: str
    text: dict[str, Any]
    vocabulary: Vocabulary
    template: str
    more: dict[str, Any] = field(default_factory=dict)


QWEN = {"model_type": "qwen2", "bos_token_id": None}
FAMILIES = {
    "llava-1.5": Family(
        ("llava-1.5-7b", "llava-1.5-13b"),
        "llava",
        "clip",
        {"num_key_value_heads": 4},
        "llama",
        VICUNA,
    ),
    "1.6-vicuna": Family(
        ("llava-v1.6-vicuna-7b", "llava-v1.6-vicuna-13b"),
        "llava_next",
        "clip",
        {"num_key_value_heads": 4},
        "llama",
        VICUNA,
    ),
    "1.6-mistral": Family(
        ("llava-v1.6-mistral-7b",),
        "llava_next",
        "clip",
        {"model_type": "mistral", "sliding_window": None},
        "llama",
        MISTRAL,
    ),
    "1.6-34b": Family(
        ("llava-v1.6-34b",), "llava_next", "clip", {"num_key_value_heads": 1}, "yi", CHATML
    ),
    "next-llama3": Family(("llama3-llava-next-8b",), "llava_next", "clip", {}, "llama3", LLAMA_3),
    "next-72b": Family(
        ("llava-next-72b",),
        "llava_next",
        "clip",
        {**QWEN, "num_key_value_heads": 4},
        "qwen",
        CHATML,
    ),
    "next-110b": Family(("llava-next-110b",), "llava_next", "clip", QWEN, "qwen", CHATML),
    "interleave": Family(
        ("llava-interleave-qwen-0.5b", "llava-interleave-qwen-7b"),
        "llava",
        "siglip",
        {**QWEN, "tie_word_embeddings": True},
        "qwen",
        CHATML,
    ),
    "onevision": Family(
        (
            "llava-onevision-qwen2-0.5b",
            "llava-onevision-qwen2-7b",
            "llava-onevision-qwen2-72b",
        ),
        "llava_onevision",
        "siglip",
        QWEN,
        "qwen",
        CHATML_VIDEO,
    ),
    "fastvlm": Family(
        ("fastvlm-0.5b", "fastvlm-1.5b", "fastvlm-7b"),
        *("fast_vlm", "fastvit", {**QWEN, "tie_word_embeddings": True}, "qwen", FASTVLM),
    ),
}

GRANITE = {
    "model_type": "granite",
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.1,
}
SEVERAL_LAYERS = {
    "vision_feature_layer": [-3, -2, -1],
    "vision_feature_select_strategy": "full",
}
RELATIVES = {
    "granite-vision": Family(
        *(("granite-vision-3.3-2b",), "llava_next", "siglip", GRANITE),
        *("yi", CHATML, SEVERAL_LAYERS),
    ),
    "granite-in-llava": Family((), "llava", "siglip", GRANITE, "yi", CHATML, SEVERAL_LAYERS),
    "vip-llava": Family(
        *(("vip-llava-7b", "vip-llava-13b"), "vipllava", "clip", {}, "llama", VICUNA),
        {"vision_feature_layers": [-2, -1]},
    ),
    "pixtral": Family(
        *(("pixtral-12b",), "llava", "pixtral"),
        {"model_type": "mistral", "sliding_window": None, "head_dim": 16},
        *("pixtral", IN_ORDER),
    ),
    "next-video": Family(
        ("llava-next-video-7b", "llava-next-video-34b"),
        *("llava_next_video", "clip", {}, "video", VICUNA_VIDEO),
    ),
    "qwen3": Family(
        *((), "llava", "siglip"),
        {"model_type": "qwen3", "bos_token_id": None, "head_dim": 8},
        *("qwen", CHATML),
    ),
    "gemma": Family((), "llava", "clip", {"model_type": "gemma", "head_dim": 8}, "llama", VICUNA),
    "phi3": Family((), "llava", "clip", {"model_type": "phi3"}, "llama", VICUNA),
    "bakllava": Family(
        (), "llava", "clip", {"model_type": "mistral", "sliding_window": 4096}, "llama", VICUNA
    ),
}
"""LLaVA's descendants that people load, in the catalog or not."""


@dataclass(frozen=True)
class TinyFamily(TinyModel):
    """A checkpoint directory and what plain transformers makes of it."""

    family: Family

    @cached_property
    def model(self) -> Any:
        if self.family.tower != "fastvit":
            return super().model
        # transformers takes this tower from timm, which test_fastvit.py compares it with.
        from transformers import AutoConfig, AutoModelForImageTextToText

        config = AutoConfig.from_pretrained(self.path)
        own_tower(self.path, config, FASTVIT_SIDE)
        return AutoModelForImageTextToText.from_pretrained(
            self.path, config=config, dtype=torch.float32
        ).eval()

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoImageProcessor, AutoTokenizer

        settings = json.loads((self.path / "reference.json").read_text())
        if self.family.tower == "pixtral":
            return PixtralReference(self)
        kind = _processor_class(self.family.model)
        if self.family.model == "llava_onevision":
            # It asks for a video processor, and that for torchvision.
            kind = type("Reference", (kind,), {"check_argument_for_proper_class": _any_class})
            settings["video_processor"] = None
        return kind(
            image_processor=AutoImageProcessor.from_pretrained(self.path, backend="pil"),
            tokenizer=AutoTokenizer.from_pretrained(self.path),
            chat_template=self.family.template,
            **settings,
        )

    def images(self, pictures: Sequence[PILImage.Image]) -> Any:
        """The images of one prompt as the processor takes them."""
        return [list(pictures)] if self.family.model == "llava_onevision" else list(pictures)


class PixtralReference:
    """What ``PixtralProcessor`` makes of a prompt; that one asks for torchvision."""

    def __init__(self, family: TinyFamily) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        self._template = family.family.template
        self._images = AutoImageProcessor.from_pretrained(family.path, backend="pil")
        self.tokenizer = AutoTokenizer.from_pretrained(family.path)

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        options["chat_template"] = self._template
        return self.tokenizer.apply_chat_template(messages, **options)

    def __call__(self, images: Any = None, text: str = "", return_tensors: str = "pt") -> Any:
        made = self._images(images=images, return_tensors="pt") if images else {}
        before, *behind = text.split("<image>")
        for (height, width), words in zip(made.get("image_sizes", ()), behind, strict=True):
            row = "<image>" * (int(width) // 8) + "[IMG_BREAK]"
            before += (row * (int(height) // 8)).removesuffix("[IMG_BREAK]") + "[IMG_END]" + words
        ids = self.tokenizer(before, return_tensors=return_tensors)
        return {"input_ids": ids["input_ids"], **made}


def _any_class(self: Any, name: str, argument: Any) -> type:
    return type(argument)


def tiny_family(path: Path, key: str, seed: int = 0) -> TinyFamily:
    """Build the checkpoint of a family."""
    return tiny_checkpoint(path, FAMILIES.get(key) or RELATIVES[key], seed)


def tiny_checkpoint(path: Path, family: Family, seed: int = 0) -> TinyFamily:
    """Build a checkpoint of such a kind."""
    torch.manual_seed(seed)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(path, family)
    config = _config(family, tokenizer)
    published = copy.deepcopy(config)
    if family.tower == "fastvit":
        own_tower(path, config, FASTVIT_SIDE)
    model = _model_class(family.model)(config)
    if family.tower == "fastvit":
        shake(model.model.vision_tower)
        shake(model.model.multi_modal_projector)
    if hasattr(model.model, "image_newline"):
        torch.nn.init.normal_(model.model.image_newline)
    model.save_pretrained(path)
    published.save_pretrained(path)
    _image_processor(family).save_pretrained(path)
    settings: dict[str, Any] = {"image_token": "<image>"}
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    if family.model == "llava_onevision":
        settings |= {
            "num_image_tokens": 4,
            "vision_feature_select_strategy": strategy,
            "vision_aspect_ratio": config.vision_aspect_ratio,
        }
    else:
        settings |= {
            "patch_size": 64 if family.tower == "fastvit" else 8,
            "vision_feature_select_strategy": strategy,
            "num_additional_image_tokens": 1 if family.tower == "clip" else 0,
        }
    (path / "reference.json").write_text(json.dumps(settings))
    (path / "chat_template.json").write_text(json.dumps({"chat_template": family.template}))
    return TinyFamily(path, family)


def shake(tower: torch.nn.Module) -> None:
    """Random weights under which every block of a convolutional tower shows in its features."""
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            if weight.dim() < 2:
                weight.normal_(float(name.endswith(("bn.weight", "norm.weight"))), 0.1)
            elif name.endswith("gamma"):
                weight.normal_(0, 0.3)
            else:  # so that what an image shows neither fades nor grows on its way
                weight.normal_(0, 1.5 * weight[0].numel() ** -0.5)
        for name, buffer in tower.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)


def _processor_class(model: str) -> Any:
    import transformers

    return {
        "llava": transformers.LlavaProcessor,
        "vipllava": transformers.LlavaProcessor,
        "fast_vlm": transformers.LlavaProcessor,
        "llava_next_video": transformers.LlavaNextProcessor,
        "llava_next": transformers.LlavaNextProcessor,
        "llava_onevision": transformers.LlavaOnevisionProcessor,
    }[model]


def _model_class(model: str) -> Any:
    import transformers

    return {
        "llava": transformers.LlavaForConditionalGeneration,
        "vipllava": transformers.VipLlavaForConditionalGeneration,
        "fast_vlm": transformers.FastVlmForConditionalGeneration,
        "llava_next_video": transformers.LlavaNextVideoForConditionalGeneration,
        "llava_next": transformers.LlavaNextForConditionalGeneration,
        "llava_onevision": transformers.LlavaOnevisionForConditionalGeneration,
    }[model]


def _tokenizer(path: Path, family: Family) -> Any:
    """One token a byte, and the special tokens of the family at their places."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    options: dict[str, Any] = {}
    if family.vocabulary in ("llama", "video", "pixtral", "yi"):
        specials = ["<unk>", "<s>", "</s>"]
        tokens = specials + bytes_
        tokenizer = Tokenizer(
            models.BPE(
                {t: i for i, t in enumerate(tokens)}, [], byte_fallback=True, unk_token="<unk>"
            )
        )
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")]
        )
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
        options = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        added = ["<image>", "<pad>"]
        if family.vocabulary == "video":
            added = ["<image>", "<video>", "<pad>"]
        if family.vocabulary == "pixtral":
            added = ["<image>", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]", "<pad>"]
        if family.vocabulary == "yi":
            added = ["<|im_start|>", "<|im_end|>", *added]
        options["pad_token"] = "<pad>"
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        specials = []
        if family.vocabulary == "llama3":
            added = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"]
            added += ["<|end_header_id|>", "<|eot_id|>", "<image>", "<pad>"]
            options = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
            tokenizer.post_processor = processors.TemplateProcessing(
                "<|begin_of_text|> $A", None, [("<|begin_of_text|>", 256)]
            )
            options["pad_token"] = "<pad>"
        else:
            added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
            options = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer.add_special_tokens([*specials, *added])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens={"image_token": "<image>"}, **options
    )
    fast.save_pretrained(path)
    return fast


def _config(family: Family, tokenizer: Any) -> Any:
    import transformers

    text = {
        "model_type": "llama",
        # Rows that belong to no token, as all published checkpoints have some.
        "vocab_size": len(tokenizer) + 6,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.3,
        **family.text,
    }
    side = 32 if family.model in ("llava", "vipllava") else 16
    clip = family.tower == "clip"
    vision = {
        "model_type": "clip_vision_model" if clip else "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": side if clip else side + 3,  # 384 is no multiple of SigLIP's 14 either
        "patch_size": 8,
        "initializer_range": 0.3,
        **({"initializer_factor": 12.0} if clip else {"vision_use_head": False}),
    }
    if family.tower == "pixtral":
        vision |= {"model_type": "pixtral", "image_size": 64, "head_dim": 8}
        del vision["vision_use_head"]
    common: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2 if clip else -1,
        "vision_feature_select_strategy": "default" if clip else "full",
        "tie_word_embeddings": text.get("tie_word_embeddings", False),
        **family.more,
    }
    if family.tower == "fastvit":
        common["vision_config"] = FASTVIT
        return transformers.FastVlmConfig(**common)
    if family.model == "vipllava":
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            del common[name]
        return transformers.VipLlavaConfig(**common)
    if family.model == "llava_next_video":
        return transformers.LlavaNextVideoConfig(
            image_grid_pinpoints=GRIDS,
            video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
            **common,
        )
    if family.model == "llava":
        return transformers.LlavaConfig(**common)
    if family.model == "llava_next":
        return transformers.LlavaNextConfig(image_grid_pinpoints=_grids(family), **common)
    return transformers.LlavaOnevisionConfig(
        image_grid_pinpoints=MANY_GRIDS,
        vision_aspect_ratio="anyres_max_2",
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        **common,
    )


def _grids(family: Family) -> list[list[int]]:
    """Multiples of the tower's view, which is 19 with SigLIP."""
    side = 16 if family.tower == "clip" else 19
    return [[a // 16 * side, b // 16 * side] for a, b in GRIDS]


def _image_processor(family: Family) -> Any:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    if family.tower == "pixtral":
        from transformers.models.pixtral.image_processing_pil_pixtral import (
            PixtralImageProcessorPil,
        )

        patch = {"height": 8, "width": 8}
        return PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size=patch)
    if family.tower == "fastvit":
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        return CLIPImageProcessorPil(
            size={"shortest_edge": FASTVIT_SIDE},
            crop_size={"height": FASTVIT_SIDE, "width": FASTVIT_SIDE},
            image_mean=[0.0, 0.0, 0.0],
            image_std=[1.0, 1.0, 1.0],
        )
    half = [0.5, 0.5, 0.5]
    if family.model in ("llava_next", "llava_next_video"):
        side = 16 if family.tower == "clip" else 19
        return LlavaNextImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=_grids(family),
        )
    if family.model == "llava_onevision":
        return LlavaOnevisionImageProcessorPil(
            size={"height": 19, "width": 19},
            image_mean=half,
            image_std=half,
            image_grid_pinpoints=MANY_GRIDS,
        )
    if family.tower == "siglip":
        return SiglipImageProcessorPil(
            size={"height": 35, "width": 35}, image_mean=half, image_std=half
        )
    return LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
