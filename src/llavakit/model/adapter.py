"""LoRA adapters over models in HF's terms, as PEFT and its trainers write them.

Such a directory holds ``adapter_config.json`` and ``adapter_model.safetensors``, with the names
of HF's classes, and no model. The base may be in HF format or in the original's. Adapters that
the original LLaVA trained have its names, and are read by :mod:`llavakit.model.original`.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from llavakit.errors import CheckpointError, MissingDependencyError, ModelNotFoundError
from llavakit.model.base_model import check_base
from llavakit.model.json_files import read_json
from llavakit.model.locate import locate
from llavakit.model.original.config import is_original
from llavakit.model.original.directories import ADAPTER_CONFIG, ADAPTERS, first_of
from llavakit.model.original.lora import LAYER, check_kind, merge_lora
from llavakit.model.original.tensors import Stored, Tensors, open_file
from llavakit.model.reader import Reader, revision_of

TRAINING = "llavakit_training.json"
"""Beside the weights: with which settings ``llavakit train`` made them."""

ReadBase = Callable[[Path, str | None], Reader]
"""(directory, conv_mode) -> the reader of a whole checkpoint."""

# Names of transformers' classes before version 4.52.
OLD_NAMES = (
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^model\.(multi_modal_projector|vision_tower|image_newline)"), r"\1"),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
)


def is_hf_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter, and not one of the original's."""
    if not (path / ADAPTER_CONFIG).is_file():
        return False
    file = path / "config.json"
    return not (file.is_file() and is_original(read_json(file)))


def read_adapter(
    path: Path, base: Path | None, conv_mode: str | None, read_base: ReadBase
) -> Reader:
    """What reads prompts for an adapter, and builds its base with the adapter in it.

    Args:
        path: the adapter's directory.
        base: directory of its base model; None takes the one that it names, if that is here.
        conv_mode: a conversation template; None takes the one that it was trained with, if
            that is declared, or that of its base.
        read_base: reads the base.

    Raises:
        CheckpointError: the base is not known or no LLaVA model, or the adapter is damaged or
            of a kind that is not known.
    """
    settings = read_json(path / ADAPTER_CONFIG)
    check_kind(settings, path)
    if first_of(path, ADAPTERS) is None:
        raise CheckpointError(
            f"{path} has {ADAPTER_CONFIG} but no weights of the adapter; copy its "
            f"{' or '.join(ADAPTERS)} too."
        )
    if base is not None:
        check_base(path, settings.get("base_model_name_or_path"), base)
    else:
        base = _named_base(settings, path)
    if is_hf_adapter(base):
        raise CheckpointError(
            f"The base model {base} is an adapter itself; merge it first with `llavakit export`."
        )
    reader = read_base(base, conv_mode or _trained_with(path))
    revision = hashlib.sha256(f"{reader.revision} {revision_of([path])}".encode()).hexdigest()[:16]
    return replace(
        reader,
        path=path,
        preprocess=reader.preprocess.of_weights(revision),
        videos=None if reader.videos is None else reader.videos.of_weights(revision),
        revision=revision,
        build=lambda options: _built(reader, path, options),
    )


def _named_base(settings: dict[str, Any], path: Path) -> Path:
    """The base that an adapter names; only what is on this machine, or has a known name."""
    name = settings.get("base_model_name_or_path")
    origin = f" (it was trained on {name})" if name else ""
    lacking = CheckpointError(
        f"{path} holds a LoRA and needs its base model; name it with model_base={origin}."
    )
    if not isinstance(name, str) or not name:
        raise lacking
    from llavakit.model import catalog

    if not (Path(name).is_dir() or name == "demo" or catalog.resolve(name) is not None):
        raise lacking
    try:
        return locate(name)
    except (ModelNotFoundError, CheckpointError) as error:
        raise lacking from error


def _trained_with(path: Path) -> str | None:
    file = path / TRAINING
    found = read_json(file).get("conv_mode") if file.is_file() else None
    return found if isinstance(found, str) else None


def _built(reader: Reader, path: Path, options: dict[str, Any]) -> Any:
    model = reader.build(options)
    if "quantization_config" in options:
        # Quantised weights cannot take the sum; the adapter stays beside them, as it was trained.
        return _with_layers(model, path)
    merge_into(model, path)
    return model


def merge_into(model: Any, path: Path) -> None:
    """Add an adapter to a model's weights, ``W + scale * B @ A``, summed in fp32.

    Raises:
        CheckpointError: the adapter does not fit the model.
    """
    import torch

    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors: Tensors = {}
    owners: dict[str, Any] = {}
    for name, weight in weights.items():
        stored = Stored(tuple(weight.shape), lambda weight=weight: weight.detach().cpu())  # type: ignore[misc]
        for one in {name, *(p.sub(to, name) for p, to in OLD_NAMES)}:
            tensors[one], owners[one] = stored, weight
    merged = merge_lora(tensors, path)
    for name, stored in merged.items():
        if stored is tensors.get(name):
            continue
        if name not in owners or stored.shape != tuple(owners[name].shape):
            raise CheckpointError(
                f"{path} holds {name}, which its base model has no place for; name the model "
                "that it was trained on with model_base=."
            )
        with torch.no_grad():
            owners[name].copy_(stored.read())


def _with_layers(model: Any, path: Path) -> Any:
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise MissingDependencyError(
            "An adapter on a quantised model needs peft; install it with "
            '`pip install "llavakit[train]"`, or load it without quantization.'
        ) from error
    _check_layers(model, path)
    try:
        return peft.PeftModel.from_pretrained(model, path).base_model.model
    except (ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"The LoRA in {path} does not fit its base model: {error}") from error


def _check_layers(model: Any, path: Path) -> None:
    """Refuse an adapter with a name or a shape that the model has no layer for.

    PEFT leaves such weights out and says so in a warning.
    """
    modules = dict(model.named_modules())
    weights = {*dict(model.named_parameters()), *dict(model.named_buffers())}
    file = first_of(path, ADAPTERS)
    assert file is not None, "read_adapter has looked"
    stored = open_file(file)
    for key, one in stored.items():
        name = key.removeprefix("base_model.model.")
        found = LAYER.fullmatch(name)
        if found is None:
            plain = name.replace(".modules_to_save", "").replace(".default", "")
            if plain not in weights:
                raise _no_place(path, key, [plain], weights)
            continue
        layer = modules.get(found["layer"])
        if layer is None:
            raise _no_place(path, key, [f"{found['layer']}.weight"], weights)
        side = "in_features" if found["part"] == "A" else "out_features"
        wanted = getattr(layer, side, None)
        length = one.shape[1] if found["part"] == "A" else one.shape[0]
        if wanted is not None and wanted != length:
            raise CheckpointError(
                f"The LoRA in {path} does not fit its base model: {key} is {list(one.shape)}, and "
                f"the base's layer has {wanted} {side.replace('_', ' ')}; name the model that it "
                "was trained on with model_base=."
            )


def _no_place(path: Path, key: str, names: list[str], weights: set[str]) -> CheckpointError:
    old = {p.sub(to, name) for name in weights for p, to in OLD_NAMES}
    if old & {*names}:
        return CheckpointError(
            f"The LoRA in {path} has names of an older transformers, such as {key}, which a "
            "quantised base does not take; write one model of both with `llavakit export`, and "
            "load that."
        )
    return CheckpointError(
        f"The LoRA in {path} does not fit its base model, which has no place for {key}; name the "
        "model that it was trained on with model_base=."
    )
