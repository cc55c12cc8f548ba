"""Documents in documents: what is attached to a PDF, as portfolios are, each by a name of its own.

``portfolio.pdf#attachment=invoice.pdf`` names one, wherever documents are named.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from llavakit.documents.suffixes import SUFFIXES

MARK = "#attachment="
DEEPEST = 3
"""How deep attachments are followed: a file can hold itself."""


def split_name(name: str) -> tuple[str, str | None]:
    """Return the document's name and that of its attachment, the innermost; None for no such.

    A file that is called so is that file.
    """
    parent, mark, inner = name.rpartition(MARK)
    if not mark or _exists(name):
        return name, None
    return parent, inner


def outermost(name: str) -> str:
    """Return the name of the file in which a document is."""
    return name if _exists(name) else name.partition(MARK)[0]


def distinct(names: Sequence[str]) -> list[str]:
    """Return names none of which comes twice: the second ``a.pdf`` is ``2:a.pdf``."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{seen[name]}:{name}")
    return found


def documents_among(names: Sequence[str]) -> Iterator[int]:
    """The places of those names that are documents' or images'."""
    for at, name in enumerate(names):
        if Path(name).suffix.lower() in SUFFIXES:
            yield at


def others_among(names: Sequence[str]) -> Counter[str]:
    """How many names of each other suffix there are."""
    suffixes = (Path(name).suffix.lower() for name in names)
    return Counter(suffix for suffix in suffixes if suffix not in SUFFIXES)


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False
