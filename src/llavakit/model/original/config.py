"""What the ``config.json`` of an original checkpoint says, and the same in HF's terms.

Names and defaults are those of the original's ``llava/model/llava_arch.py``,
``llava/model/builder.py`` and ``llava/mm_utils.py`` at c121f04.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llavakit.errors import CheckpointError
from llavakit.model.original import fastvit
from llavakit.model.original.fastvit import side_of

TEXT_TYPES = {
    "llava_llama": "llama",
    "llava": "llama",  # until the end of 2023; HF's own models are called so today
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
    "llava_qwen2": "qwen2",  # FastVLM
}
"""The language model of each ``model_type``."""

UNSUPPORTED = {"llava_mpt", "llava_gemma", "llava_mixtral"}

Merge = Literal["flat", "spatial", "spatial_unpad"]
"""How the views of one image become one row of features."""

IM_PATCH, IM_START, IM_END = "<im_patch>", "<im_start>", "<im_end>"

ROW_MULTIPLE = 64
"""Rows of the embedding come in whole blocks, which GPUs multiply several times faster."""

# What the original's files may say of the language model; the rest is about training.
_TEXT_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings"),
    *("rms_norm_eps", "rope_theta", "rope_scaling", "attention_bias", "mlp_bias"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "initializer_range"),
    *("bos_token_id", "eos_token_id", "tie_word_embeddings"),
)


def is_original(settings: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is one of the original's; ``model_type`` alone does not decide."""
    # Tools around FastVLM add an empty one.
    if "text_config" in settings or settings.get("vision_config"):
        return False
    known = {*TEXT_TYPES, *UNSUPPORTED} - {"llava"}
    return settings.get("model_type") in known or any(key.startswith("mm_") for key in settings)


@dataclass(frozen=True, slots=True)
class OriginalConfig:
    """What matters of an original ``config.json``.

    Attributes:
        file: where it was read, for messages.
        text: settings of the language model, for HF's configuration class.
        tower: the vision tower: a hub id, or a directory (``mm_vision_tower``).
        layer: index of the vision tower's hidden states that are read.
        keeps_cls: whether the CLS feature is kept (``cls_patch``).
        projector: ``"linear"``, ``"identity"`` or ``"mlpNx_gelu"``.
        anyres: whether images become several views.
        pads: whether images are padded to squares; they are cropped if not.
        grids: (width, height) in pixels of what ``anyres`` chooses from, in order.
        merge: how views are put together; only read with ``anyres``.
        marks_images: images stand between ``<im_start>`` and ``<im_end>``.
        patch_token: the tokenizer has ``<im_patch>`` too, which no prompt uses.
    """

    file: Path
    text: dict[str, Any]
    tower: str
    layer: int
    keeps_cls: bool
    projector: str
    anyres: bool
    pads: bool
    grids: tuple[tuple[int, int], ...]
    merge: Merge
    marks_images: bool
    patch_token: bool

    @classmethod
    def of(cls, settings: Mapping[str, Any], file: Path) -> OriginalConfig:
        """What the settings of a file say.

        Raises:
            CheckpointError: something that llavakit does not know.
        """
        kind = settings.get("model_type")
        if kind in UNSUPPORTED:
            raise CheckpointError(
                f"{file}: models of type {kind!r} are not supported; use a LLaVA model on Llama, "
                "Vicuna, Mistral or Qwen2, such as llava-1.5-7b."
            )
        aspect = settings.get("image_aspect_ratio")
        if aspect not in (None, "square", "pad", "anyres"):
            raise _unknown(file, "image_aspect_ratio", aspect, "pad, anyres or square")
        feature = settings.get("mm_vision_select_feature", "patch")
        if feature not in ("patch", "cls_patch"):
            raise _unknown(file, "mm_vision_select_feature", feature, "patch or cls_patch")
        merge = settings.get("mm_patch_merge_type", "flat")
        if merge not in ("flat", "spatial", "spatial_unpad"):
            raise _unknown(file, "mm_patch_merge_type", merge, "flat, spatial or spatial_unpad")
        if aspect == "anyres" and merge != "flat" and feature == "cls_patch":
            raise CheckpointError(
                f"{file} asks for cls_patch features laid out by {merge!r}, which have no place "
                "for the CLS feature; the original cannot run such a model either."
            )
        projector = settings.get("mm_projector_type") or "linear"
        if projector_depth(projector) is None:
            raise _unknown(file, "mm_projector_type", projector, "linear, identity or mlp2x_gelu")
        tower = settings.get("mm_vision_tower", settings.get("vision_tower"))
        if isinstance(tower, list) and len(tower) == 1:
            tower = tower[0]
        if not isinstance(tower, str) or not tower:
            raise CheckpointError(
                f"{file} names no vision tower; set mm_vision_tower to the directory or hub id "
                "of the one that the model was trained with."
            )
        if aspect == "anyres" and side_of(tower) is not None:
            raise CheckpointError(
                f"{file} asks for tiles (anyres) with the vision tower {tower!r}, which is "
                "supported for pad and square images only; use fastvlm-0.5b."
            )
        return cls(
            file=file,
            text=_text_settings(settings, file),
            tower=tower,
            layer=int(settings.get("mm_vision_select_layer", -2)),
            keeps_cls=feature == "cls_patch",
            projector=projector,
            anyres=aspect == "anyres",
            pads=aspect == "pad",
            grids=_grids(settings, file) if aspect == "anyres" else (),
            merge=merge,
            marks_images=bool(settings.get("mm_use_im_start_end", False)),
            patch_token=bool(settings.get("mm_use_im_patch_token", True)),
        )

    @property
    def fastvit_side(self) -> int | None:
        """Pixels along one side of a view of FastVLM's tower; None for CLIP's towers."""
        return side_of(self.tower)

    @property
    def image_text(self) -> str:
        """What stands for an image in the text of a prompt."""
        return f"{IM_START}<image>{IM_END}" if self.marks_images else "<image>"

    @property
    def added_tokens(self) -> list[str]:
        """Tokens that the original adds to the tokenizer when it loads the model, in order."""
        marks = [IM_START, IM_END] if self.marks_images else []
        return [IM_PATCH, *marks] if self.patch_token else marks

    @property
    def turned_grids(self) -> list[list[int]]:
        """The grids as HF reads them, (height, width).

        Taken as they are, small images would get the grid of the same image turned.
        """
        return [[height, width] for width, height in self.grids]

    def to_hf(self, vision: Any, tokens: int, image_id: int) -> Any:
        """The HF configuration: ``LlavaNextConfig`` for anyres models, else ``LlavaConfig``.

        With FastVLM's tower it is a ``FastVlmConfig``.

        Args:
            vision: HF configuration of the vision tower; None for FastVLM's.
            tokens: how many tokens the tokenizer has, the image token and padding included.
            image_id: id of the image token.
        """
        from transformers import LlavaConfig, LlavaNextConfig

        rows = -(-tokens // ROW_MULTIPLE) * ROW_MULTIPLE
        if vision is None:
            return self._fastvlm(rows, image_id)
        side = vision.image_size // vision.patch_size
        common: dict[str, Any] = {
            "vision_config": vision.to_dict(),
            "text_config": {**self.text, "vocab_size": rows},
            "image_token_index": image_id,
            "vision_feature_layer": self.layer,
            "vision_feature_select_strategy": "full" if self.keeps_cls else "default",
            "projector_hidden_act": "gelu"
            if (projector_depth(self.projector) or 0) > 1
            else "linear",
            "image_seq_length": side * side + self.keeps_cls,
            "tie_word_embeddings": bool(self.text.get("tie_word_embeddings", False)),
        }
        if not self.anyres:
            return LlavaConfig(**common)
        return LlavaNextConfig(**common, image_grid_pinpoints=self.turned_grids)

    def _fastvlm(self, rows: int, image_id: int) -> Any:
        from transformers import FastVlmConfig

        from llavakit.model.fastvit import own_tower

        assert self.fastvit_side is not None
        config = FastVlmConfig(
            vision_config=fastvit.settings(),
            text_config={**self.text, "vocab_size": rows},
            image_token_index=image_id,
            projector_hidden_act="gelu" if (projector_depth(self.projector) or 0) > 1 else "linear",
            tie_word_embeddings=bool(self.text.get("tie_word_embeddings", False)),
        )
        own_tower(self.file.parent, config, self.fastvit_side)
        config.image_seq_length = (self.fastvit_side // config.vision_config.patch_size) ** 2
        return config


def projector_depth(name: str) -> int | None:
    """Linear layers of a projector: 0 for ``identity``; None for an unknown name."""
    if name in ("linear", "identity"):
        return int(name == "linear")
    depth = re.fullmatch(r"mlp(\d+)x_gelu", name)
    return int(depth[1]) if depth and int(depth[1]) > 0 else None


def _text_settings(settings: Mapping[str, Any], file: Path) -> dict[str, Any]:
    kind = settings.get("model_type")
    if kind not in TEXT_TYPES:
        known = ", ".join(TEXT_TYPES)
        raise _unknown(file, "model_type", kind, known)
    text = {key: settings[key] for key in _TEXT_KEYS if settings.get(key) is not None}
    missing = [key for key in _TEXT_KEYS[:4] if key not in text]
    if missing:
        raise CheckpointError(
            f"{file} lacks {missing[0]}; copy the config.json that belongs to the weights."
        )
    text["model_type"] = TEXT_TYPES[kind]
    if "sliding_window" in settings:  # None is not the class's default
        text["sliding_window"] = settings["sliding_window"]
    return text


def _grids(settings: Mapping[str, Any], file: Path) -> tuple[tuple[int, int], ...]:
    written = settings.get("image_grid_pinpoints")
    try:
        points: Any = ast.literal_eval(written) if isinstance(written, str) else written
        grids = tuple((int(width), int(height)) for width, height in points)
    except (ValueError, TypeError, SyntaxError):
        grids = ()
    if not grids:
        raise _unknown(file, "image_grid_pinpoints", written, "a list of [width, height]")
    return grids


def _unknown(file: Path, key: str, value: Any, known: str) -> CheckpointError:
    return CheckpointError(
        f"{file} has {key}={value!r}, which llavakit does not know; use {known}."
    )
