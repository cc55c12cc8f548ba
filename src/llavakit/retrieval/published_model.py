"""A published retriever in memory: images and texts in, vectors out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from llavakit.embeddings import Embedding
from llavakit.engine import memory
from llavakit.errors import (
    CheckpointError,
    ContextLengthError,
    EngineError,
    InputError,
    OutOfMemoryError,
    UnsupportedImageError,
)
from llavakit.images import Picture
from llavakit.retrieval.published_families import WHOLE, Family

MOST_ROWS = 32
"""Images or texts of one batch; more would only be padding and memory."""

_PIXEL_BYTES = 3 + 3 * 8  # of a decoded image: as it is, and twice in fp32 while it is resized

Row = TypeVar("Row")


class LoadedRetriever:
    """A retriever in memory.

    Args:
        path: the checkpoint's directory, for messages.
        family: the kind of retriever.
        config: its HF configuration.
        processor: makes tensors of images and of texts.
        model: the HF model.
    """

    def __init__(self, path: Path, family: Family, config: Any, processor: Any, model: Any) -> None:
        self._path = path
        self._family = family
        self._processor = processor
        self._model = model
        self._lock = threading.Lock()
        self._text = config.vlm_config.get_text_config()
        self._vision = config.vlm_config.vision_config
        self._image_token = int(processor.image_token_id)

    def images(self, pictures: Iterable[Picture]) -> list[Embedding]:
        """Embed images, of which one batch at a time is taken."""
        return self._all(pictures, self._image_bytes, self._image_batch)

    def texts(self, queries: Iterable[str]) -> list[Embedding]:
        """Embed queries."""
        return self._all(queries, self._text_bytes, self._text_batch)

    def _all(
        self,
        rows: Iterable[Row],
        bytes_of: Callable[[Row], int],
        embed: Callable[[list[Row]], list[Embedding]],
    ) -> list[Embedding]:
        """Embed rows in batches that have room."""
        found: list[Embedding] = []
        batch: list[Row] = []
        most = 0
        for row in rows:
            taken = bytes_of(row)
            # All rows are padded to the longest, so that each takes what the largest does.
            full = (len(batch) + 1) * max(most, taken) > self._room()
            if batch and (full or len(batch) == MOST_ROWS):
                found += self._run(batch, embed)
                batch, most = [], 0
            batch.append(row)
            most = max(most, taken)
        return found + (self._run(batch, embed) if batch else [])

    def _run(
        self, rows: list[Row], embed: Callable[[list[Row]], list[Embedding]]
    ) -> list[Embedding]:
        """Embed rows together, or in halves where there is no memory for all of them at once."""
        try:
            with self._lock:
                return embed(rows)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise OutOfMemoryError(
                    f"{self._path.name} has no memory for one input; take a smaller "
                    "image or text, or a device with more memory."
                ) from error
        self._forget()
        half = len(rows) // 2
        return self._run(rows[:half], embed) + self._run(rows[half:], embed)

    def _image_batch(self, pictures: list[Picture]) -> list[Embedding]:
        inputs = self._processor.process_images(images=[one.rgb for one in pictures])
        rows = self._vectors(inputs)
        return [
            Embedding(vectors, places=self._places(inputs, row, ids, pictures[row].size))
            for row, (ids, vectors) in enumerate(rows)
        ]

    def _text_batch(self, queries: list[str]) -> list[Embedding]:
        mark = self._processor.image_token
        if any(mark in query for query in queries):
            raise InputError(
                f"A query holds {mark}, which stands for an image in this model; leave it out."
            )
        inputs = self._processor.process_queries(text=queries)
        self._check_lengths(queries, inputs)
        decode = self._processor.tokenizer.decode
        return [
            Embedding(vectors, words=tuple(decode([int(one)]).strip() for one in ids))
            for ids, vectors in self._vectors(inputs)
        ]

    def _check_lengths(self, queries: list[str], inputs: Any) -> None:
        limit = getattr(self._text, "max_position_embeddings", None)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        for query, length in zip(queries, lengths, strict=True):
            if limit is not None and length > limit:
                raise ContextLengthError(
                    f"A query has {length} tokens and the model takes {limit}; it begins with "
                    f"{query[:40]!r}. Shorten it.",
                    prompt_tokens=int(length),
                    context_length=int(limit),
                )

    def _vectors(self, inputs: Any) -> list[tuple[Any, Any]]:
        """Token ids and vectors of each row, without padding: [tokens], [tokens, dimensions]."""
        import torch

        place = self._model.device
        tensors = {
            name: value.to(place)
            for name, value in inputs.items()
            if name != "labels" and isinstance(value, torch.Tensor)
        }
        with torch.inference_mode():
            embeddings = self._model(**tensors).embeddings.float().cpu().numpy()
        rows = []
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            real = embeddings[row][mask.numpy()]
            lengths = np.linalg.norm(real, axis=1, keepdims=True)
            if not np.isfinite(lengths).all() or not lengths.all():
                raise EngineError(
                    f"{self._path.name} computed numbers that are not finite in "
                    f"{self._model.dtype}; load it with another dtype, such as float32."
                )
            # In 16 bits, lengths differ from 1 by up to a hundredth.
            rows.append((inputs["input_ids"][row][mask], real / lengths))
        return rows

    def _places(self, inputs: Any, row: int, ids: Any, size: tuple[int, int]) -> Any:
        """The box of every token's place: [tokens, 4]."""
        patches = (ids == self._image_token).numpy()
        boxes = self._family.boxes(self._processor, inputs, row, size)
        if int(patches.sum()) != len(boxes):
            raise CheckpointError(
                f"The processor in {self._path} makes {int(patches.sum())} tokens of an "
                f"image of {size[0]}x{size[1]} pixels where its settings say {len(boxes)}; its "
                "files are not those of one checkpoint."
            )
        places = np.tile(np.array(WHOLE, dtype=np.float32), (len(ids), 1))
        places[patches] = boxes
        return places

    def _image_bytes(self, picture: Picture) -> int:
        """A generous estimate of what an image takes while it is embedded."""
        width, height = picture.size
        try:
            tokens = self._family.patches(self._processor, picture.size)
        except ValueError as error:
            raise UnsupportedImageError(
                f"{self._family.title} cannot take an image of {width}x{height} pixels ({error}); "
                "give a part of it."
            ) from error
        wide = int(getattr(self._vision, "embed_dim", None) or self._vision.hidden_size)
        seen = 2 * self._family.merged * 8 * wide * tokens * self._model.dtype.itemsize
        return int(self._token_bytes(tokens) + seen + _PIXEL_BYTES * width * height)

    def _text_bytes(self, query: str) -> int:
        return self._token_bytes(len(query.encode()))

    def _token_bytes(self, tokens: int) -> int:
        tokens += 64  # the prompt, or prefix and suffix
        wide = 4 * self._text.hidden_size + 3 * self._text.intermediate_size
        return 2 * int(tokens * wide * self._model.dtype.itemsize + 4 * tokens**2)

    def _room(self) -> int:
        """Bytes that one batch may take."""
        import torch

        if self._model.device.type == "cuda":
            place = self._model.device
            free, _ = torch.cuda.mem_get_info(place)
            # What earlier batches have used is torch's, and free for this one.
            kept = torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
            return int(free + kept) // 2
        return memory.available() // 4

    def _forget(self) -> None:
        import torch

        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # What torch's allocator for processors raises has no class of its own.
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)
