"""Where in an image each of its tokens looks, known from the image's size alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from llavakit.embeddings import Places
from llavakit.model.layout import AnyresLayout, Size
from llavakit.model.reader import Reader

_WHOLE = (0.0, 0.0, 1.0, 1.0)


def places_of(reader: Reader, size: Size, count: int) -> Places:
    """Return the box of each token of an image, [count, 4], in shares of the image.

    Left, top, right, bottom. A token of no one patch (CLS) has the whole image, and a newline its
    row. A view that pads or crops the image is taken into account; padding has an empty box at
    the image's edge.

    Args:
        reader: of the checkpoint.
        size: width and height that the processor sees.
        count: tokens of the image.
    """
    layout = reader.layout
    if isinstance(layout, AnyresLayout):
        side = layout.side
        rows, columns = layout.tiles(size)
        boxes = [_WHOLE] * layout.extra + _grid(side, side, _WHOLE)
        for row in range(rows):
            band = (0.0, row / rows, 1.0, (row + 1) / rows)
            boxes += [*_grid(1, columns, band), band]
    else:
        side = int(count**0.5)
        view = _view(reader.preprocess.processor, size)
        boxes = [_WHOLE] * (count - side * side) + _grid(side, side, view)
    assert len(boxes) == count, "the layout counts what the vision tower gives"
    return np.clip(np.array(boxes, dtype=np.float32), 0.0, 1.0)


def _grid(rows: int, columns: int, box: tuple[float, ...]) -> list[tuple[float, ...]]:
    left, top, right, bottom = box
    width, height = (right - left) / columns, (bottom - top) / rows
    return [
        (
            left + column * width,
            top + row * height,
            left + (column + 1) * width,
            top + (row + 1) * height,
        )
        for row in range(rows)
        for column in range(columns)
    ]


def _view(processor: Any, size: Size) -> tuple[float, float, float, float]:
    """The box of the image that one view shows; beyond 0 and 1 where it is padded."""
    width, height = size
    if getattr(processor, "do_pad", False):
        side = max(size)
        x, y = (side - width) / 2 / width, (side - height) / 2 / height
        return (-x, -y, 1 + x, 1 + y)
    edge = dict(getattr(processor, "size", None) or {}).get("shortest_edge")
    if getattr(processor, "do_center_crop", False) and edge:
        crop = processor.crop_size
        scale = edge / min(size)
        x = (1 - min(1.0, crop["width"] / (width * scale))) / 2
        y = (1 - min(1.0, crop["height"] / (height * scale))) / 2
        return (x, y, 1 - x, 1 - y)
    return _WHOLE
