"""From an image to what the vision tower reads: the checkpoint's own image processor."""

from __future__ import annotations

import hashlib
import json
import threading
import weakref
from pathlib import Path
from typing import Any

from llavakit.errors import CheckpointError
from llavakit.images import Picture
from llavakit.model.families import FAST_VLM, PIXTRAL
from llavakit.model.layout import RowsLayout, Size

LONGEST_SIDE = 8192
"""Pixels. Longer images are shrunk by a whole factor: padding one to a square would take
gigabytes, and no model sees so much detail."""


def image_processor(path: Path, config: Any) -> Any:
    """The HF image processor of a checkpoint directory.

    Raises:
        OSError, ValueError: its files are missing or cannot be read.
    """
    from transformers import AutoImageProcessor

    # The PIL backend gives the pixels of the original; torchvision's differ in low bits, and
    # results must not change because it happens to be installed.
    processor = AutoImageProcessor.from_pretrained(path, backend="pil", trust_remote_code=False)
    if config.model_type in ("llava_next", "llava_next_video"):
        processor.do_pad = True
    if config.vision_config.model_type == PIXTRAL:
        _check_rows(path, processor, int(config.vision_config.patch_size))
    else:
        if config.model_type == FAST_VLM:
            from llavakit.model.fastvit import own_tower

            own_tower(path, config, _declared_side(processor))
        _check_processor(path, processor, config)
    return processor


def rows_layout(path: Path, processor: Any, config: Any, tokenizer: Any) -> RowsLayout:
    """The layout of a model with Pixtral's tower.

    Raises:
        CheckpointError: the tokenizer has no tokens for the ends of rows.
    """
    file = path / "processor_config.json"
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    names = said.get("image_break_token", "[IMG_BREAK]"), said.get("image_end_token", "[IMG_END]")
    known = tokenizer.get_vocab()
    for name in names:
        if name not in known:
            raise CheckpointError(
                f"The tokenizer in {path} has no token {name!r}, which stands behind the rows of "
                "an image; its files do not belong to this model."
            )
    size = processor.size
    longest = size.get("longest_edge")
    most = (longest, longest) if longest else (size["height"], size["width"])
    return RowsLayout(
        (int(most[0]), int(most[1])),
        int(config.vision_config.patch_size),
        *(known[name] for name in names),
    )


def _check_rows(path: Path, processor: Any, patch: int) -> None:
    """Refuse a processor that does not make whole patches of Pixtral's tower.

    Raises:
        CheckpointError: it does not.
    """
    from PIL import Image as PILImage

    refused = CheckpointError(
        f"The image processor in {path} does not make patches of {patch}x{patch} pixels, which "
        "the vision tower takes; copy the preprocessor_config.json that belongs to the weights."
    )
    try:
        made = processor(images=[PILImage.new("RGB", (3 * patch, patch + 1))], return_tensors="pt")
    except Exception as error:  # whatever a wrong file of settings leads to
        raise refused from error
    sizes = made.get("image_sizes")
    if sizes is None or tuple(map(int, sizes[0])) != (2 * patch, 3 * patch):
        raise refused


def _declared_side(processor: Any) -> int:
    """Pixels along one side of a view, as a processor's settings declare it; 0 for none.

    Whether the processor makes such views is found by :func:`_check_processor`.
    """
    name = "crop_size" if getattr(processor, "do_center_crop", False) else "size"
    size = getattr(processor, name, None) or {}
    return int(size.get("height") or size.get("shortest_edge") or 0)


def _check_processor(path: Path, processor: Any, config: Any) -> None:
    """Refuse a processor whose pixels the vision tower was not made for.

    Raises:
        CheckpointError: it is one of another family, or makes views of another size.
    """
    from PIL import Image as PILImage

    side, patch = int(config.vision_config.image_size), int(config.vision_config.patch_size)
    try:
        made = processor(images=[PILImage.new("RGB", (2 * side, side))], return_tensors="pt")
        shape = tuple(made["pixel_values"].shape)
    except Exception as error:  # whatever a wrong file of settings leads to
        raise CheckpointError(
            f"{path / 'preprocessor_config.json'} does not prepare an image "
            f"({type(error).__name__}: {error}); copy the one that belongs to the weights."
        ) from error
    tiled = config.model_type in _TILED
    # Of a view that is not a multiple of its patches (384 by 14), the rest is not looked at.
    patches = tuple(length // patch for length in shape[-2:])
    if len(shape) != 4 + tiled or patches != (side // patch, side // patch):
        raise CheckpointError(
            f"The image processor in {path} makes views of {shape[-1]}x{shape[-2]} pixels"
            f"{'' if (len(shape) == 5) == tiled else ' of another kind'}, and the vision tower "
            f"takes {side}x{side}; copy the preprocessor_config.json that belongs to the weights."
        )


_TILED = ("llava_next", "llava_next_video", "llava_onevision")


class Pixels:
    """An image on its way to the vision tower; preprocessed once, when first needed.

    Attributes:
        key: digest of all that its features depend on: content, preprocessing, weights.
        size: width and height that the processor sees, in pixels.
    """

    def __init__(
        self, key: str, picture: Picture, processor: Any, ends: tuple[int, int] | None = None
    ) -> None:
        self.key = key
        self._ends = ends
        self._factor = _factor(picture.size)
        self.size = seen_size(picture.size)
        self._picture = picture
        self._processor = processor
        self._lock = threading.Lock()
        self._inputs: dict[str, Any] | None = None

    def inputs(self) -> dict[str, Any]:
        """Tensors for ``get_image_features``, without the leading dimension of the batch.

        ``pixel_values`` is [views, 3, height, width]; ``image_sizes`` is [2] (height, width)
        and only there for families that look at it; ``row_ends`` is [2], the ids behind the rows
        and behind the last row of Pixtral's patches.
        """
        import torch

        with self._lock:
            if self._inputs is None:
                rgb = self._picture.rgb
                if self._factor > 1:
                    rgb = rgb.reduce(self._factor)
                made = self._processor(images=[rgb], return_tensors="pt")
                values = made["pixel_values"]
                self._inputs = {"pixel_values": values[0] if values.dim() == 5 else values}
                if "image_sizes" in made:
                    self._inputs["image_sizes"] = made["image_sizes"][0]
                if self._ends is not None:
                    self._inputs["row_ends"] = torch.tensor(self._ends)
            return self._inputs


def seen_size(size: Size) -> Size:
    """Width and height that the processor sees of an image, known before it is decoded."""
    factor = _factor(size)
    return -(-size[0] // factor), -(-size[1] // factor)


def _factor(size: Size) -> int:
    return -(-max(size) // LONGEST_SIDE)


class ImagePreprocessor:
    """Makes :class:`Pixels`; the same image in flight twice is preprocessed once.

    Args:
        processor: the HF image processor (PIL backend).
        revision: identity of the weights; part of every key.
        ends: ids behind the rows and behind the last row of Pixtral's patches.
    """

    def __init__(self, processor: Any, revision: str, ends: tuple[int, int] | None = None) -> None:
        self._ends = ends
        several = _single_view(processor)
        self._alone = (processor, _identity(processor, revision))
        self._several = (several, _identity(several, revision))
        self._in_flight: weakref.WeakValueDictionary[str, Pixels] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    @property
    def processor(self) -> Any:
        """What prepares an image that is alone in its prompt."""
        return self._alone[0]

    def of_weights(self, revision: str) -> ImagePreprocessor:
        """The same preprocessing for other weights."""
        return ImagePreprocessor(self._alone[0], revision, self._ends)

    def __call__(self, picture: Picture, pictures: int = 1) -> Pixels:
        """The pixels of an image, one of ``pictures`` in its prompt; not yet preprocessed."""
        processor, identity = self._alone if pictures == 1 else self._several
        key = f"{picture.digest}:{identity}"
        with self._lock:
            pixels = self._in_flight.get(key)
            if pixels is None:
                pixels = self._in_flight[key] = Pixels(key, picture, processor, self._ends)
            return pixels


def _identity(processor: Any, revision: str) -> str:
    settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(f"{revision}\n{settings}".encode()).hexdigest()


def _single_view(processor: Any) -> Any:
    """What prepares images that share a prompt: the same, but for OneVision one view of each.

    OneVision was trained with tiles for an image alone and one padded view for each of several
    (https://arxiv.org/abs/2408.03326, section 3.2). Its HF processor does both, yet needs all
    images of a prompt at once; an image that is kept needs a processor of its own.
    """
    if "Onevision" not in type(processor).__name__:
        return processor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    size = processor.size
    return LlavaImageProcessorPil(
        do_pad=True,
        size={"height": size["height"], "width": size["width"]},
        do_center_crop=False,
        resample=processor.resample,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        rescale_factor=processor.rescale_factor,
    )
