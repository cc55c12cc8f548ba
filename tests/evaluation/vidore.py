"""Small data sets in ViDoRe's layouts, and a retriever that sees colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage

from llavakit.embeddings import Embedding
from llavakit.errors import InputError
from llavakit.images import open_picture

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "grey": (128, 128, 128),
}


def png(*names: str) -> bytes:
    """Stripes of colours, from the left."""
    image = PILImage.new("RGB", (8 * len(names), 8))
    for number, name in enumerate(names):
        image.paste(COLOURS[name], (8 * number, 0, 8 * number + 8, 8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A parquet file, images as datasets stores them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    for row in rows:
        row = dict(row)
        if isinstance(row.get("image"), bytes):
            row["image"] = {"bytes": row["image"], "path": "somewhere.png"}
        kept.append(row)
    pq.write_table(pa.Table.from_pylist(kept), path)


def pairs(folder: Path, rows: Sequence[tuple[str | None, str, bytes]]) -> Path:
    """Version 1: query, name and image of each row; in two files."""
    made = [
        {"query": query, "image": image, "image_filename": name, "answer": None, "page": "3"}
        for query, name, image in rows
    ]
    half = (len(made) + 1) // 2
    write(folder / "data" / "test-00000-of-00002.parquet", made[:half])
    write(folder / "data" / "test-00001-of-00002.parquet", made[half:])
    return folder


def beir(
    folder: Path,
    pages: dict[int, bytes],
    queries: dict[int, tuple[str, str]],
    judged: Sequence[tuple[int, int, float]],
    dash: str = "-",
    name: str = "{}/test-00000-of-00001.parquet",
) -> Path:
    """Version 2, or 3 with another dash: pages, (query, language) and judgements."""
    query, page = f"query{dash}id", f"corpus{dash}id"
    write(
        folder / name.format("corpus"),
        [{page: number, "image": image, "doc-id": "d"} for number, image in pages.items()],
    )
    write(
        folder / name.format("queries"),
        [
            {query: number, "query": text, "language": language, "answer": "?"}
            for number, (text, language) in queries.items()
        ],
    )
    write(
        folder / name.format("qrels"),
        [{query: one, page: other, "score": score} for one, other, score in judged],
    )
    return folder


class Colours:
    """Embeds stripes of colours, and texts that name colours; a retriever that is never wrong.

    Attributes:
        images, texts: how many it has embedded.
    """

    dimensions = 3

    def __init__(self, fingerprint: str = "colours") -> None:
        self.fingerprint = fingerprint
        self.images = self.texts = 0
        self.stop_after: int | None = None

    def embed(
        self, *, images: Sequence[Any] | None = None, texts: Sequence[str] | None = None
    ) -> list[Embedding]:
        if texts is not None:
            self.texts += len(texts)
            return [self._text(text) for text in texts]
        found = []
        for image in images or ():
            if self.stop_after is not None and self.images >= self.stop_after:
                raise KeyboardInterrupt
            self.images += 1
            row = np.asarray(open_picture(image).rgb)[4, 4::8].astype(np.float32)
            if (row == COLOURS["grey"]).all():
                raise InputError("it is too grey")
            found.append(Embedding(_unit(row)))
        return found

    def _text(self, text: str) -> Embedding:
        if "grey" in text:
            raise InputError("it is too grey")
        named = [COLOURS[word] for word in text.split() if word in COLOURS]
        return Embedding(_unit(np.array(named, dtype=np.float32)), words=tuple(text.split()))


def _unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
