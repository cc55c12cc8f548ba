"""How many tokens an image takes, known from its size alone, before anything is run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llavakit.errors import ImageError
from llavakit.model.families import CLIP, FAST_VLM

Size = tuple[int, int]
"""Width and height in pixels."""

Grid = tuple[int, int]
"""Height and width in pixels of a grid of tiles, as transformers' configurations write them."""


class ImageLayout(Protocol):
    """Counts the tokens of an image."""

    def tokens(self, size: Size, pictures: int = 1) -> int:
        """Tokens of an image of this size (width, height), one of ``pictures`` in its prompt."""


@dataclass(frozen=True, slots=True)
class FixedLayout:
    """Every image becomes one view of the vision tower: LLaVA 1.0, 1.5 and interleave."""

    count: int

    def tokens(self, size: Size, pictures: int = 1) -> int:
        return self.count


@dataclass(frozen=True, slots=True)
class AnyresLayout:
    """One view of the whole image and a grid of tiles: LLaVA-NeXT (1.6) and OneVision.

    The tiles' features are laid out in space, cut back to the image's own aspect ratio
    (``spatial_unpad``), and each row of them ends with a newline feature.

    Attributes:
        grids: allowed grid sizes in pixels, in the checkpoint's order.
        view: side of one view in pixels.
        side: patches along one side of a view.
        extra: features of the base view beside its patches (1 for the full strategy's CLS).
        most_views: features of so many views are the most that the tiles keep; where there are
            over 1.1 times as many along a side, they are interpolated (``anyres_max_9``,
            https://arxiv.org/abs/2408.03326, section 3.2). None: no limit.
        together: whether tiles are for images alone in their prompt, and several get one
            view and a newline feature each (OneVision).
    """

    grids: tuple[Grid, ...]
    view: int
    side: int
    extra: int = 0
    most_views: int | None = None
    together: bool = False

    def tokens(self, size: Size, pictures: int = 1) -> int:
        base = self.side * self.side + self.extra
        if self.together and pictures > 1:
            return base + 1
        rows, columns = self.tiles(size)
        return base + rows * (columns + 1)

    def tiles(self, size: Size) -> tuple[int, int]:
        """Rows and columns of features that the tiles of an image keep."""
        width, height = size
        grid_height, grid_width = best_grid(size, self.grids)
        rows = self.side * (grid_height // self.view)
        columns = self.side * (grid_width // self.view)
        if not rows or not columns:
            raise ImageError(
                f"The checkpoint's image_grid_pinpoints have {grid_height}x{grid_width} pixels, "
                f"which is less than one view of {self.view}; its config.json is damaged."
            )
        # Rounded as the models do: an error in the last bit would be a row more or less.
        if width / height > columns / rows:
            kept = int(round(height * (columns / width), 7))
            rows -= 2 * ((rows - kept) // 2)
        else:
            kept = int(round(width * (rows / height), 7))
            columns -= 2 * ((columns - kept) // 2)
        if self.most_views is not None:
            ratio = math.sqrt(rows * columns / (self.most_views * self.side**2))
            if ratio > 1.1:
                rows, columns = int(rows // ratio), int(columns // ratio)
        return rows, columns


@dataclass(frozen=True, slots=True)
class RowsLayout:
    """An image in its own shape, as rows of patches: Pixtral.

    A token stands behind each row, and another one behind the last: words to the language model,
    among which the features of the patches stand
    (https://arxiv.org/abs/2410.07073, section 2.2).

    Attributes:
        longest: most pixels of an image's height and width; larger ones are shrunk.
        patch: pixels along one side of a patch.
        row_end: id of the token behind a row.
        image_end: id of the token behind the last row.
    """

    longest: tuple[int, int]
    patch: int
    row_end: int
    image_end: int

    def shape(self, size: Size) -> tuple[int, int]:
        """Rows and columns of patches of an image (``get_resize_output_image_size`` of HF)."""
        width, height = size
        ratio = max(height / self.longest[0], width / self.longest[1])
        if ratio > 1:
            height, width = math.floor(height / ratio), math.floor(width / ratio)
        if not (height and width):
            raise ImageError(
                f"An image of {size[0]}x{size[1]} pixels is too thin for this model; crop or pad "
                "it."
            )
        return -(-height // self.patch), -(-width // self.patch)

    def tokens(self, size: Size, pictures: int = 1) -> int:
        rows, columns = self.shape(size)
        return rows * (columns + 1)


def image_ids(layout: ImageLayout, token: int, size: Size, pictures: int) -> list[int]:
    """The ids that stand in a prompt for an image.

    Args:
        layout: of the model.
        token: its image token.
        size: width and height that the processor sees.
        pictures: images of the prompt.
    """
    if not isinstance(layout, RowsLayout):
        return [token] * layout.tokens(size, pictures)
    rows, columns = layout.shape(size)
    ids = ([token] * columns + [layout.row_end]) * rows
    return [*ids[:-1], layout.image_end]


def best_grid(size: Size, grids: Sequence[Grid]) -> Grid:
    """The grid that shows most of an image, and among those the one that wastes least.

    The first one wins a tie, so their order counts (``select_best_resolution`` in
    https://github.com/haotian-liu/LLaVA/blob/main/llava/mm_utils.py).

    Raises:
        ImageError: the image is so thin that no grid shows a pixel of it.
    """
    width, height = size

    def worth(grid: Grid) -> tuple[int, int]:
        rows, columns = grid
        scale = min(columns / width, rows / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - rows * columns

    best = max(grids, key=worth)
    if worth(best)[0] == 0:
        raise ImageError(
            f"An image of {width}x{height} pixels is too thin for this model; crop or pad it."
        )
    return best


def layout_of(config: Any) -> ImageLayout:
    """The layout of a model that ``check_family`` knows, from its HF configuration."""
    vision = config.vision_config
    view, side = int(vision.image_size), int(vision.image_size) // int(vision.patch_size)
    if config.model_type == "vipllava":  # which always leaves CLS out
        return FixedLayout(side * side)
    # "default" leaves out the first feature, which is CLIP's CLS; SigLIP has none.
    has_cls = vision.model_type == CLIP
    extra = int(has_cls) - int(config.vision_feature_select_strategy == "default")
    if config.model_type in ("llava", FAST_VLM):
        return FixedLayout(side * side + extra)
    grids = tuple((int(a), int(b)) for a, b in config.image_grid_pinpoints)
    if config.model_type in ("llava_next", "llava_next_video"):
        return AnyresLayout(grids, view, side, extra)
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    return AnyresLayout(grids, view, side, extra, most_views=most, together=True)
