"""Which files of a folder, an archive or a portfolio are read, by the ends of their names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

_logger = logging.getLogger("llavakit.documents")

_ONE_IMAGE = "png apng jpg jpeg jpe jfif jif mpo webp gif bmp dib avif ppm pgm pbm pnm"
_ONE_IMAGE += " jp2 j2k j2c jpc jpf jpx"
_PAGES = "pdf tif tiff btf heic heif hif"
_ARCHIVES = "zip cbz"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _ONE_IMAGE.split())
"""Names of files that are one image each."""
SUFFIXES = IMAGE_SUFFIXES | {f".{name}" for name in f"{_PAGES} {_ARCHIVES}".split()}
"""Names that are read out of folders. The type of a file is still detected from its bytes."""

_MOST_KINDS = 12  # suffixes that are counted by name


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What is not read of a folder, an archive or a portfolio; as text, a sentence that says why.

    Attributes:
        source: its name.
        counts: how many files there are of each suffix, "" being that of names without one. Their
            names are not those of documents or images.
    """

    source: str
    counts: Mapping[str, int]

    @property
    def files(self) -> int:
        """How many files that are."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        most = sorted(self.counts.items(), key=lambda one: (-one[1], one[0]))
        kinds = [
            f"{count:,} {suffix or 'without a suffix'}" for suffix, count in most[:_MOST_KINDS]
        ]
        if len(most) > _MOST_KINDS:
            kinds.append(f"{sum(count for _, count in most[_MOST_KINDS:]):,} of other suffixes")
        return (
            f"Left out of {self.source[-200:]}: {self.files:,} "
            f"{'file' if self.files == 1 else 'files'} ({', '.join(kinds)}), whose names are not "
            "those of documents or images; name a file itself to have it read."
        )


Note: TypeAlias = Callable[[LeftOut], None]
"""What is called where something is left out."""


def log_left_out(left: LeftOut) -> None:
    """Log what is left out, as a warning."""
    _logger.warning("%s", left)


def noting(found: list[LeftOut]) -> Note:
    """Return what logs what is left out, and adds it to a list, each source once."""

    def note(left: LeftOut) -> None:
        log_left_out(left)
        found[:] = [*(one for one in found if one.source != left.source), left]

    return note
