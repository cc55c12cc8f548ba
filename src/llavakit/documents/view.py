"""How the pages of documents become images."""

from __future__ import annotations

from dataclasses import dataclass

from llavakit._checks import check_integer, check_number, checked
from llavakit.documents.pages import MAX_PAGE_PIXELS


@checked
@dataclass(frozen=True, slots=True)
class View:
    """How the pages of documents become images (see :func:`open_files`)."""

    dpi: float = 144
    max_pixels: int = MAX_PAGE_PIXELS
    text: bool = False
    page_seconds: float | None = 30.0
    renderers: int | None = None

    def __post_init__(self) -> None:
        check_number("dpi", self.dpi, above=0)
        check_integer("max_pixels", self.max_pixels, least=1)
        if self.page_seconds is not None:
            check_number("page_seconds", self.page_seconds, above=0)
        if self.renderers is not None:
            check_integer("renderers", self.renderers, least=1)
