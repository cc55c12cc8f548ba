"""transformers' own continuous batching, made to answer questions about images.

``generate_batch`` and its manager take token ids only (open: huggingface/transformers#43386).
So images become *virtual ids*: ids behind the vocabulary, which a patched embedding maps to
rows of a buffer of image features. Equal images get equal ids, so that its prefix sharing
works for them, too. This is the peer in its best form, not something that it documents.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders import Timing, Turns, load_processor, prompt_text


class PictureEmbedding(nn.Module):
    """Embeds text ids as before, and ids behind the vocabulary as rows of ``features``."""

    def __init__(self, text: nn.Embedding) -> None:
        super().__init__()
        self.text = text
        self.features = text.weight.new_empty(0, text.embedding_dim)

    @property
    def weight(self) -> Tensor:
        """The text's embeddings, where transformers looks for them."""
        return self.text.weight

    def forward(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.text(ids.clamp(max=self.text.num_embeddings - 1))
        of_pictures = ids >= self.text.num_embeddings
        if of_pictures.any():
            rows = ids[of_pictures].long() - self.text.num_embeddings
            embedded[of_pictures] = self.features[rows]
        return embedded


class ContinuousBatching:
    """``transformers``' continuous batching with virtual ids, all requests at once."""

    name = "HF continuous batching, virtual ids"

    def __init__(self, path: Path, forbidden: Sequence[int]) -> None:
        from transformers import AutoModelForImageTextToText, GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        self.model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        self.processor = load_processor(path)
        self._embedding = PictureEmbedding(self.model.get_input_embeddings())
        self.model.set_input_embeddings(self._embedding)
        self._generation = GenerationConfig(
            do_sample=False, eos_token_id=2, pad_token_id=0, suppress_tokens=list(forbidden)
        )
        # Small pages share more of a prefix; the rest as our engine has it.
        self._settings = ContinuousBatchingConfig(
            page_size=32, num_blocks=384, max_batch_tokens=2048, auto_switch_to_flash=False
        )

    def forget(self) -> None:
        """Nothing to do: every run has a manager of its own."""

    def run(self, requests: Sequence[Turns], max_tokens: int) -> list[Timing]:
        """Answer all requests; the manager and its cache are made before the clock starts."""
        with self.model.continuous_batching_context_manager(
            generation_config=self._generation, continuous_batching_config=self._settings
        ) as manager:
            began = time.perf_counter()
            prompts = self._prompts(requests)
            numbers = manager.add_requests(
                prompts, max_new_tokens=max_tokens, record_timestamps=True
            )
            done: dict[str, Any] = {}
            while len(done) < len(numbers):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    done[result.request_id] = result
                elif result is None and not manager.is_running():
                    raise RuntimeError("transformers' continuous batching stopped by itself")
        return [self._timing(done[number], began) for number in numbers]

    def _timing(self, result: Any, began: float) -> Timing:
        if result.error is not None:
            raise RuntimeError(f"transformers' continuous batching failed: {result.error}")
        tokens = result.generated_tokens
        text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return Timing(
            result.timestamps[0] - began, result.timestamps[-1] - began, len(tokens), text.strip()
        )

    def _prompts(self, requests: Sequence[Turns]) -> list[list[int]]:
        """Prompts as ids; the images, each once, are encoded in one batch."""
        found: dict[bytes, Any] = {}
        for turns in requests:
            for picture in _pictures(turns):
                found.setdefault(picture.tobytes(), picture)
        first: dict[bytes, int] = {}
        count = 0
        if found:
            count = self._encode(list(found.values()))
            start = self._embedding.text.num_embeddings
            first = {key: start + row * count for row, key in enumerate(found)}
        return [self._ids(turns, first, count) for turns in requests]

    def _encode(self, pictures: list[Any]) -> int:
        """Fill the buffer of features; returns how many tokens an image takes."""
        pixels = self.processor.image_processor(images=pictures, return_tensors="pt")
        with torch.inference_mode():
            features = self.model.model.get_image_features(
                pixel_values=pixels["pixel_values"], return_dict=True
            ).pooler_output
        # Cloned, because tensors of inference mode do not go into a forward pass outside it.
        self._embedding.features = torch.cat(list(features)).clone()
        return len(features[0])

    def _ids(self, turns: Turns, first: dict[bytes, int], count: int) -> list[int]:
        image = self.model.config.image_token_id
        pictures = iter(_pictures(turns))
        ids: list[int] = []
        for token in self.processor.tokenizer(prompt_text(self.processor, turns))["input_ids"]:
            if token == image:
                start = first[next(pictures).tobytes()]
                ids += range(start, start + count)
            else:
                ids.append(token)
        return ids


def _pictures(turns: Turns) -> list[Any]:
    return [part for _, parts in turns for part in parts if not isinstance(part, str)]
