"""The weights of any checkpoint, packed for :mod:`llavakit.model.packed_checkpoint`.

Each matrix is packed as soon as it is read, so that the peak of memory is the packed model and one
matrix. Adapters are added before: packed weights cannot take the sum any more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llavakit.errors import CheckpointError
from llavakit.model import adapter
from llavakit.model.loader import load_reader
from llavakit.model.locate import locate
from llavakit.model.original.lora import merge_lora
from llavakit.model.original.tensors import Stored, Tensors
from llavakit.model.original.weights import on_disk
from llavakit.model.packed import finish, packed_layers
from llavakit.model.packed_checkpoint import DATA, SCALES, hf_class, stored_quantization
from llavakit.model.quantization import Quantization, packed_config
from llavakit.model.reader import Reader, without_bar


@dataclass(frozen=True, slots=True)
class Source:
    """What is packed.

    Attributes:
        reader: of the whole, for prompts and the small files.
        base: builds the weights; the reader itself but for adapters.
        adapter: the directory of an adapter that is added to them.
    """

    reader: Reader
    base: Reader
    adapter: Path | None = None


def open_source(
    model: str, model_base: str | os.PathLike[str] | None, conv_mode: str | None
) -> Source:
    """Open whatever can be loaded; arguments are those of ``llavakit.load``.

    Raises:
        CheckpointError: it cannot be read, or is packed already.
        ModelNotFoundError: there is no such model.
    """
    path = locate(os.path.expanduser(model))
    adapted = adapter.is_hf_adapter(path)
    base = None
    if model_base is not None:
        base = locate(os.path.expanduser(model_base), original=not adapted)
    if adapted:
        source = _open_adapter(path, base, conv_mode)
    else:
        reader = load_reader(path, conv_mode=conv_mode, name=model, model_base=base)
        source = Source(reader, reader)
    kind = stored_quantization(source.base.config)
    if kind is not None:
        raise CheckpointError(
            f"{source.base.path} is packed already ({kind}); take the checkpoint that it was made "
            "of."
        )
    return source


def _open_adapter(path: Path, base: Path | None, conv_mode: str | None) -> Source:
    bases: list[Reader] = []

    def read_base(directory: Path, mode: str | None) -> Reader:
        bases.append(load_reader(directory, conv_mode=mode))
        return bases[-1]

    reader = adapter.read_adapter(path, base, conv_mode, read_base)
    return Source(reader, bases[0], path)


def packed_tensors(source: Source, kind: Quantization, dtype: torch.dtype | None) -> Tensors:
    """Pack a model's layers; gives all its tensors under their names on disk.

    Args:
        source: what is packed.
        kind: ``"4bit"`` or ``"8bit"``.
        dtype: of what is not packed; None takes for each tensor 16 bits if that loses nothing,
            and else fp32.

    Raises:
        CheckpointError: weights are missing, damaged, cannot be packed, or do not fit ``dtype``.
    """
    model = _packed_model(source, kind)
    layers = packed_layers(model)
    tensors: Tensors = {}
    for name, layer in layers.items():
        tensors[f"{name}.{DATA}"] = _stored(layer.packed.data)
        tensors[f"{name}.{SCALES}"] = _stored(layer.packed.scales)
    placeholders = {f"{name}.weight" for name in layers}
    for name, tensor in model.state_dict().items():
        if name not in placeholders:
            tensors[on_disk(name)] = _converted(name, tensor, dtype)
    return tensors


def _stored(tensor: Tensor) -> Stored:
    return Stored(tuple(tensor.shape), lambda: tensor)


def _converted(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Stored:
    def read() -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        if dtype is None:
            return _narrowest(tensor)
        result = tensor.to(dtype)
        if not bool(torch.isfinite(result).all()):
            raise CheckpointError(
                f"{name} holds numbers that {str(dtype).removeprefix('torch.')} cannot; take "
                "another dtype."
            )
        return result

    return Stored(tuple(tensor.shape), read)


def _narrowest(tensor: Tensor) -> Tensor:
    """The same numbers, in 16 bits if those hold them exactly."""
    for kind in (torch.bfloat16, torch.float16):
        small = tensor.to(kind)
        if torch.equal(small.to(tensor.dtype), tensor):
            return small
    return tensor


def _packed_model(source: Source, kind: Quantization) -> Any:
    """The HF model in fp32 but for its packed layers; the numbers of its files, all of them."""
    added = None if source.adapter is None else _Added(source.base.config, source.adapter)
    # A plain function: transformers copies configurations deeply, methods with their objects.
    change = None if added is None else lambda name, weight: added.to(name, weight)
    options = {"dtype": torch.float32, "quantization_config": packed_config(kind, change=change)}
    with without_bar():
        model = source.base.build(options)
    if added is not None:
        with torch.no_grad():
            for name, weight in _not_packed(model).items():
                if added.has(name):
                    weight.copy_(added.to(name, weight))
    finish(model)
    return model


def _not_packed(model: Any) -> dict[str, Tensor]:
    """All weights and buffers but those of packed layers; a tied tensor once."""
    packed = {f"{name}.weight" for name in packed_layers(model)}
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: one for name, one in found.items() if name not in packed}


class _Added:
    """An adapter's sums with single weights of its base, in fp32.

    Args:
        config: of the base.
        path: the adapter's directory.

    Raises:
        CheckpointError: the adapter does not fit the base.
    """

    def __init__(self, config: Any, path: Path) -> None:
        self._given: dict[str, Tensor] = {}
        owners: dict[str, str] = {}
        tensors: Tensors = {}
        for name, shape in _shapes(config).items():
            stored = Stored(shape, lambda name=name: self._given[name])  # type: ignore[misc]
            for one in _names_in_adapters(name):
                tensors[one], owners[one] = stored, name
        self._changed: Tensors = {}
        for name, stored in merge_lora(tensors, path).items():
            if stored is tensors.get(name):
                continue
            if name not in owners or stored.shape != tensors[name].shape:
                raise CheckpointError(
                    f"{path} holds {name}, which its base model has no place for; name the model "
                    "that it was trained on with model_base=."
                )
            self._changed[owners[name]] = stored

    def has(self, name: str) -> bool:
        """Whether the adapter has anything for a weight of the model."""
        return name in self._changed

    def to(self, name: str, weight: Tensor) -> Tensor:
        """The sum with a weight; the weight itself if the adapter has nothing for it."""
        if not self.has(name):
            return weight
        self._given[name] = weight
        try:
            return self._changed[name].read()
        finally:
            del self._given[name]


def _names_in_adapters(name: str) -> set[str]:
    """What a weight is called by adapters, also those of before transformers 4.52."""
    return {name, *(pattern.sub(old, name) for pattern, old in adapter.OLD_NAMES)}


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        empty = hf_class(config)(config)
    weights = {**dict(empty.named_parameters()), **dict(empty.named_buffers())}
    return {name: tuple(one.shape) for name, one in weights.items()}
