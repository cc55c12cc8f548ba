"""A token's box is where its patch lies on the image: seen by changing the image there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from llavakit.engine.encoding import encode
from llavakit.images import open_picture
from llavakit.model.loader import load_reader
from llavakit.model.places import places_of
from llavakit.prompts.conversation import to_turns
from llavakit.values import Image, Message, Request
from tests.families import tiny_family

ONE_OF_EACH_LAYOUT = ["llava-1.5", "1.6-vicuna", "onevision", "granite-vision", "interleave"]


def boxes(path: Path, image: PILImage.Image) -> tuple[np.ndarray, torch.Tensor]:
    """Boxes of an image's tokens, and what the vision tower reads."""
    reader = load_reader(path)
    turns = to_turns(Request((Message("user", Image(image)),)))
    _, (span,) = encode(reader, turns, lambda one: open_picture(one.source))
    return places_of(reader, span.pixels.size, span.count), span.pixels.inputs()["pixel_values"]


@pytest.mark.parametrize("family", ONE_OF_EACH_LAYOUT)
@pytest.mark.parametrize("size", [(64, 64), (120, 40), (40, 120), (300, 280)])
def test_every_token_of_an_image_has_a_box_on_it(
    tmp_path: Path, family: str, size: tuple[int, int]
):
    path = tiny_family(tmp_path, family).path
    found, _ = boxes(path, PILImage.new("RGB", size, "white"))
    assert found.min() >= 0 and found.max() <= 1
    assert (found[:, 2:] >= found[:, :2]).all()
    # All boxes together hold the image, but for what a square crop leaves out.
    wide = found[:, 2].max() - found[:, 0].min()
    high = found[:, 3].max() - found[:, 1].min()
    assert max(wide, high) == pytest.approx(1)


def test_a_padded_image_has_boxes_in_shares_of_itself_not_of_the_square(demo_dir: Path):
    """The demo pads to a square: of a wide image, the upper and lower tokens see padding."""
    image = PILImage.new("RGB", (256, 128), "white")
    image.paste("black", (192, 0, 256, 32))  # the upper right corner
    found, pixels = boxes(demo_dir, image)
    dark = pixels[0].mean(0).unfold(0, 16, 16).unfold(1, 16, 16).mean((-1, -2)).flatten()
    blank, _ = boxes(demo_dir, PILImage.new("RGB", (256, 128), "white"))
    assert np.array_equal(found, blank)
    for box, tone in zip(found, dark, strict=True):
        area = (box[2] - box[0]) * (box[3] - box[1])
        if not area:
            continue  # padding
        inside = box[0] >= 0.74 and box[3] <= 0.26
        assert (float(tone) < -1) == inside
