"""FastVLM's vision tower as Apple's code writes its weights, in the names of ours.

Layout: ``FastViT`` in ``llava/model/multimodal_encoder/mobileclip/mci.py`` of
https://github.com/apple/ml-fastvlm, where blocks, halvings and embeddings of places are numbered
in one row. ``mobileclip_l_1024`` names the tower and the pixels along one side of its view.
"""

from __future__ import annotations

import re
from typing import Any

TEMPLATE = "qwen_2"
"""The template that ``predict.py`` takes for all models of that repository."""

INSIDE = "model.vision_tower.vision_tower.model."
"""Begins the names of the tower's weights."""

MODEL_ARGS: dict[str, Any] = {"inference_mode": True}
"""What timm is asked for to make this tower; its sizes are the usual ones."""

_NAME = re.compile(r"mobileclip_l_(\d+)")

_NETWORK = (
    *("stages.0.blocks", "stages.1.downsample", "stages.1.blocks"),
    *("stages.2.downsample", "stages.2.blocks", "stages.3.downsample"),
    *("stages.3.pos_emb", "stages.3.blocks", "stages.4.downsample"),
    *("stages.4.pos_emb", "stages.4.blocks"),
)
_NUMBERED = re.compile(r"network\.(\d+)\.")

_RENAMED = {
    "patch_embed": "stem",
    "conv_exp": "final_conv",
    "convffn": "mlp",
    "lkb_reparam": "reparam_conv",
    "reduce": "fc1",
    "expand": "fc2",
}
_SCALES = ("layer_scale", "layer_scale_1", "layer_scale_2")

_UNREAD = "head."
"""Of CLIP, whose head compares an image with words; the projector reads what stands before it."""


def side_of(tower: str) -> int | None:
    """Return the pixels along one side of a view, by the tower's name; None for other towers."""
    found = _NAME.fullmatch(tower)
    return int(found[1]) if found else None


def renamed(key: str) -> str | None:
    """Return the name of one of the tower's weights within our tower.

    Args:
        key: Apple's name, which begins with :data:`INSIDE`.

    Returns:
        None for what is not read, and for a number that the tower does not have.
    """
    name = key.removeprefix(INSIDE)
    if name.startswith(_UNREAD):
        return None
    numbered = _NUMBERED.match(name)
    if numbered:
        if int(numbered[1]) >= len(_NETWORK):
            return None
        name = f"{_NETWORK[int(numbered[1])]}.{name[numbered.end() :]}"
    parts = [_RENAMED.get(part, part) for part in name.split(".")]
    if parts[-1] in _SCALES:
        parts.append("gamma")
    return "timm_model." + ".".join(parts)


def settings() -> dict[str, Any]:
    """Return the ``vision_config`` of transformers' FastVLM for this tower."""
    from llavakit.model.fastvit import ARCHITECTURE, FastViTSizes

    last = MODEL_ARGS.get("embed_dims", FastViTSizes().embed_dims)[-1]
    return {
        "model_type": "timm_wrapper",
        "architecture": ARCHITECTURE,
        "hidden_size": 2 * last,
        "model_args": dict(MODEL_ARGS),
        "label_names": [],
    }


def processor(side: int, *, pads: bool) -> Any:
    """Return what prepares images for this tower.

    Args:
        side: pixels along one side of a view.
        pads: whether images are padded to squares (in black); they are cropped if not.
    """
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    return LlavaImageProcessorPil(
        do_pad=pads,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
    )
