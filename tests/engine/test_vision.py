"""Features of images: what is kept, and how much memory that takes."""

from __future__ import annotations

import torch

from llavakit.engine.sequence import ImageSpan
from llavakit.engine.vision import MOST_IMAGES, FeatureCache, VisionEncoder


def span(key: str) -> ImageSpan:
    return ImageSpan(start=0, count=4, key=key, pixels=key)


def encode(pictures):
    """As transformers does: views of the features of a whole batch."""
    return list(torch.arange(len(pictures) * 4 * 8.0).view(len(pictures), 4, 8))


def test_a_kept_image_holds_no_more_memory_than_is_counted():
    encoder = VisionEncoder(encode, budget=4 * 8 * 4 * 3)
    for first in range(0, 16, 8):
        encoder.features([span(str(number)) for number in range(first, first + 8)])
    kept = [encoder.cache.get(key) for key in ("13", "14", "15")]
    assert len(encoder.cache) == 3
    assert encoder.cache.bytes == sum(one.untyped_storage().nbytes() for one in kept)


def test_equal_images_of_a_step_are_encoded_once_and_later_found():
    encoder = VisionEncoder(encode, budget=1 << 20)
    found = encoder.features([span("a"), span("b"), span("a")])
    assert encoder.encoded == 2 and encoder.cache.hits == 0
    assert torch.equal(encoder.features([span("b")])["b"], found["b"])
    assert encoder.encoded == 2 and encoder.cache.hits == 1


def test_the_image_that_was_asked_for_longest_ago_goes_first():
    cache = FeatureCache(budget=2 * 4)
    cache.put("a", torch.zeros(1))
    cache.put("b", torch.ones(1))
    assert cache.get("a") is not None
    cache.put("c", torch.ones(1))
    assert "b" not in cache and "a" in cache and "c" in cache


def test_many_small_images_do_not_pile_up():
    cache = FeatureCache(budget=1 << 30)
    for number in range(MOST_IMAGES + 50):
        cache.put(str(number), torch.zeros(1))
    assert len(cache) == MOST_IMAGES and cache.bytes == 4 * MOST_IMAGES
    assert "49" not in cache and "50" in cache
