"""Documents as pictures of their pages: PDF, TIFF and ordinary pictures.

No framework and no torch here; :mod:`llavakit.langchain` and :mod:`llavakit.llama_index`
build their loaders and readers upon this room.
"""

from llavakit.documents.pages import Page, count_pages, message_pages, open_pages

__all__ = ["Page", "count_pages", "message_pages", "open_pages"]
