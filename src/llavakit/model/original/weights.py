"""An original checkpoint's weights under HF's names, one tensor at a time.

The names are those that transformers writes on disk (``model.vision_tower.vision_model.``),
which every version of it and vLLM read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llavakit.errors import CheckpointError
from llavakit.model.original import fastvit
from llavakit.model.original.config import projector_depth
from llavakit.model.original.directories import (
    EXTRAS,
    PROJECTORS,
    TOWER_INSIDE,
    CheckpointDirectories,
    first_of,
)
from llavakit.model.original.lora import merge_lora
from llavakit.model.original.tensors import Stored, Tensors, open_directory, open_file

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

VISION = "model.vision_tower."
PROJECTOR = "model.multi_modal_projector."
EMBEDDINGS = ("model.language_model.embed_tokens.weight", "lm_head.weight")
NEWLINE = "model.image_newline"

# Tables that transformers computes by itself today.
_COMPUTED = re.compile(r".*\.(rotary_emb\.inv_freq|embeddings\.position_ids)")
_LANGUAGE = re.compile(r"model\.((?:embed_tokens|layers|norm)\..+)")

_LAYER = re.compile(r"model\.language_model\.layers\.(\d+)\.")

_INSIDE_VISION_MODEL = ("embeddings", "encoder", "pre_layrnorm", "post_layernorm", "head")

Shapes = Mapping[str, tuple[int, ...]]


def on_disk(name: str) -> str:
    """Return a parameter's name on disk; newer classes of CLIP and SigLIP have one level less."""
    inside = name.removeprefix(VISION)
    if inside != name and inside.partition(".")[0] in _INSIDE_VISION_MODEL:
        return f"{VISION}vision_model.{inside}"
    return name


def hf_tensors(parts: CheckpointDirectories, tower: Path, shapes: Shapes, known: int) -> Tensors:
    """All tensors of the HF model.

    Args:
        parts: the checkpoint.
        tower: directory of the vision tower, for checkpoints that do not hold it themselves.
        shapes: of the HF model's parameters, by their names on disk.
        known: how many tokens the original's tokenizer had; further rows were never trained.

    Raises:
        CheckpointError: tensors are missing, or do not fit the configuration.
    """
    tensors = {name: stored for key, stored in _original(parts).items() if (name := _renamed(key))}
    beside = parts.config.fastvit_side is None
    if beside and any(name not in tensors for name in shapes if name.startswith(VISION)):
        tensors = _of_tower(tower) | tensors
    _shape_projector(tensors, parts, shapes)
    if NEWLINE in shapes and parts.config.merge != "spatial_unpad":
        tensors.setdefault(NEWLINE, _zeros(shapes[NEWLINE]))  # never read
    for name in EMBEDDINGS:
        if name in tensors and name in shapes:
            tensors[name] = _with_rows(tensors[name], known, shapes[name][0])
    if parts.config.text.get("tie_word_embeddings"):
        tensors.pop(EMBEDDINGS[1], None)
    unused = sorted(set(tensors) - set(shapes))
    deepest = int(parts.config.text["num_hidden_layers"])
    if any(_layer(name) >= deepest for name in unused):
        raise CheckpointError(
            f"{parts.language} has more than the {deepest} layers that the config.json of "
            f"{parts.path} names; give the base that it was trained on with model_base=."
        )
    if unused:
        log.warning(
            "%s holds %d tensors that the model has no place for, among them %s",
            *(parts.path, len(unused), unused[0]),
        )
    _check(tensors, shapes, parts)
    return {name: stored for name, stored in tensors.items() if name in shapes}


def _layer(name: str) -> int:
    """The language model's layer that a tensor belongs to; -1 for all others."""
    found = _LAYER.match(name)
    return int(found[1]) if found else -1


def _original(parts: CheckpointDirectories) -> Tensors:
    """Tensors under the original's names, with what was trained on top of the base."""
    tensors = open_directory(parts.language)
    if parts.kind == "lora":
        file = first_of(parts.path, EXTRAS)
        if file is not None:
            tensors |= {_unwrapped(key): one for key, one in open_file(file).items()}
        return merge_lora(tensors, parts.path)
    if parts.kind == "projector":
        file = first_of(parts.path, PROJECTORS)
        assert file is not None  # parts_of has looked
        tensors |= {_unwrapped(key): one for key, one in open_file(file).items()}
    return tensors


def _unwrapped(key: str) -> str:
    """A name without what PEFT and the Trainer put around the model."""
    key = key.removeprefix("base_model.")
    while key.startswith("model.model."):
        key = key.removeprefix("model.")
    if key.startswith("model.lm_head."):
        key = key.removeprefix("model.")
    return f"model.{key}" if key.startswith("mm_projector.") else key


def _renamed(key: str) -> str | None:
    """HF's name for one of the original's; None for what is not read from files."""
    if _COMPUTED.fullmatch(key):
        return None
    if key.startswith(fastvit.INSIDE):
        inside = fastvit.renamed(key)
        return None if inside is None else VISION + inside
    if key.startswith(TOWER_INSIDE):
        return VISION + key.removeprefix(TOWER_INSIDE)
    if key.startswith("model.mm_projector."):
        return PROJECTOR + key.removeprefix("model.mm_projector.")
    language = _LANGUAGE.fullmatch(key)
    return f"model.language_model.{language[1]}" if language else key


def _of_tower(tower: Path) -> Tensors:
    """The vision half of a CLIP model, which may be stored with its text half."""
    return {
        VISION + key: stored
        for key, stored in open_directory(tower).items()
        if key.startswith("vision_model.") and not _COMPUTED.fullmatch(key)
    }


def _shape_projector(tensors: Tensors, parts: CheckpointDirectories, shapes: Shapes) -> None:
    """HF's projector has two layers; one layer, or none, is two with an identity behind."""
    depth = projector_depth(parts.config.projector) or 0
    if depth > 2:
        return
    names = {"0": "linear_1", "2": "linear_2"}
    if depth < 2:
        width, seen = shapes[f"{PROJECTOR}linear_1.weight"]
        for layer in ("linear_1", "linear_2")[depth:]:
            tensors[f"{PROJECTOR}{layer}.weight"] = _identity(width)
            tensors[f"{PROJECTOR}{layer}.bias"] = _zeros((width,))
        names = {"": "linear_1", "0": "linear_1"}
        if depth == 0 and width != seen:
            raise CheckpointError(
                f"{parts.config.file} has no projector (mm_projector_type='identity'), but the "
                f"vision tower has {seen} channels and the language model {width}; copy the "
                "config.json that belongs to the weights."
            )
    for old, new in names.items():
        for kind in ("weight", "bias"):
            stored = tensors.pop(f"{PROJECTOR}{old}{'.' if old else ''}{kind}", None)
            if stored is not None:
                tensors[f"{PROJECTOR}{new}.{kind}"] = stored


def _identity(size: int) -> Stored:
    def read() -> Tensor:
        import torch

        return torch.eye(size)

    return Stored((size, size), read)


def _zeros(shape: tuple[int, ...]) -> Stored:
    def read() -> Tensor:
        import torch

        return torch.zeros(shape)

    return Stored(shape, read)


def _with_rows(stored: Stored, known: int, rows: int) -> Stored:
    """The rows of known tokens, and behind them their mean.

    The score of the mean is the mean of all scores: it never is the highest, so that programs
    which do not forbid these rows (vLLM) do not draw them either.
    """
    kept = min(known, stored.shape[0])

    def read() -> Tensor:
        import torch

        trained = stored.read()[:kept]
        mean = trained.float().mean(0, keepdim=True).to(trained.dtype)
        return torch.cat([trained, mean.expand(rows - kept, -1)])

    return Stored((rows, *stored.shape[1:]), read)


def _check(tensors: Tensors, shapes: Shapes, parts: CheckpointDirectories) -> None:
    tied = parts.config.text.get("tie_word_embeddings")
    missing = [name for name in shapes if name not in tensors and not (tied and "lm_head" in name)]
    if missing:
        raise CheckpointError(
            f"{' and '.join(map(str, parts.directories))} lack {len(missing)} tensors that "
            f"{parts.config.file} declares, among them {missing[0]}; files are missing or do not "
            "belong together, download or copy them again."
        )
    for name, shape in shapes.items():
        if name in tensors and tensors[name].shape != shape:
            difference = f"{name} is {list(tensors[name].shape)} and {parts.config.file} asks for"
            if parts.kind != "full":
                raise CheckpointError(
                    f"The base model {parts.language} does not fit {parts.path}: {difference} "
                    f"{list(shape)}; name the model that it was trained on with model_base=."
                )
            raise CheckpointError(
                f"The weights in {parts.path} do not fit its configuration: {difference} "
                f"{list(shape)}; copy the config.json that belongs to them."
            )
