"""What a run of training starts from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.errors import CheckpointError, ParameterError
from llavakit.model.adapter import is_hf_adapter
from llavakit.model.json_files import read_json
from llavakit.model.layout import RowsLayout
from llavakit.model.loader import load_reader, settings_of
from llavakit.model.locate import locate
from llavakit.model.original.config import is_original
from llavakit.model.original.directories import PROJECTORS, first_of
from llavakit.model.original.tensors import has_weights
from llavakit.model.reader import Reader
from llavakit.training.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

START = "start"
"""The directory in ``out`` of a projector to start from, where one had to be made."""

PROJECTOR = "mlp2x_gelu"

_ORIGINAL_TYPES = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen"}


@dataclass(frozen=True, slots=True)
class Start:
    """A checkpoint to train.

    Attributes:
        reader: with the template to train with.
        projector_of: settings of the original's ``config.json``, if an aligned projector is
            written in its format: the language model is then the base, and not copied.
        base: how the model that an adapter needs is called.
    """

    reader: Reader
    projector_of: dict[str, Any] | None
    base: str


def start_from(config: TrainConfig) -> Start:
    """Find what a configuration names.

    Raises:
        CheckpointError: it cannot be trained.
        ModelNotFoundError: there is no such model.
        ParameterError: settings that do not fit the checkpoint.
    """
    base: Path | None
    if config.vision_tower is not None:
        path, base = new_projector(config), locate(config.model, original=True)
    else:
        path = locate(config.model)
        base = None if config.model_base is None else locate(config.model_base, original=True)
    if is_hf_adapter(path):
        raise CheckpointError(
            f"{config.model} is an adapter; merge it into its base with `llavakit export`, and "
            "train the result."
        )
    settings = settings_of(path)
    if not is_original(settings):
        if config.image_aspect_ratio is not None:
            raise ParameterError(
                "image_aspect_ratio is for checkpoints of the original's; leave it out."
            )
        reader = load_reader(path, conv_mode=config.conv_mode, name=config.model, model_base=base)
        if isinstance(reader.layout, RowsLayout):
            raise CheckpointError(
                f"{config.model} has Pixtral's vision tower, whose images of many shapes are not "
                "trained here; train a LLaVA with a CLIP or SigLIP tower."
            )
        return Start(reader, None, config.model)
    if config.vision_tower is None and config.image_aspect_ratio is not None:
        path = _with_aspect(path, config)
        settings = settings_of(path)
    kind = settings.get("mm_projector_type", "linear")
    if kind != PROJECTOR:
        raise CheckpointError(
            f"{path} has a projector of type {kind}, and only {PROJECTOR} can be trained."
        )
    if config.stage in ("lora", "qlora") and base is not None and not has_weights(path):
        raise CheckpointError(
            f"An adapter on {config.model} would need both it and its base ever after; make one "
            "model of them with `llavakit export`, and train that."
        )
    reader = load_reader(path, conv_mode=config.conv_mode, name=config.model, model_base=base)
    return Start(reader, settings if config.stage == "align" else None, config.model)


def new_projector(config: TrainConfig) -> Path:
    """A directory in the original's format with a random projector, for a language model.

    It is made once; a run that is resumed finds it.

    Raises:
        CheckpointError: the language model is of a kind that is not known.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig

    path = Path(config.out) / START
    if (path / "config.json").is_file():
        return path
    assert config.vision_tower is not None
    base = locate(config.model, original=True)
    settings = read_json(base / "config.json")
    kind = _ORIGINAL_TYPES.get(str(settings.get("model_type")))
    if kind is None:
        raise CheckpointError(
            f"{config.model} is a {settings.get('model_type')!r} model, and a projector can be "
            f"put before {', '.join(_ORIGINAL_TYPES)} only."
        )
    tower = Path(config.vision_tower).expanduser()
    named = str(tower.absolute()) if tower.is_dir() else config.vision_tower
    vision = AutoConfig.from_pretrained(named)
    seen = int(getattr(vision, "vision_config", vision).hidden_size)
    hidden = int(settings["hidden_size"])
    settings |= {
        "model_type": kind,
        "mm_vision_tower": named,
        "mm_hidden_size": seen,
        "mm_projector_type": PROJECTOR,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": config.image_aspect_ratio or "square",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        layers = {"0": torch.nn.Linear(seen, hidden), "2": torch.nn.Linear(hidden, hidden)}
    state: dict[str, Tensor] = {
        f"model.mm_projector.{number}.{name}": weight.detach().clone()
        for number, layer in layers.items()
        for name, weight in layer.named_parameters()
    }
    path.mkdir(parents=True, exist_ok=True)
    save_file(state, path / PROJECTORS[0], metadata={"format": "pt"})
    _write(path / "config.json", settings)
    return path


def _with_aspect(path: Path, config: TrainConfig) -> Path:
    """A projector's directory that prepares images in another way."""
    projector = first_of(path, PROJECTORS)
    if projector is None or has_weights(path):
        raise ParameterError(
            "image_aspect_ratio is for checkpoints that hold only a projector; set it in the "
            "config.json of others."
        )
    made = Path(config.out) / START
    made.mkdir(parents=True, exist_ok=True)
    (made / projector.name).write_bytes(projector.read_bytes())
    settings = {**settings_of(path), "image_aspect_ratio": config.image_aspect_ratio}
    tower = settings.get("mm_vision_tower")
    if isinstance(tower, str):
        found = [root / tower for root in (path, *path.absolute().parents)]
        there = next((one for one in found if (one / "config.json").is_file()), None)
        settings["mm_vision_tower"] = tower if there is None else str(there.absolute())
    _write(made / "config.json", settings)
    return made


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
