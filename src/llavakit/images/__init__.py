"""One entry point for pixels: whatever a caller calls an image becomes a :class:`Picture`.

Where bytes come from is :mod:`llavakit.sources`' concern. What a model does with the pixels
is not known here.
"""

from __future__ import annotations

from llavakit.images.open import Picture, hold, open_picture, peek_cost, peek_size, picture_size

__all__ = ["Picture", "hold", "open_picture", "peek_cost", "peek_size", "picture_size"]
