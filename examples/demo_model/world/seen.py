"""What the model sees of a picture, and what stands where in it.

:func:`fit_square` is the image processor's work done with Pillow alone, for making many pictures
fast; :func:`patch_labels` says of each of the 8 x 8 patches what is drawn there, which is what the
vision tower is first taught.
"""

from __future__ import annotations

import math

from PIL import Image

from .pages import CHARACTERS, COLUMNS, NAMES, ROWS, TITLE_ROW, TITLES, Page
from .scenes import COLOURS, SHAPES, Scene, Shape, third

SIDE = 128
GRID = 8
PADDING = (122, 116, 104)
"""CLIP's mean colour, with which LLaVA-1.5 pads a picture to a square."""

LABELS: dict[str, int] = {
    "shape": len(SHAPES) + 1,
    "colour": len(COLOURS) + 1,
    "centre": 2,
    "left": len(CHARACTERS) + 1,
    "right": len(CHARACTERS) + 1,
    "line": 6,
    "title": len(TITLES) + 1,
    "name": len(NAMES) + 1,
}
"""Kinds of patch labels and the number of classes of each; class 0 is "nothing here"."""


def fit_square(image: Image.Image, side: int = SIDE) -> Image.Image:
    """Pad to a square with the mean colour and resize, as ``LlavaImageProcessor(do_pad=True)``."""
    longest = max(image.size)
    if image.width != image.height:
        square = Image.new("RGB", (longest, longest), PADDING)
        square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
        image = square
    return image.resize((side, side), Image.Resampling.BICUBIC)


def patch_labels(picture: Scene | Page) -> dict[str, list[int]]:
    """Return 64 class numbers, patch by patch in reading order, for every kind of label."""
    labels = {kind: [0] * (GRID * GRID) for kind in LABELS}
    if isinstance(picture, Scene):
        label_scene(picture, labels)
    else:
        label_page(picture, labels)
    return labels


def covered(scene: Scene, shape: Shape) -> tuple[list[int], int]:
    """Return the patches that a shape covers, and the one that holds its centre."""
    longest = max(scene.width, scene.height)
    x = (shape.x * scene.width + (longest - scene.width) / 2) / longest * GRID
    y = (shape.y * scene.height + (longest - scene.height) / 2) / longest * GRID
    radius = shape.size * min(scene.width, scene.height) / longest * GRID / 2
    reach = max(radius * 0.85, 0.75)
    patches = [
        row * GRID + column
        for row in range(GRID)
        for column in range(GRID)
        if math.hypot(column + 0.5 - x, row + 0.5 - y) < reach
    ]
    return patches, min(GRID - 1, int(y)) * GRID + min(GRID - 1, int(x))


def label_scene(scene: Scene, labels: dict[str, list[int]]) -> None:
    """Mark the patches that a shape covers, and the one that holds its centre."""
    colours = list(COLOURS)
    for shape in scene.shapes:
        patches, middle = covered(scene, shape)
        for patch in patches:
            labels["shape"][patch] = 1 + SHAPES.index(shape.kind)
            labels["colour"][patch] = 1 + colours.index(shape.colour)
        labels["centre"][middle] = 1


def place_labels(picture: Scene | Page) -> list[list[int]]:
    """Return rows and columns (1 to 3, 0 for none) of the shapes that the 64 patches show."""
    rows, columns = [0] * (GRID * GRID), [0] * (GRID * GRID)
    if isinstance(picture, Scene):
        for shape in picture.shapes:
            row, column = third(shape.y), third(shape.x)
            for patch in covered(picture, shape)[0]:
                rows[patch] = 0 if row is None else row + 1
                columns[patch] = 0 if column is None else column + 1
    return [rows, columns]


def label_page(page: Page, labels: dict[str, list[int]]) -> None:
    """Mark the character in each half of a patch, the line it belongs to, the title and name."""
    for row, first, text in page.lines():
        for offset, character in enumerate(text):
            x, y = page.centre(row, first + offset)
            half = min(COLUMNS - 1, max(0, int(x * COLUMNS)))
            patch = min(ROWS - 1, max(0, int(y * ROWS))) * GRID + half // 2
            if character != " ":
                labels["left" if half % 2 == 0 else "right"][patch] = 1 + CHARACTERS.index(
                    character
                )
            kind = {1: 1, 3: 2, 4: 3, 5: 4, 6: 5}[row]
            labels["line"][patch] = kind
            if row == TITLE_ROW:
                labels["title"][patch] = 1 + TITLES.index(page.title)
            if kind == 4 and page.name is not None and offset >= 5:
                labels["name"][patch] = 1 + NAMES.index(page.name)
