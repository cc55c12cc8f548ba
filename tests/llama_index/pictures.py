"""Images, their carriers' raw material, and an embedding that tells shapes apart."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.core.embeddings import MultiModalEmbedding
from PIL import Image as PILImage
from PIL import ImageDraw

WHITE = (255, 255, 255)


def draw(shape: str, colour: Any, size: int = 200) -> PILImage.Image:
    """A ``shape`` ("ellipse" or "rectangle") half as wide as its white image."""
    drawn = PILImage.new("RGB", (size, size), "white")
    box = (size // 4, size // 4, size - size // 4, size - size // 4)
    getattr(ImageDraw.Draw(drawn), shape)(box, fill=colour)
    return drawn


def png_of(drawn: PILImage.Image) -> bytes:
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Case:
    """One image in all the forms that carriers are made from."""

    png: bytes
    path: Path

    @property
    def b64(self) -> str:
        return base64.b64encode(self.png).decode()

    @property
    def uri(self) -> str:
        return f"data:image/png;base64,{self.b64}"

    @classmethod
    def drawn(cls, folder: Path, shape: str, colour: Any) -> Case:
        path = folder / f"{shape}.png"
        path.write_bytes(png_of(draw(shape, colour)))
        return cls(path.read_bytes(), path)


class ShapeEmbedding(MultiModalEmbedding):
    """Circles here, squares there: what an image shows, and what a text speaks of."""

    @classmethod
    def class_name(cls) -> str:
        return "shapes"

    def _get_query_embedding(self, query: str) -> list[float]:
        return [1.0 if word in query.lower() else 0.1 for word in ("circle", "square")]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_query_embedding(text)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return self._get_query_embedding(text)

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        image = PILImage.open(img_file_path).convert("RGB")
        corner = image.getpixel((image.width // 4 + 3, image.height // 4 + 3))
        return [1.0, 0.1] if corner == WHITE else [0.1, 1.0]

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._get_image_embedding(img_file_path)
