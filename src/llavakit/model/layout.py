"""How many tokens a picture takes, known from its size alone, before anything is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

Size = tuple[int, int]
"""Width and height in pixels."""


class ImageLayout(Protocol):
    """Counts the tokens of a picture."""

    @property
    def depends_on_size(self) -> bool:
        """Whether two pictures of different sizes may differ in tokens."""

    def tokens(self, size: Size) -> int:
        """Tokens of a picture of this size (width, height)."""


@dataclass(frozen=True, slots=True)
class FixedLayout:
    """Every picture becomes one view of the vision tower: LLaVA 1.0 and 1.5."""

    count: int

    @property
    def depends_on_size(self) -> bool:
        return False

    def tokens(self, size: Size) -> int:
        return self.count


@dataclass(frozen=True, slots=True)
class AnyresLayout:
    """One view of the whole picture and a grid of tiles, as in LLaVA-NeXT (1.6).

    The tiles' features are laid out in space, cut back to the picture's own aspect ratio
    (``spatial_unpad``), and each row of them ends with a newline feature.

    Attributes:
        grids: allowed grid sizes as (height, width) in pixels, in the checkpoint's order.
        view: side of one view in pixels.
        side: patches along one side of a view.
        extra: features of the base view beside its patches (1 for the full strategy's CLS).
    """

    grids: tuple[tuple[int, int], ...]
    view: int
    side: int
    extra: int = 0

    @property
    def depends_on_size(self) -> bool:
        return True

    def tokens(self, size: Size) -> int:
        from transformers.image_processing_utils import select_best_resolution

        width, height = size
        grid_height: int
        grid_width: int
        grid_height, grid_width = select_best_resolution([height, width], self.grids)
        rows = self.side * (grid_height // self.view)
        columns = self.side * (grid_width // self.view)
        base = self.side * self.side + self.extra
        if width / height > columns / rows:
            kept = int(round(height * (columns / width), 7))
            rows -= 2 * ((rows - kept) // 2)
        else:
            kept = int(round(width * (rows / height), 7))
            columns -= 2 * ((columns - kept) // 2)
        return base + rows * (columns + 1)


def layout_of(config: Any) -> ImageLayout:
    """The layout of a model, from its HF configuration.

    Raises:
        CheckpointError: a family that is not known.
    """
    from llavakit.errors import CheckpointError

    vision = config.vision_config
    side = int(vision.image_size) // int(vision.patch_size)
    # "full" keeps the CLS feature where the tower has one (CLIP has, SigLIP has not).
    has_cls = "clip" in vision.model_type and "siglip" not in vision.model_type
    extra = 1 if config.vision_feature_select_strategy == "full" and has_cls else 0
    if config.model_type == "llava":
        return FixedLayout(side * side + extra)
    if config.model_type == "llava_next":
        grids = tuple((int(a), int(b)) for a, b in config.image_grid_pinpoints)
        return AnyresLayout(grids, int(vision.image_size), side, extra)
    raise CheckpointError(
        f"Models of type {config.model_type!r} are not supported; use a LLaVA or LLaVA-NeXT model."
    )
