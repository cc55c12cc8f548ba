"""Features of images: encoded once, in batches, kept within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llavakit.engine.sequence import ImageSpan

Encode = Callable[[Sequence[Any]], list[Tensor]]

MOST_IMAGES = 1024
"""Images that are kept, however small: beside its features an entry costs some 1.5 KB uncounted."""


class FeatureCache:
    """Projected features by the image's key; the least recently used ones go first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._features)

    def __contains__(self, key: str) -> bool:
        return key in self._features

    def get(self, key: str) -> Tensor | None:
        """Return the features of an image, if they are here."""
        features = self._features.get(key)
        if features is not None:
            self._features.move_to_end(key)
        return features

    def put(self, key: str, features: Tensor) -> None:
        """Keep features; others are dropped until the budget and :data:`MOST_IMAGES` hold."""
        if key in self._features:
            return
        if features.untyped_storage().nbytes() > features.nbytes:
            features = features.clone()  # a view would keep its whole batch, which nobody counts
        self._features[key] = features
        self.bytes += features.nbytes
        while self.bytes > self.budget or len(self._features) > MOST_IMAGES:
            _, dropped = self._features.popitem(last=False)
            self.bytes -= dropped.nbytes


class VisionEncoder:
    """Features of images, from the cache or from the vision tower.

    Args:
        encode: the model's ``encode_images``.
        budget: bytes of the cache.
        batch: most images in one pass of the tower.
    """

    def __init__(self, encode: Encode, budget: int, batch: int = 8) -> None:
        self._encode = encode
        self.cache = FeatureCache(budget)
        self.batch = batch
        self.encoded = 0

    def features(self, images: Sequence[ImageSpan]) -> dict[str, Tensor | Exception]:
        """Return features by key, [tokens, hidden]; an exception stands for a failed image.

        Equal keys are encoded once. One bad image does not harm the others.
        """
        found: dict[str, Tensor | Exception] = {}
        missing: dict[str, Any] = {}
        for image in images:
            if image.key in found or image.key in missing:
                continue
            cached = self.cache.get(image.key)
            if cached is None:
                self.cache.misses += 1
                missing[image.key] = image.pixels
            else:
                self.cache.hits += 1
                found[image.key] = cached
        keys = list(missing)
        for first in range(0, len(keys), self.batch):
            batch = keys[first : first + self.batch]
            found.update(self._encoded(batch, [missing[key] for key in batch]))
        return found

    def _encoded(self, keys: Sequence[str], pictures: Sequence[Any]) -> dict[str, Any]:
        try:
            features = self._encode(pictures)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                self.batch = max(1, len(keys) // 2)
                torch.cuda.empty_cache()
            if len(keys) == 1:
                return {keys[0]: error}
            middle = len(keys) // 2
            return self._encoded(keys[:middle], pictures[:middle]) | self._encoded(
                keys[middle:], pictures[middle:]
            )
        self.encoded += len(keys)
        for key, one in zip(keys, features, strict=True):
            self.cache.put(key, one)
        return dict(zip(keys, features, strict=True))
