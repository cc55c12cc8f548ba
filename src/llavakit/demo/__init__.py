"""The bundled demo model and the world that it knows: no torch in here.

Pictures of coloured shapes (:mod:`~llavakit.demo.scenes`), small printed pages
(:mod:`~llavakit.demo.pages`) and questions about them (:mod:`~llavakit.demo.questions`). The model
is trained by :mod:`llavakit.training.demo_train`.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["checkpoint_path"]


def checkpoint_path() -> Path:
    """Return the directory of the bundled checkpoint (weights, tokenizer, processor, template)."""
    return Path(__file__).resolve().parent / "checkpoint"
