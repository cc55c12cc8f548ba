"""A checkpoint's files as objects: first what reads prompts, later the weights.

The two halves are loaded apart, because counting tokens needs no weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.errors import CheckpointError, ParameterError
from llavakit.model.adapter import is_hf_adapter, read_adapter
from llavakit.model.families import check_family
from llavakit.model.hf import read_hf
from llavakit.model.json_files import read_json
from llavakit.model.locate import check_pointers
from llavakit.model.original.config import is_original
from llavakit.model.quantization import (
    Quantization,
    check_quantized,
    keep_unpackable,
    packed_config,
    quantization_config,
)
from llavakit.model.reader import Reader, without_bar

if TYPE_CHECKING:
    import torch

    from llavakit.model.llava import Llava

__all__ = ["Reader", "load_reader", "load_weights"]

log = logging.getLogger(__name__)

_RESERVE = "caching_allocator_warmup"


def load_reader(
    path: Path,
    *,
    conv_mode: str | None = None,
    name: str | None = None,
    model_base: Path | None = None,
) -> Reader:
    """Tokenizer, template and image processor of a checkpoint directory, in either format.

    Args:
        path: the directory.
        conv_mode: a conversation template by name; None takes the checkpoint's own.
        name: what the model is called, where the directory does not say it (hub ids).
        model_base: directory of the base model of a LoRA or projector-only checkpoint.

    Raises:
        CheckpointError: files are missing, broken, or of a family that is not known, or
            ``model_base`` is missing or given for a checkpoint that is whole.
        ParameterError: no template is called ``conv_mode``.
    """
    name = name or str(path)
    for one in (path, model_base):
        if one is not None:
            check_pointers(one)
    if is_hf_adapter(path):
        return read_adapter(
            path, model_base, conv_mode, lambda base, mode: load_reader(base, conv_mode=mode)
        )
    settings = settings_of(path)
    if is_original(settings):
        from llavakit.model.original.checkpoint import read_original

        return read_original(path, conv_mode=conv_mode, name=name, model_base=model_base)
    if model_base is not None:
        raise CheckpointError(
            f"model_base was given, but {path} is a whole checkpoint in HF format; "
            "leave model_base out."
        )
    check_family(path, settings)
    return read_hf(path, conv_mode=conv_mode, name=name)


def settings_of(path: Path) -> dict[str, Any]:
    """What the ``config.json`` of a directory says.

    Raises:
        CheckpointError: it cannot be read.
    """
    return read_json(path / "config.json")


def load_weights(
    reader: Reader,
    *,
    device: str,
    dtype: str,
    quantization: Quantization | None = None,
    device_map: str | None = None,
    room: int | None = None,
) -> Llava:
    """The model itself.

    Args:
        reader: from :func:`load_reader`.
        device: ``"auto"``, or a torch device.
        dtype: ``"auto"``, or the name of a torch type.
        quantization: ``"4bit"``, ``"8bit"`` or None (see :mod:`llavakit.model.quantization`).
            A packed checkpoint is loaded as it is, on a processor.
        device_map: how accelerate spreads layers over several GPUs, such as ``"auto"``; None
            puts the whole model on ``device``.
        room: bytes of main memory that may be used; decides ``"auto"`` on a processor.

    Raises:
        CheckpointError: weights are missing or do not fit the configuration, or the model
            fits into no GPU.
        MissingDependencyError: quantization on a GPU without bitsandbytes.
        ParameterError: there is no such device, or the checkpoint is packed and other bits or
            another device are asked for.
    """
    from llavakit.model.llava import Llava
    from llavakit.model.packed_checkpoint import stored_quantization
    from llavakit.model.self_check import check_weights

    stored = stored_quantization(reader.config)
    if stored is not None:
        _check_stored(reader.path, stored, quantization, device, device_map)
        device, quantization = "cpu", stored
    place = device_for(device)
    packs = quantization is not None and place.type == "cpu" and device_map is None
    if packs and dtype == "auto":
        dtype = "float32"
    kind = type_on(place, dtype, reader.config.text_config, room)
    options: dict[str, Any] = {"dtype": kind}
    if quantization is not None:
        options["quantization_config"] = (
            packed_config(quantization) if packs else quantization_config(quantization, kind)
        )
    straight = device_map is None and quantization is None and reads_straight(place)
    if device_map is not None:
        options["device_map"] = device_map
    elif straight or (quantization is not None and not packs):
        # Layers are quantised where they are loaded; a quantised model is not moved any more.
        options["device_map"] = {"": place}
    with without_bar(), _own_blocks() if straight else nullcontext():
        model = reader.build(options)
    if packs:
        from llavakit.model.packed import finish

        finish(model)
    elif quantization is not None:
        check_quantized(model, quantization)
        keep_unpackable(model)
    if device_map is not None:
        _check_spread(model, place)
    elif straight:
        _remove_hooks(model)
    elif quantization is None:
        model = model.to(place)
    log.info("loaded %s on %s as %s", reader.path.name, device_map or place, quantization or kind)
    loaded = Llava(model)
    check_weights(reader, loaded)
    if packs:
        from llavakit.kernels import huge_pages

        huge_pages.trim()
    return loaded


def reads_straight(place: torch.device) -> bool:
    """Whether each tensor goes to the device as it is read, and main memory never holds them all.

    A processor's tensors are where they belong anyway, in the mapped file if that has their type.
    """
    return place.type == "cuda"


@contextmanager
def _own_blocks() -> Iterator[None]:
    """Keep transformers from taking a GPU's memory for all weights in one block beforehand.

    The fused decoder merges weights and drops their parts. Their holes in such a block would be
    lost for keys and values, while blocks of their own are given back.
    """
    from transformers import modeling_utils

    before = getattr(modeling_utils, _RESERVE, None)
    if before is None:
        yield
        return
    setattr(modeling_utils, _RESERVE, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(modeling_utils, _RESERVE, before)


def _remove_hooks(model: Any) -> None:
    """Make sure that accelerate wraps no module, for whose sake layers would not be fused.

    transformers 5.23 has none wrapped on a single device; that is written nowhere.
    """
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        from accelerate.hooks import remove_hook_from_submodules

        remove_hook_from_submodules(model)


def _check_stored(
    path: Path, stored: Quantization, asked: Quantization | None, device: str, spread: str | None
) -> None:
    """Raise a ``ParameterError`` where a packed checkpoint is asked for as something else."""
    if asked not in (None, stored):
        raise ParameterError(
            f"{path} is packed ({stored}) and cannot be loaded in quantization={asked!r}; leave "
            "quantization out, or take the checkpoint that it was made of."
        )
    if device.partition(":")[0] not in ("auto", "cpu") or spread is not None:
        elsewhere = f"device_map={spread!r}" if spread is not None else f"device={device!r}"
        raise ParameterError(
            f"{path} is packed ({stored}) for a processor and cannot be loaded with {elsewhere}; "
            'use device="cpu", or take the checkpoint that it was made of.'
        )


def _check_spread(model: Any, place: torch.device) -> None:
    # accelerate puts what is left over into main memory or on disk; the engine reads weights
    # where they are, and those are nowhere until a hook fetches them.
    homes = {str(home) for home in (getattr(model, "hf_device_map", None) or {}).values()}
    if place.type != "cpu" and homes & {"cpu", "disk"}:
        raise CheckpointError(
            "The model does not fit into the memory of all GPUs together; load it with "
            'quantization="4bit" or take a smaller one.'
        )


def device_for(asked: str) -> torch.device:
    """Return the device that ``"auto"`` or a device's name stands for here.

    Raises:
        ParameterError: there is no such device.
    """
    import torch

    return torch.device(_device(asked))


def type_on(device: torch.device, asked: str, text: Any, room: int | None) -> torch.dtype:
    """Return the type of the weights on a device.

    Args:
        device: where they go.
        asked: ``"auto"``, or the name of a torch type.
        text: configuration of the language model, whose size decides on a processor.
        room: bytes of main memory that may be used; None if unknown.
    """
    import torch

    if asked == "auto" and device.type == "cpu":
        asked = _type_on_processor(text, room)
    kind: torch.dtype = getattr(torch, _dtype(asked, device.type))
    return kind


def _device(asked: str) -> str:
    import torch

    if asked != "auto":
        _check_device(asked)
        return asked
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_device(asked: str) -> None:
    """Raise a ``ParameterError`` where there is no such device."""
    import torch

    try:
        torch.empty(0, device=asked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = [kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available()]
        raise ParameterError(
            f"There is no device {asked!r} here; use {', '.join(['auto', 'cpu', *here])}."
        ) from error


LARGE = 4 << 30
"""Bytes of a decoder in fp32 that is worth a smaller type where the processor computes it."""


def _type_on_processor(text: Any, room: int | None) -> str:
    """fp32, and bf16 where that is the only one that fits well, or gains much.

    That is: bf16 if the decoder in fp32 would take more than half of ``room``, or more than 4 GiB
    on a processor that multiplies bf16 itself. Elsewhere 16 bits save memory and no time.
    """
    from llavakit.kernels.products import computes_bf16

    inner = int(getattr(text, "intermediate_size", 0) or 4 * text.hidden_size)
    layer = 4 * int(text.hidden_size) ** 2 + 3 * int(text.hidden_size) * inner
    embeddings = 2 * int(text.vocab_size) * int(text.hidden_size)
    in_fp32 = 4 * (int(text.num_hidden_layers) * layer + embeddings)
    too_large = room is not None and in_fp32 > room // 2
    return "bfloat16" if too_large or (in_fp32 > LARGE and computes_bf16()) else "float32"


def _dtype(asked: str, device: str) -> str:
    import torch

    if asked != "auto":
        return asked
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "float16" if device == "mps" else "float32"
