"""Which model types in HF format can be run; everything else is refused by its name.

Read from ``config.json`` alone, before transformers or any weight is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llavakit.errors import CheckpointError

CLIP, SIGLIP, PIXTRAL = "clip_vision_model", "siglip_vision_model", "pixtral"
TIMM = "timm_wrapper"

FAST_VLM = "fast_vlm"

TOWERS: dict[str, tuple[str, ...]] = {
    "llava": (CLIP, SIGLIP, PIXTRAL),
    "llava_next": (CLIP, SIGLIP),
    "llava_next_video": (CLIP, SIGLIP),
    "llava_onevision": (SIGLIP,),
    "vipllava": (CLIP,),
    FAST_VLM: (TIMM,),  # of timm's towers one, see model/fastvit.py
}
"""The vision towers of each model type whose features the layouts count."""

SINGLE_VIEW = ("llava", "vipllava", FAST_VLM)
"""Model types that see each image as one view."""

ONEVISION = "llava_onevision"
VIDEO_TYPES = ("llava_next_video", ONEVISION)
"""Model types that take videos."""

_NEAREST = {
    "llava_onevision1_5": "llava-onevision-qwen2-7b",
    "llavaonevision1_5": "llava-onevision-qwen2-7b",
    "llava_mpt": "llava-1.5-7b",
    "mpt": "llava-1.5-7b",
    "video_llava": "llava-onevision-qwen2-7b",
    "llava_qwen2": "fastvlm-0.5b",
    "granite4_vision": "ibm-granite/granite-vision-3.3-2b",
}
"""What works and is nearest to a model that does not."""

_ELSE = (
    "a LLaVA, LLaVA-NeXT, LLaVA-OneVision, ViP-LLaVA or FastVLM model, such as "
    "llava-v1.6-mistral-7b"
)


def check_family(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse what cannot be run.

    Args:
        path: the checkpoint's directory.
        settings: its ``config.json``.

    Raises:
        CheckpointError: the model type is not known, it comes with code of its own, or its
            vision tower is not one that this type is known to have.
    """
    kind = str(settings.get("model_type"))
    if kind not in TOWERS:
        remote = (
            " and its config.json names code of its own (auto_map), which llavakit never runs"
            if settings.get("auto_map")
            else ""
        )
        raise CheckpointError(
            f"{path} holds a model of type {kind!r}, which llavakit does not know{remote}; use "
            f"{_NEAREST.get(kind.lower(), _ELSE)}."
        )
    vision = settings.get("vision_config")
    tower = vision.get("model_type") if isinstance(vision, Mapping) else None
    # Without a name it is the type's own default, which is its first tower.
    if tower is not None and tower not in TOWERS[kind]:
        raise CheckpointError(
            f"{path} has a vision tower of type {tower!r}, and of models of type {kind!r} only "
            f"those with {' or '.join(TOWERS[kind])} are supported; use "
            f"{_NEAREST.get(str(tower).lower(), _ELSE)}."
        )
