"""From a picture to what the vision tower reads: the checkpoint's own image processor."""

from __future__ import annotations

import hashlib
import json
import threading
import weakref
from pathlib import Path
from typing import Any

from llavakit.images import Picture

LONGEST_SIDE = 8192
"""Pixels. Longer pictures are shrunk by a whole factor: padding one to a square would take
gigabytes, and no model sees so much detail."""


def image_processor(path: Path, config: Any) -> Any:
    """The HF image processor of a checkpoint directory.

    Raises:
        OSError, ValueError: its files are missing or cannot be read.
    """
    from transformers import AutoImageProcessor

    # The PIL backend gives the pixels of the original; torchvision's differ in low bits, and
    # results must not change because it happens to be installed.
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    if config.model_type == "llava_next":
        processor.do_pad = True
    return processor


class Pixels:
    """A picture on its way to the vision tower; preprocessed once, when first needed.

    Attributes:
        key: digest of all that its features depend on: content, preprocessing, weights.
        picture: the canonical RGB image.
    """

    def __init__(self, key: str, picture: Picture, processor: Any) -> None:
        self.key = key
        self.picture = picture
        self._processor = processor
        self._lock = threading.Lock()
        self._inputs: dict[str, Any] | None = None

    def inputs(self) -> dict[str, Any]:
        """Tensors for ``get_image_features``, without the leading dimension of the batch.

        ``pixel_values`` is [views, 3, height, width]; ``image_sizes`` is [2] (height, width)
        and only there for families that look at it.
        """
        with self._lock:
            if self._inputs is None:
                rgb = self.picture.rgb
                if (factor := -(-max(rgb.size) // LONGEST_SIDE)) > 1:
                    rgb = rgb.reduce(factor)
                made = self._processor(images=[rgb], return_tensors="pt")
                values = made["pixel_values"]
                self._inputs = {"pixel_values": values[0] if values.dim() == 5 else values}
                if "image_sizes" in made:
                    self._inputs["image_sizes"] = made["image_sizes"][0]
            return self._inputs


class ImagePreprocessor:
    """Makes :class:`Pixels`; the same picture in flight twice is preprocessed once.

    Args:
        processor: the HF image processor (PIL backend).
        revision: identity of the weights; part of every key.
    """

    def __init__(self, processor: Any, revision: str) -> None:
        self._processor = processor
        settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
        self._identity = hashlib.sha256(f"{revision}\n{settings}".encode()).hexdigest()
        self._in_flight: weakref.WeakValueDictionary[str, Pixels] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def __call__(self, picture: Picture) -> Pixels:
        """The pixels of a picture, not yet preprocessed."""
        key = f"{picture.digest}:{self._identity}"
        with self._lock:
            pixels = self._in_flight.get(key)
            if pixels is None:
                pixels = self._in_flight[key] = Pixels(key, picture, self._processor)
            return pixels
