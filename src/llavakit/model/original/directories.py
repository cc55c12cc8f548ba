"""The directories that an original checkpoint is made of: its own, a base model, a tower."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llavakit.errors import CheckpointError, ModelNotFoundError
from llavakit.model.base_model import check_base
from llavakit.model.json_files import read_json
from llavakit.model.locate import download, looks_like_hub_id
from llavakit.model.original.config import OriginalConfig, is_original
from llavakit.model.original.tensors import has_weights, names_in

TOWER_INSIDE = "model.vision_tower.vision_tower."
"""Begins the names of the vision tower's weights in checkpoints that hold them themselves."""

TOWERS = Path(__file__).parent / "towers"
DESCRIBED = ("openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14-336")
"""Vision towers whose small files come with llavakit. LLaVA 1.6 holds the weights of its tower
itself, so that it needs nothing else of them."""

Kind = Literal["full", "lora", "projector"]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
PROJECTORS = ("mm_projector.safetensors", "mm_projector.bin")
EXTRAS = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")


@dataclass(frozen=True, slots=True)
class CheckpointDirectories:
    """A checkpoint and what it needs beside itself.

    Attributes:
        kind: all weights, a LoRA, or the projector alone.
        path: its directory.
        language: where language model and tokenizer are: the base model, or ``path``.
        config: what its ``config.json`` says.
    """

    kind: Kind
    path: Path
    language: Path
    config: OriginalConfig

    @property
    def directories(self) -> tuple[Path, ...]:
        """All of them but the vision tower's."""
        return tuple(dict.fromkeys((self.path, self.language)))


def parts_of(path: Path, base: Path | None) -> CheckpointDirectories:
    """Find out what a directory holds, by its files.

    Raises:
        CheckpointError: a base is missing, or given and not needed; weights are missing.
    """
    settings = read_json(path / "config.json")
    adapter = (path / ADAPTER_CONFIG).is_file()
    if adapter and base is not None and (base / "config.json").is_file():
        beneath = read_json(base / "config.json")
        if is_original(beneath):
            # What its own file leaves out, such as how images are prepared, is as in its base.
            settings = {**beneath, **settings}
    config = OriginalConfig.of(settings, path / "config.json")
    kind = _kind(path)
    if kind == "full":
        if base is not None:
            raise CheckpointError(
                f"model_base was given, but {path} holds all weights itself; leave model_base out."
            )
        return CheckpointDirectories(kind, path, path, config)
    what = "a LoRA" if kind == "lora" else "only a projector"
    if base is None:
        raise CheckpointError(
            f"{path} holds {what} and needs its base model; name it with model_base={_hint(path)}."
        )
    its = read_json(base / "config.json")
    if not is_original(its) and ("text_config" in its or "vision_config" in its):
        raise CheckpointError(
            f"The base model {base} is a vision-language model in HF format; name the language "
            f"model that {path.name} was trained on, or a LLaVA model in the original format."
        )
    if kind == "lora":
        check_base(path, read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path"), base)
    return CheckpointDirectories(kind, path, base, config)


def _kind(path: Path) -> Kind:
    if (path / ADAPTER_CONFIG).is_file():
        if first_of(path, ADAPTERS) is None:
            raise CheckpointError(
                f"{path} has {ADAPTER_CONFIG} but no weights of the adapter; copy its "
                f"{' or '.join(ADAPTERS)} too."
            )
        return "lora"
    if has_weights(path):
        return "full"
    if first_of(path, PROJECTORS) is not None:
        return "projector"
    raise CheckpointError(
        f"{path} holds no weights: neither model.safetensors nor pytorch_model.bin, whole or in "
        f"shards, nor {ADAPTERS[0]}, nor {PROJECTORS[1]}; copy or download them too."
    )


def _hint(path: Path) -> str:
    """What the adapter says it was trained on; a directory elsewhere, more often than not."""
    if not (path / ADAPTER_CONFIG).is_file():
        return ""
    base = read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path")
    return f" (it was trained on {base})" if base else ""


def first_of(path: Path, names: tuple[str, ...]) -> Path | None:
    """The first of several files that exists."""
    return next((path / name for name in names if (path / name).is_file()), None)


def _holds_tower(parts: CheckpointDirectories) -> bool:
    return any(
        name.startswith(TOWER_INSIDE) for path in parts.directories for name in names_in(path)
    )


def find_tower(parts: CheckpointDirectories) -> Path:
    """The directory of the vision tower that the configuration names.

    A relative path is looked for in the checkpoint's directory, in those above it, then the
    same for the base model, and in the current directory; what is no directory is a hub id.

    Raises:
        CheckpointError: there is none.
    """
    name = parts.config.tower
    if parts.config.fastvit_side is not None:  # which is always inside
        return parts.language
    written = Path(name).expanduser()
    around = [root for path in parts.directories for root in (path, *path.absolute().parents)]
    for root in (*around, Path.cwd()):
        found = root / written  # an absolute path stays itself
        if (found / "config.json").is_file():
            return found
    advice = (
        f"put its directory there, or set mm_vision_tower in {parts.config.file} to where it is."
    )
    if not looks_like_hub_id(name):
        raise CheckpointError(f"There is no vision tower at {name}; {advice}")
    inside = _holds_tower(parts)
    if inside and name in DESCRIBED:
        return TOWERS / written.name
    try:
        return download(name, weights=not inside)
    except ModelNotFoundError as error:
        raise CheckpointError(
            f"The vision tower {name} cannot be had; download it where there is a network, and "
            f"set mm_vision_tower in {parts.config.file} to its directory."
        ) from error
