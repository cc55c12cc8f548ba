"""Arguments that name images -> llavakit images, with pages of documents and videos."""

from __future__ import annotations

import sys
from collections.abc import Sequence, Set
from pathlib import Path

from llavakit.cli.terminal import note, usage_error
from llavakit.documents.ranges import PageRange, named_range
from llavakit.sources.formats import sniff
from llavakit.values import Image, Video

_PAGED = {"PDF", "TIFF"}
_VIDEO_ENDS = (".mp4", ".mov", ".webm", ".mkv", ".avi")


def to_images(arguments: Sequence[str], pages: Sequence[int] = ()) -> list[Image | Video]:
    """The images and videos that arguments name, in their order.

    Args:
        arguments: paths, URLs, ``-`` for stdin; ``scan.pdf#page=2`` is one page,
            ``scan.pdf#pages=1-3,7`` are some.
        pages: pages to take of each PDF and TIFF that names none itself.

    A document without a wish for pages gives its first one, and a note about the others.

    Raises:
        ImageError, SourceError, DocumentError: what cannot be opened.
    """
    if sum(argument == "-" for argument in arguments) > 1:
        raise usage_error("Only one image can come from stdin.")
    images: list[Image | Video] = []
    paged = False
    for argument in arguments:
        name, wanted = named_range(argument)
        source: str | bytes = sys.stdin.buffer.read() if name == "-" else name
        if wanted is None and _is(source, {"VIDEO"}, _VIDEO_ENDS):
            images.append(Video(source))
            continue
        if wanted is None and not _is(source, _PAGED, (".pdf",)):
            images.append(Image(source))
            continue
        paged = paged or wanted is None
        images.extend(_pages(source, name, _numbers(source, wanted) if wanted else pages))
    if pages and not paged:
        raise usage_error("--page needs a PDF or a TIFF that names no pages itself.")
    return images


def _numbers(source: str | bytes, wanted: PageRange) -> list[int]:
    from llavakit.documents import count_pages

    alone = len(wanted.parts) == 1 and wanted.parts[0][0] == wanted.parts[0][1]
    return list(wanted.numbers(None if alone else count_pages(source)))


def _is(source: str | bytes, kinds: Set[str], ends: tuple[str, ...]) -> bool:
    """Whether a source is of such a kind, by its bytes, or by its name where it is not here."""
    if isinstance(source, bytes):
        return sniff(source) in kinds
    # A URL, or not a file at all: what opens it refuses it.
    try:
        # A pipe without a writer would be opened for ever; whatever opens the image refuses it.
        if not Path(source).is_file():
            return source.lower().partition("?")[0].endswith(ends)
        with Path(source).open("rb") as file:
            return sniff(file.read(4096)) in kinds
    except (OSError, ValueError):
        return source.lower().partition("?")[0].endswith(ends)


def _pages(source: str | bytes, name: str, wanted: Sequence[int]) -> list[Image]:
    from llavakit.documents import count_pages, open_pages

    if not wanted:
        count = count_pages(source)
        if count > 1:
            note(
                f"llavakit: {name} has {count} pages, and only the first is used; choose with "
                f"{name}#pages=1-3, or --page N on the command line."
            )
        wanted = [1]
    return [Image(page.picture) for page in open_pages(source, pages=wanted)]
