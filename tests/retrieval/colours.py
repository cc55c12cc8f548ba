"""An embedder of real vectors that takes no model: the colours of an image's places, and of words.

Run as a program it updates an index and reports each page, so that a test can kill it.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from llavakit.embeddings import Embedding
from llavakit.errors import ImageDecodeError
from llavakit.images import open_picture
from llavakit.retrieval import PageIndex

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 128, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "cyan": (0, 255, 255),
}
SIDE = 6
"""Places along each side of an image."""


class ColourEmbedder:
    """A place is the share of each of eight nearest colours in it; a word is its colour.

    Args:
        fingerprint: what it says it is.
        refuses: digests of images that it cannot embed.
        seconds: how long an image takes.
    """

    def __init__(
        self, fingerprint: str = "colours", refuses: Sequence[str] = (), seconds: float = 0.0
    ) -> None:
        self.fingerprint = fingerprint
        self.dimensions = len(COLOURS) + 16  # colours, and where other words go
        self.refuses = set(refuses)
        self.seconds = seconds
        self.images = 0

    def embed(
        self, *, images: Sequence[Any] | None = None, texts: Sequence[str] | None = None
    ) -> list[Embedding]:
        assert (images is None) != (texts is None)
        return [self._image(one) for one in images or ()] + [self._text(one) for one in texts or ()]

    def _image(self, image: Any) -> Embedding:
        picture = open_picture(image)
        if picture.digest in self.refuses:
            raise ImageDecodeError("This image is refused.")
        time.sleep(self.seconds)
        self.images += 1
        pixels = np.asarray(picture.rgb.resize((48, 48)), dtype=np.float32)
        palette = np.array(list(COLOURS.values()), dtype=np.float32)
        nearest = ((pixels[:, :, None] - palette) ** 2).sum(-1).argmin(-1)
        shares = np.eye(len(palette))[nearest].reshape(SIDE, 48 // SIDE, SIDE, 48 // SIDE, -1)
        places = shares.mean(axis=(1, 3)).reshape(SIDE * SIDE, -1)
        vectors = np.zeros((len(places), self.dimensions))
        vectors[:, : len(palette)] = places
        steps = np.arange(SIDE) / SIDE
        top, left = (one.reshape(-1) for one in np.meshgrid(steps, steps, indexing="ij"))
        boxes = np.stack([left, top, left + 1 / SIDE, top + 1 / SIDE], axis=1)
        return Embedding(_unit(vectors), boxes.astype(np.float32))

    def _text(self, text: str) -> Embedding:
        words = text.split()
        vectors = np.zeros((len(words), self.dimensions))
        for row, word in zip(vectors, words, strict=True):
            plain = word.strip("?.,").lower()
            if plain in COLOURS:
                row[list(COLOURS).index(plain)] = 1
            else:
                row[len(COLOURS) + hashlib.sha256(plain.encode()).digest()[0] % 16] = 1
        return Embedding(_unit(vectors), words=tuple(words))


def _unit(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    _, out, store, renderers, *paths = sys.argv
    index = PageIndex(out, ColourEmbedder(seconds=0.05), store=store)

    def told(progress: Any) -> None:
        print(progress.item.source, flush=True)

    import llavakit.retrieval.updating as updating

    updating.COMMIT_PAGES = 2
    index.update(paths, batch=2, renderers=int(renderers), progress=told)
