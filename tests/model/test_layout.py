"""Tokens of an image, told from its size: as many as the HF processors and models make of it."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from llavakit.errors import ImageError
from llavakit.images import open_picture
from llavakit.model.layout import AnyresLayout, FixedLayout, best_grid, layout_of
from llavakit.model.preprocess import ImagePreprocessor
from llavakit.sources import SourcePolicy

GRIDS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
OV_GRIDS = tuple((384 * a, 384 * b) for a in range(1, 7) for b in range(1, 7))


def sizes(count: int) -> list[tuple[int, int]]:
    """Widths and heights: most like photographs, some tiny, thin or huge."""
    rng = random.Random(5)
    found = []
    for _ in range(count):
        width = int(2 ** rng.uniform(1, 12.5))
        height = max(1, int(width * 2 ** rng.gauss(0, 1.5)))
        if max(width, height) < 100 * min(width, height):
            found.append((width, height))
    return found


@pytest.fixture(scope="module")
def next_processor() -> Any:
    from transformers import LlavaNextProcessor

    processor = LlavaNextProcessor.__new__(LlavaNextProcessor)
    processor.patch_size = 14
    processor.num_additional_image_tokens = 1
    processor.vision_feature_select_strategy = "default"
    processor.image_processor = SimpleNamespace(image_grid_pinpoints=[list(g) for g in GRIDS])
    return processor


@pytest.fixture(scope="module")
def onevision_processor() -> Any:
    from transformers import LlavaOnevisionProcessor

    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    processor.num_image_tokens = 729
    processor.vision_aspect_ratio = "anyres_max_9"
    processor.vision_feature_select_strategy = "full"
    processor.image_processor = SimpleNamespace(image_grid_pinpoints=[list(g) for g in OV_GRIDS])
    return processor


def test_next_counts_as_hf_does_for_thousands_of_sizes(next_processor):
    layout = AnyresLayout(GRIDS, view=336, side=24)
    tried = sizes(4000)
    assert len(tried) > 3500
    for width, height in tried:
        # HF counts the CLS feature and takes it off again for "default".
        expected = next_processor._get_number_of_features(height, width, 336, 336) - 1
        assert layout.tokens((width, height)) == expected, (width, height)


def test_onevision_counts_as_hf_does_for_thousands_of_sizes(onevision_processor):
    layout = AnyresLayout(OV_GRIDS, view=384, side=27, most_views=9, together=True)
    for width, height in sizes(4000):
        expected = onevision_processor._get_number_of_features(height, width, 384, 384)
        assert layout.tokens((width, height)) == expected, (width, height)
        assert layout.tokens((width, height), pictures=2) == 730


def test_the_best_grid_is_hf_s(next_processor):
    from transformers.image_processing_utils import select_best_resolution

    for width, height in sizes(2000):
        for grids in (GRIDS, OV_GRIDS):
            assert best_grid((width, height), grids) == select_best_resolution(
                (height, width), grids
            )


def test_the_order_of_the_axes_counts():
    transposed = tuple((columns, rows) for rows, columns in GRIDS)
    as_written = AnyresLayout(GRIDS, view=336, side=24).tokens((200, 100))
    assert as_written == 1752
    assert AnyresLayout(transposed, view=336, side=24).tokens((200, 100)) == 876


def test_a_picture_too_thin_for_every_grid_is_refused():
    with pytest.raises(ImageError, match="1x3000 pixels is too thin"):
        best_grid((1, 3000), GRIDS)


@pytest.mark.parametrize("size", [(10_001, 3_333), (9_000, 8_999), (8_193, 60)])
def test_a_huge_picture_is_counted_as_it_is_shrunk(size):
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    side = 16
    grids = [[16, 32], [32, 16], [32, 32], [160, 16], [16, 160]]
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=grids,
    )
    picture = open_picture(PILImage.new("L", size), SourcePolicy())
    pixels = ImagePreprocessor(processor, "r")(picture)
    height, width = pixels.inputs()["image_sizes"].tolist()
    assert pixels.size == (width, height)


@pytest.mark.parametrize("size", [(40, 16), (16, 40), (30, 30), (300, 200)])
def test_several_pictures_for_onevision_are_prepared_as_by_hf(size):
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    processor = LlavaOnevisionImageProcessorPil(
        size={"height": 19, "width": 19}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    rgb = PILImage.fromarray(noise)
    expected = processor(images=[[rgb, rgb]], return_tensors="pt")["pixel_values"][0]
    picture = open_picture(rgb, SourcePolicy())
    prepare = ImagePreprocessor(processor, "r")
    several, alone = prepare(picture, 2), prepare(picture)
    assert several.key != alone.key
    assert several.inputs()["pixel_values"].equal(expected)
    assert len(alone.inputs()["pixel_values"]) > 1


def config(**different: Any) -> Any:
    vision = SimpleNamespace(model_type="clip_vision_model", image_size=336, patch_size=14)
    return SimpleNamespace(
        **{
            "model_type": "llava",
            "vision_config": vision,
            "vision_feature_select_strategy": "default",
            **different,
        }
    )


def test_the_strategy_and_the_tower_tell_whether_there_is_a_cls_feature():
    assert layout_of(config()) == FixedLayout(576)
    assert layout_of(config(vision_feature_select_strategy="full")) == FixedLayout(577)
    siglip = SimpleNamespace(model_type="siglip_vision_model", image_size=384, patch_size=14)
    full = config(vision_config=siglip, vision_feature_select_strategy="full")
    assert layout_of(full) == FixedLayout(729)
