"""Checkpoints whose linear layers are packed already: what their files hold, and how they load.

Such a directory is in HF format but for two things. Its ``config.json`` names this package in
``quantization_config``, and the ``weight`` of a linear layer is packed (uint8) as it lies in memory
(:mod:`llavakit.kernels.packing`), with its ``weight_scales`` (fp16) beside it. transformers alone
finds three dimensions there in the place of two, and refuses it. Nothing is rounded when it is
loaded, and what the decoder does not merge is used where it lies in the mapped file.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llavakit.errors import CheckpointError
from llavakit.kernels.packing import GROUP, PANEL, Packed
from llavakit.model.original.tensors import Stored, Tensors, open_directory
from llavakit.model.packed import HEAD_BITS, METHOD, PackedLinear, packed_layers
from llavakit.model.quantization import BITS, Quantization, packed_config
from llavakit.model.reader import built

VERSION = 1
"""Of the format; another one is refused."""

DATA, SCALES = "weight", "weight_scales"
"""What a packed layer has in a file: uint8, [panels, groups, bytes], and fp16, [panels, groups,
16], as :class:`~llavakit.kernels.packing.Packed` has them."""

_ALIGNED = 64
"""Bytes: a cache line, which a kernel reads at once."""

_LAYOUT = {
    "format_version": VERSION,
    "group_size": GROUP,
    "panel_rows": PANEL,
    "head_bits": HEAD_BITS,
}


def description(kind: Quantization) -> dict[str, Any]:
    """Give the ``quantization_config`` of a checkpoint with layers of so many bits."""
    return {"quant_method": METHOD, "bits": BITS[kind], **_LAYOUT}


def stored_quantization(config: Any) -> Quantization | None:
    """Return how many bits the layers of a checkpoint have, if they are packed in its files.

    Args:
        config: its HF configuration.

    Returns:
        None for all other checkpoints.

    Raises:
        CheckpointError: they are packed in a way that this version does not know.
    """
    said = getattr(config, "quantization_config", None)
    if not isinstance(said, dict) or said.get("quant_method") != METHOD:
        return None
    for name, known in _LAYOUT.items():
        if said.get(name) != known:
            raise CheckpointError(
                f"The checkpoint is packed with {name} {said.get(name)!r} in its config.json, and "
                f"this version of llavakit knows {known}; update llavakit, or export it again."
            )
    kinds: dict[Any, Quantization] = {4: "4bit", 8: "8bit"}
    bits = said.get("bits")
    if not isinstance(bits, int) or bits not in kinds:
        raise CheckpointError(
            f"The checkpoint has layers of {bits!r} bits by its config.json, and only 4 and 8 are "
            "known; export it again."
        )
    return kinds[bits]


def hf_class(config: Any) -> Any:
    """Find the class of transformers that computes a configuration."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]


def build_packed(path: Path, config: Any, options: dict[str, Any]) -> Any:
    """Build the HF model of a packed checkpoint.

    Args:
        path: its directory.
        config: its HF configuration.
        options: those of ``from_pretrained``; ``dtype`` is for what is not packed.

    Raises:
        CheckpointError: tensors are missing, damaged, left over, or do not fit the configuration
            or the type; or the model was asked for with weights that can be changed.
    """
    kind = stored_quantization(config)
    assert kind is not None
    if getattr(options.get("quantization_config"), "quant_method", None) != METHOD:
        raise CheckpointError(
            f"{path} holds packed weights ({kind}), which a processor can run, but which cannot be "
            "trained, merged or packed again; take the checkpoint that it was made of."
        )
    tensors = open_directory(path)
    parts = {name: tensors[name] for name in tensors if _is_packed(name, tensors)}
    plain = _with_placeholders(tensors, parts)
    model = _built(path, config, kind, plain, options)
    if len(plain) > len(model.state_dict()):
        raise CheckpointError(
            f"{path} holds {len(plain)} tensors for {len(model.state_dict())} weights, some of "
            "them under two names; its files are not those of one checkpoint."
        )
    _fill(model, parts, path)
    _check_range(model, path)
    return model


def _built(
    path: Path, config: Any, kind: Quantization, tensors: Tensors, options: dict[str, Any]
) -> Any:
    """The model with all that is not packed."""
    own_head = _of_own_head(config)
    options = {**options, "quantization_config": packed_config(kind, stored=True)}
    with _silent():
        return built(
            path,
            lambda: hf_class(config).from_pretrained(
                None,
                config=own_head,
                state_dict=tensors,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # built() names them
                **options,
            ),
            exact=True,
        )


def _with_placeholders(tensors: Tensors, parts: Tensors) -> Tensors:
    """What transformers is to load: empty weights for packed layers, and all others."""
    empty = Stored((0,), lambda: torch.empty(0))
    placeholders = {name: empty for name in parts if not name.endswith(SCALES)}
    return {name: one for name, one in tensors.items() if name not in parts} | placeholders


def _is_packed(name: str, tensors: Tensors) -> bool:
    """Whether a tensor is a packed layer's data or scales."""
    if name.endswith(SCALES) or f"{name.removesuffix(DATA)}{SCALES}" in tensors:
        return True
    return name.endswith(f".{DATA}") and tensors[name].read().dtype == torch.uint8


def _of_own_head(config: Any) -> Any:
    """The configuration for transformers, which is not to look for weights in the usual way."""
    plain = copy.deepcopy(config)
    del plain.quantization_config
    # A tied output layer has been packed, so that it shares nothing with the embeddings here.
    plain.tie_word_embeddings = plain.text_config.tie_word_embeddings = False
    return plain


@contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers from printing tables about what is said in one sentence afterwards."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _fill(model: Any, parts: Tensors, path: Path) -> None:
    """Give each packed layer its weights, as views of the file."""
    for name, layer in packed_layers(model).items():
        if layer.weight.numel() or not layer.empty:
            raise CheckpointError(
                f"{path} holds {name}.{DATA} in full and other layers packed; its files are not "
                "those of one checkpoint."
            )
        for part in (DATA, SCALES):
            if f"{name}.{part}" not in parts:
                raise CheckpointError(
                    f"{path} lacks {name}.{part}; its files are incomplete, copy them again."
                )
        data, scales = (parts.pop(f"{name}.{part}").read() for part in (DATA, SCALES))
        _check_layer(name, layer, data, scales, path)
        layer.hold(Packed(data, scales, layer.out_features, layer.in_features, layer.bits))
    if parts:
        raise CheckpointError(
            f"{path} holds {len(parts)} tensors that its model has no place for, among them "
            f"{min(parts)}; its files are not those of one checkpoint."
        )


def _check_layer(name: str, layer: PackedLinear, data: Tensor, scales: Tensor, path: Path) -> None:
    panels, groups = -(-layer.out_features // PANEL), -(-layer.in_features // GROUP)
    wanted = {
        DATA: (data, torch.uint8, (panels, groups, PANEL * GROUP * layer.bits // 8)),
        SCALES: (scales, torch.float16, (panels, groups, PANEL)),
    }
    for part, (found, kind, shape) in wanted.items():
        if found.dtype != kind or tuple(found.shape) != shape:
            raise CheckpointError(
                f"{path} holds {name}.{part} as {list(found.shape)} in {found.dtype}, and a layer "
                f"of {layer.out_features} x {layer.in_features} in {layer.bits} bits needs "
                f"{list(shape)} in {kind}; its weights and its config.json do not belong together."
            )
    if not bool(torch.isfinite(scales).all()):
        raise CheckpointError(
            f"{path} holds scales of {name} that are not finite; it is damaged, copy it again."
        )


def _check_range(model: Any, path: Path) -> None:
    for name, weight in model.named_parameters():
        if weight.dtype == torch.float16 and not bool(torch.isfinite(weight).all()):
            raise CheckpointError(
                f"{path} holds {name} with numbers that float16 cannot; load it with another dtype."
            )


def save_aligned(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a safetensors file in which packed weights begin at whole cache lines.

    The format leaves the order of tensors and the length of its header open; safetensors' own
    writer puts numbers of one byte last, wherever that is.

    Args:
        tensors: contiguous, in main memory.
        file: what to write.

    Raises:
        OSError: it cannot be written.
    """
    # The sizes of packed data and scales are multiples of 64 and 32 bytes, so no gaps are needed.
    ordered = sorted(tensors.items(), key=_rank)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in ordered:
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + tensor.nbytes],
        }
        place += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNED)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in ordered:
            out.write(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)


_NAMES = {
    torch.uint8: "U8",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


def _rank(item: tuple[str, Tensor]) -> tuple[bool, bool, int, str]:
    name, tensor = item
    return tensor.dtype != torch.uint8, not name.endswith(SCALES), -tensor.itemsize, name
