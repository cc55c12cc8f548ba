"""The image of a loss."""

from __future__ import annotations

import math

import pytest

from llavakit.training.progress import plot


def dark(image, box) -> int:
    return sum(count for count, tone in image.crop(box).getcolors(1 << 20) if sum(tone) < 300)


def test_a_falling_loss_falls():
    losses = [5 * math.exp(-step / 30) for step in range(100)]
    image = plot(losses, list(range(1, 101)))
    width, height = image.size
    left_top = (90, 45, width // 3, height // 3)
    right_top = (2 * width // 3, 45, width - 35, height // 3)
    right_bottom = (2 * width // 3, 2 * height // 3, width - 35, height - 55)
    assert dark(image, left_top) > 20 < dark(image, right_bottom)
    assert dark(image, right_top) == 0


@pytest.mark.parametrize(
    "losses", [[1.0], [0.0, 0.0], [math.nan], [math.inf, 2.0], [-1.0, 1.0], [1e30, 1e-30]]
)
def test_any_losses_can_be_drawn(losses: list[float]):
    assert plot(losses, list(range(len(losses)))).size == (960, 540)
