"""Which model looks, and what clients may name."""

from __future__ import annotations

from dataclasses import replace

from llavakit.questions.asking import ImageAsker
from llavakit.questions.references import Reach
from llavakit.sources import SourcePolicy

MAX_IMAGE_BYTES = 20 * 2**20
MAX_IMAGE_PIXELS = 40_000_000


class MCPSettings(ImageAsker):
    """A model that looks, and what clients of an MCP server may ask it about.

    The settings of :class:`~llavakit.questions.ImageAsker`: ``model`` or ``base_url``,
    ``attachments``, ``roots``, ``allow_urls``, ``max_tokens``, ``max_pages``, ``timeout``, ...
    Nothing is loaded by construction.
    """

    allow_data: bool = True
    """Whether clients may send images themselves, as ``data:`` URLs."""

    @property
    def policy(self) -> SourcePolicy:
        """What may be opened; by default at most 20 MiB and 40 million pixels of an image."""
        if self.source_policy is None and self.backend is None:
            return SourcePolicy(max_bytes=MAX_IMAGE_BYTES, max_pixels=MAX_IMAGE_PIXELS)
        return super().policy

    def reach(self) -> Reach:
        """Return what clients may name or send beside the attachments."""
        return replace(super().reach(), allow_data=self.allow_data)
