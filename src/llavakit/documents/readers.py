"""What an open document can be asked, whatever its format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from llavakit.documents.text_layer import TextLayer


class PageReader(Protocol):
    """An open document. ``page`` may be called in any order; nothing after ``close``."""

    @property
    def spent(self) -> str:
        """Why no more of its pages can be read; "" while they can."""

    def count(self) -> int:
        """The number of pages that the document declares."""

    def page(self, number: int) -> tuple[PILImage.Image, TextLayer | None] | None:
        """Pixels (mode RGB) and text of page ``number`` (from 1), or None past the end."""

    def attachments(self) -> list[str]:
        """The names of files that are attached to it."""

    def attachment(self, index: int) -> bytes:
        """The content of an attached file."""

    def close(self) -> None:
        """Frees what the document holds; may be called twice."""
