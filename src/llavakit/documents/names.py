"""Names of documents, for pages and for errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def name_of(source: Any) -> str:
    """A name for pages and errors: no content, no credentials, no tokens of a query."""
    if not isinstance(source, (str, Path)):
        source = getattr(source, "filename", None) or getattr(source, "name", None)
        if not isinstance(source, (str, os.PathLike)):
            return "the document"
    name = os.fspath(source)
    inline = name.lstrip()[:5].lower() == "data:" or (len(name) > 200 and not Path(name).suffix)
    if inline or len(name) > 4096:
        return "the document"
    if "://" in name:
        try:
            parts = urlsplit(name.strip())
        except ValueError:
            return "the document"
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return str(name)


def label_of(source: Any) -> str:
    """The name as it stands in an error: at most 80 characters, of which the end says the most."""
    name = name_of(source)
    return name if len(name) <= 80 else f"...{name[-77:]}"
