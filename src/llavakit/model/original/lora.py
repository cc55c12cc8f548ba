"""LoRA adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685) merged as they are read.

Files are those of PEFT: ``adapter_config.json`` and ``adapter_model``.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.errors import CheckpointError
from llavakit.model.json_files import read_json
from llavakit.model.original.directories import ADAPTER_CONFIG, ADAPTERS, first_of
from llavakit.model.original.tensors import Stored, Tensors, open_file

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "base_model.model."
LAYER = re.compile(r"(?P<layer>.+)\.lora_(?P<part>[AB])(\.default)?\.weight")
"""Name of a matrix of an adapter: its layer, and which of the two it is."""


def merge_lora(tensors: Tensors, path: Path) -> Tensors:
    """The same tensors with the adapter of a directory added: ``W + scale * B @ A``.

    The sum is made in fp32, when a tensor is read, and rounded to the type that the base's files
    hold, as the original's merge is (PEFT adds in place to weights of that type): the model was
    tried with the rounded sum.

    Args:
        tensors: the base model's, under the names that the adapter was trained with.
        path: the adapter's directory.

    Raises:
        CheckpointError: files are missing or damaged, a kind of adapter that is not known, or
            a base that the adapter does not fit.
    """
    settings = read_json(path / ADAPTER_CONFIG)
    check_kind(settings, path)
    file = first_of(path, ADAPTERS)
    assert file is not None  # parts_of has looked
    halves: dict[str, dict[str, Stored]] = {}
    merged = dict(tensors)
    for key, stored in open_file(file).items():
        name = key.removeprefix(_PREFIX)
        found = LAYER.fullmatch(name)
        if found:
            halves.setdefault(found["layer"], {})[found["part"]] = stored
        elif "lora_" in name:
            raise CheckpointError(
                f"{file} holds {key}, an adapter that llavakit cannot merge; merge it into its "
                "base with PEFT first."
            )
        else:  # a module that was trained as a whole, or a bias
            merged[name.replace(".modules_to_save", "").replace(".default", "")] = stored
    for layer, pair in halves.items():
        if len(pair) < 2:
            raise CheckpointError(f"{file} lacks one half of {layer}; copy it again.")
        merged[f"{layer}.weight"] = _merged(merged, layer, pair, settings, path)
    return merged


def check_kind(settings: dict[str, Any], path: Path) -> None:
    """Raise a ``CheckpointError`` for adapters of any kind but plain LoRA."""
    if settings.get("peft_type", "LORA") != "LORA" or settings.get("use_dora"):
        kind = "DORA" if settings.get("use_dora") else settings["peft_type"]
        raise CheckpointError(
            f"{path / ADAPTER_CONFIG} describes a {kind} adapter, and only LORA is known; merge "
            "it into its base with PEFT first."
        )


def _merged(
    tensors: Tensors, layer: str, pair: dict[str, Stored], settings: dict[str, Any], path: Path
) -> Stored:
    weight, down, up = tensors.get(f"{layer}.weight"), pair["A"], pair["B"]
    turned = bool(settings.get("fan_in_fan_out"))
    product = (up.shape[0], down.shape[1])
    if weight is None or weight.shape != (product[::-1] if turned else product):
        has = "has no such layer" if weight is None else f"has {list(weight.shape)}"
        raise CheckpointError(
            f"The LoRA in {path} does not fit its base model: {layer} is {list(product)} there, "
            f"and the base {has}; name the model that it was trained on with model_base=."
        )
    scale = scale_of(settings, layer, rank=down.shape[0])

    def read() -> Tensor:
        base = weight.read()
        added = up.read().float() @ down.read().float()
        return base.float().add(added.T if turned else added, alpha=scale).to(base.dtype)

    return Stored(weight.shape, read)


def scale_of(settings: dict[str, Any], layer: str, rank: int) -> float:
    """Return the factor of a layer's adapter, by what ``adapter_config.json`` holds."""
    alpha = settings.get("lora_alpha", 8)  # PEFT's default
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
