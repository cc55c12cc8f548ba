"""The bundled demo model: its weights, and the example images of the web page; no torch in here.

How it was made from nothing is ``examples/demo_model/`` in the repository.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["checkpoint_path", "example_images"]


def checkpoint_path() -> Path:
    """Return the directory of the bundled checkpoint (weights, tokenizer, processor, template)."""
    return Path(__file__).resolve().parent / "checkpoint"


def example_images() -> Path:
    """Return the directory of the example images, which ``examples/demo_model`` drew (seed 0)."""
    return Path(__file__).resolve().parent / "images"
