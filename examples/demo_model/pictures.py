"""The training pictures of the demo model, drawn once and kept in a file.

A picture is known by a kind and a seed: :func:`picture` makes the same description again at any
time, so only pixels and patch labels are stored. Held-out seeds start at :data:`HELD_OUT`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage

from llavakit.images import Picture
from llavakit.model.preprocess import ImagePreprocessor

from .world.pages import Page, draw_page, random_page
from .world.scenes import Scene, draw_scene, random_scene
from .world.seen import GRID, LABELS, SIDE, fit_square, patch_labels

HELD_OUT = 50_000_000
"""Seeds from here on are never trained on."""


def picture(kind: str, seed: int) -> Scene | Page:
    """Return the description of picture ``seed`` of a kind, ``scene`` or ``page``."""
    rng = random.Random(f"{kind}-{seed}")
    return random_scene(rng) if kind == "scene" else random_page(rng)


def draw(described: Scene | Page) -> NDArray[np.uint8]:
    """Return the ``(128, 128, 3)`` pixels that the model sees of a picture."""
    image = draw_scene(described) if isinstance(described, Scene) else draw_page(described)
    return np.asarray(fit_square(image), dtype=np.uint8)


def prepared(pixels: NDArray[np.uint8], preprocess: ImagePreprocessor) -> torch.Tensor:
    """Return ``(n, 3, 128, 128)`` floats for ``(n, 128, 128, 3)``, as when the model is used."""
    pictures = [Picture(PILImage.fromarray(one)) for one in pixels]
    values: list[torch.Tensor] = [preprocess(one).inputs()["pixel_values"] for one in pictures]
    return torch.cat(values)


def varied(pixels: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """Return pictures with a little noise, other brightness or one pixel of shift, at random."""
    out = pixels.astype(np.int16)
    noise = np.random.default_rng(rng.getrandbits(32))
    for index in range(len(out)):
        if rng.random() < 0.4:
            out[index] += noise.integers(-6, 7, out[index].shape, dtype=np.int16)
        if rng.random() < 0.3:
            out[index] = (out[index] * rng.uniform(0.94, 1.05)).astype(np.int16)
        if rng.random() < 0.4:
            shift = (rng.randint(-1, 1), rng.randint(-1, 1))
            out[index] = np.roll(out[index], shift, axis=(0, 1))
    return out.clip(0, 255).astype(np.uint8)


@dataclass
class Pictures:
    """Drawn pictures of one kind: ``pixels[i]`` and ``labels[i]`` belong to ``described(i)``."""

    kind: str
    first_seed: int
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.pixels)

    def described(self, index: int) -> Scene | Page:
        """Return what is in picture ``index``."""
        return picture(self.kind, self.first_seed + index)


def draw_many(kind: str, first_seed: int, count: int) -> Pictures:
    """Draw ``count`` pictures with consecutive seeds."""
    pixels = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    labels = np.zeros((count, len(LABELS), GRID * GRID), np.int8)
    for index in range(count):
        described = picture(kind, first_seed + index)
        pixels[index] = draw(described)
        labels[index] = list(patch_labels(described).values())
    return Pictures(kind, first_seed, pixels, labels)


def cached(kind: str, first_seed: int, count: int, folder: Path) -> Pictures:
    """Return pictures out of a file in ``folder``, drawing them first if it is not there."""
    path = folder / f"{kind}-{first_seed}-{count}.npz"
    if not path.exists():
        made = draw_many(kind, first_seed, count)
        part = path.with_suffix(".part.npz")
        np.savez(part, pixels=made.pixels, labels=made.labels)
        part.rename(path)
    with np.load(path) as stored:
        return Pictures(kind, first_seed, stored["pixels"], stored["labels"])


def joined(parts: list[Pictures]) -> Pictures:
    """Return parts with consecutive seeds as one."""
    pixels = np.concatenate([part.pixels for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    return Pictures(parts[0].kind, parts[0].first_seed, pixels, labels)
