"""Weights in files, read one tensor at a time: safetensors and pickled, whole or in shards."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that is read when it is indexed, as those of ``safetensors`` are.

    transformers takes it in place of a tensor, so a checkpoint is never in memory as a whole.

    Attributes:
        shape: its shape.
        read: gives it.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def __getitem__(self, index: Any) -> Tensor:
        return self.read()[index]


Tensors = dict[str, Stored]


def has_weights(path: Path) -> bool:
    """Whether a directory holds a model's weights under one of their usual names."""
    return any((path / name).is_file() for name in (*INDICES, *WHOLE))


def names_in(path: Path) -> list[str]:
    """Names of the tensors of a directory, by its index if there is one; none without weights."""
    for index, whole in zip(INDICES, WHOLE, strict=True):
        if (path / index).is_file():
            return list(_weight_map(path / index))
        if (path / whole).is_file():
            return list(open_file(path / whole))
    return []


def open_directory(path: Path) -> Tensors:
    """All tensors of a directory, by their names; safetensors are preferred.

    Raises:
        CheckpointError: there are none, or a file is missing or damaged.
    """
    for index, whole in zip(INDICES, WHOLE, strict=True):
        if (path / index).is_file():
            return _open_shards(path / index)
        if (path / whole).is_file():
            return open_file(path / whole)
    raise CheckpointError(
        f"{path} holds no weights, neither {WHOLE[0]} nor {WHOLE[1]}, whole or in shards; copy "
        "or download them too."
    )


def _open_shards(index: Path) -> Tensors:
    weight_map = _weight_map(index)
    tensors: Tensors = {}
    for name in sorted(set(weight_map.values())):
        shard = index.parent / Path(name).name
        if not shard.is_file():
            raise CheckpointError(
                f"{shard} is missing, which {index.name} names; copy or download it again."
            )
        tensors |= open_file(shard)
    lacking = sorted(set(weight_map) - set(tensors))
    if lacking:
        raise CheckpointError(
            f"{index.parent / weight_map[lacking[0]]} lacks {lacking[0]}, which {index.name} "
            "names; copy or download it again."
        )
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Files by the names of the tensors that they hold."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} cannot be read: {error!r}") from error


def open_file(file: Path) -> Tensors:
    """All tensors of one file, by their names. Nothing is read yet but the names.

    Raises:
        CheckpointError: the file is damaged, or holds more than tensors.
    """
    try:
        return _open_safetensors(file) if file.suffix == ".safetensors" else _open_pickled(file)
    except CheckpointError:
        raise
    except Exception as error:  # each library has its own errors for a file that is cut off
        raise CheckpointError(
            f"{file} is damaged or cut off; copy or download it again ({_first_line(error)})."
        ) from error


def _open_safetensors(file: Path) -> Tensors:
    from safetensors import safe_open

    opened: Any = safe_open(str(file), framework="pt", device="cpu")
    tensors: Tensors = {}
    for name in opened.keys():  # noqa: SIM118 - no mapping
        shape = tuple(opened.get_slice(name).get_shape())
        tensors[name] = Stored(shape, lambda name=name: opened.get_tensor(name))  # type: ignore[misc]
    return tensors


def _open_pickled(file: Path) -> Tensors:
    import torch

    # Files of before 2020 are no zip archives, and cannot be mapped. A newer one that was cut
    # off has lost its directory, and is none any more either.
    mapped = zipfile.is_zipfile(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if not mapped:
            raise
        raise CheckpointError(
            f"{file} holds more than tensors, and reading it could run any code; save it anew as "
            "safetensors where you trust it."
        ) from error
    tensors: Tensors = {}
    for name, tensor in loaded.items():
        if isinstance(tensor, torch.Tensor):
            tensors[name] = Stored(tuple(tensor.shape), lambda tensor=tensor: tensor)  # type: ignore[misc]
    return tensors


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
