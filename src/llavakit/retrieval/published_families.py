"""The published retrievers that are known, and what differs between them.

All are late-interaction models over page images, in transformers' own classes: ColPali
(https://arxiv.org/abs/2407.01449), ColQwen2 (the same paper's successor on Qwen2-VL) and
ColModernVBERT (https://arxiv.org/abs/2510.01149). What differs is how an image is cut into patches,
and so which place of the image each of its tokens stands for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llavakit.errors import CheckpointError
from llavakit.model.json_files import read_json

Boxes = npt.NDArray[np.float32]
"""[patches, 4]: left, top, right and bottom of each, in shares of the image."""

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of published retriever.

    Attributes:
        title: its name, for people.
        class_name: what the names of transformers' classes begin with.
        merged: patches of the vision tower that one token stands for.
        patches: the processor and an image's (width, height) -> how many tokens are patches.
        boxes: the processor, its tensors for a batch, a row of the batch and that image's
            (width, height) -> the boxes of its patches, in the order of their tokens.
    """

    title: str
    class_name: str
    merged: int
    patches: Callable[[Any, tuple[int, int]], int]
    boxes: Callable[[Any, Mapping[str, Any], int, tuple[int, int]], Boxes]

    @property
    def architecture(self) -> str:
        """The class of the model, as ``config.json`` names it."""
        return f"{self.class_name}ForRetrieval"


def grid(rows: int, columns: int, within: tuple[float, float, float, float] = WHOLE) -> Boxes:
    """Return the boxes of a grid, row by row from the top left: [rows * columns, 4].

    Args:
        rows: how many.
        columns: how many.
        within: the box that they divide.
    """
    left, top, right, bottom = within
    xs = left + (right - left) * np.arange(columns + 1) / columns
    ys = top + (bottom - top) * np.arange(rows + 1) / rows
    boxes = np.empty((rows, columns, 4), dtype=np.float32)
    boxes[..., 0], boxes[..., 2] = xs[:-1], xs[1:]
    boxes[..., 1], boxes[..., 3] = ys[:-1, None], ys[1:, None]
    return boxes.reshape(-1, 4)


def _square(tokens: int) -> Boxes:
    side = math.isqrt(tokens)
    return grid(side, side)


def _colpali_patches(processor: Any, size: tuple[int, int]) -> int:
    return int(processor.image_seq_length)


def _colpali_boxes(
    processor: Any, inputs: Mapping[str, Any], row: int, size: tuple[int, int]
) -> Boxes:
    return _square(_colpali_patches(processor, size))


def _colqwen2_patches(processor: Any, size: tuple[int, int]) -> int:
    images = processor.image_processor
    width, height = size
    return int(images.get_number_of_image_patches(height, width) // images.merge_size**2)


def _colqwen2_boxes(
    processor: Any, inputs: Mapping[str, Any], row: int, size: tuple[int, int]
) -> Boxes:
    _, rows, columns = inputs["image_grid_thw"][row].tolist()
    merged = processor.image_processor.merge_size
    return grid(rows // merged, columns // merged)


def _colmodernvbert_tiles(processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    _, rows, columns = processor.image_processor.get_number_of_image_patches(height, width)
    return int(rows), int(columns)


def _colmodernvbert_patches(processor: Any, size: tuple[int, int]) -> int:
    rows, columns = _colmodernvbert_tiles(processor, size)
    return (rows * columns + 1) * int(processor.image_seq_len)


def _colmodernvbert_boxes(
    processor: Any, inputs: Mapping[str, Any], row: int, size: tuple[int, int]
) -> Boxes:
    """Tiles row by row, each a grid of its own, and a view of the whole image behind them."""
    rows, columns = _colmodernvbert_tiles(processor, size)
    side = math.isqrt(int(processor.image_seq_len))
    tiles = grid(rows, columns).tolist() if rows and columns else []
    return np.concatenate([grid(side, side, tuple(box)) for box in (*tiles, WHOLE)])


FAMILIES: dict[str, Family] = {
    "colpali": Family("ColPali", "ColPali", 1, _colpali_patches, _colpali_boxes),
    "colqwen2": Family("ColQwen2", "ColQwen2", 4, _colqwen2_patches, _colqwen2_boxes),
    "colmodernvbert": Family(
        "ColModernVBERT", "ColModernVBert", 16, _colmodernvbert_patches, _colmodernvbert_boxes
    ),
}
"""By the ``model_type`` of ``config.json``."""


def is_published_retriever(path: Path) -> bool:
    """Return whether a directory holds a published retriever that is known, by its config.json."""
    try:
        return _family(read_json(path / "config.json")) is not None
    except CheckpointError:
        return False


def family_of(path: Path, settings: Mapping[str, Any]) -> Family:
    """Return the kind of retriever that a checkpoint's settings describe.

    Args:
        path: the checkpoint's directory, for messages.
        settings: what its config.json holds.

    Raises:
        CheckpointError: it is of a kind that is not known here.
    """
    family = _family(settings)
    if family is None:
        architectures = settings.get("architectures")
        named = architectures[0] if isinstance(architectures, list) and architectures else None
        kind = named or settings.get("model_type") or "a model without a name"
        known = ", ".join(one.title for one in FAMILIES.values())
        raise CheckpointError(
            f"{path} holds {kind}, which is not a published retriever that llavakit knows; "
            f"it knows {known}, in transformers' format (names that end in -hf)."
        )
    return family


def _family(settings: Mapping[str, Any]) -> Family | None:
    kind = settings.get("model_type")
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    architectures = settings.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    return next((one for one in FAMILIES.values() if one.architecture in named), None)
