"""Which files of a folder, an archive or a portfolio are read, by the ends of their names."""

from __future__ import annotations

from collections.abc import Mapping

_ONE_IMAGE = "png apng jpg jpeg jpe jfif jif mpo webp gif bmp dib avif ppm pgm pbm pnm"
_ONE_IMAGE += " jp2 j2k j2c jpc jpf jpx"
_PAGES = "pdf tif tiff btf heic heif hif"
_ARCHIVES = "zip cbz"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _ONE_IMAGE.split())
"""Names of files that are one image each."""
SUFFIXES = IMAGE_SUFFIXES | {f".{name}" for name in f"{_PAGES} {_ARCHIVES}".split()}
"""Names that are read out of folders. The type of a file is still detected from its bytes."""

_MOST_KINDS = 12  # suffixes that are counted by name


def left_out_of(name: str, counts: Mapping[str, int]) -> str:
    """Return a sentence about what is not read of a folder or an archive.

    Args:
        name: of the folder.
        counts: how many files there are of each suffix, "" being that of names without one.
    """
    most = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    kinds = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in most[:_MOST_KINDS]]
    if len(most) > _MOST_KINDS:
        kinds.append(f"{sum(count for _, count in most[_MOST_KINDS:]):,} of other suffixes")
    total = sum(counts.values())
    return (
        f"Left out of {name[-200:]}: {total:,} {'file' if total == 1 else 'files'} "
        f"({', '.join(kinds)}), whose names are not those of documents or images; name a file "
        "itself to have it read."
    )
