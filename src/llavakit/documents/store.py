"""Images of pages kept on disk, each under its digest.

Equal pages are one file, whatever documents they came from. Processes may share a folder:
files appear whole or not at all, and what they hold never changes.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from llavakit._checks import checked, refused
from llavakit.errors import ImageError, ParameterError, SourceFetchError, SourceNotFoundError
from llavakit.images import Picture, open_picture
from llavakit.runs.atomic import write_atomic
from llavakit.sources import SourcePolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIGEST = re.compile(r"[0-9a-f]{64}")


class PageStore:
    """A folder of images, ``ab/abcd....png`` for the digest ``abcd...``.

    Args:
        folder: where; made when the first image is put there.

    Raises:
        ParameterError: no name of a folder.
    """

    @checked
    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not os.fspath(folder):
            raise refused("folder", folder, "the name of a folder")
        self.folder = Path(folder)

    @checked
    def path(self, digest: str) -> Path:
        """Where the image of a digest is, or would be.

        Raises:
            ParameterError: it is no sha256 in hex.
        """
        if not _DIGEST.fullmatch(digest):
            raise ParameterError(f"{digest[:80]!r} is no digest: 64 characters of 0-9 and a-f.")
        return self.folder / digest[:2] / f"{digest}.png"

    @checked
    def put(self, picture: Picture) -> Path:
        """Keeps an image, without loss, and says where; one that is there is left alone.

        Raises:
            SourceFetchError: the disk is full, or the folder may not be written.
        """
        path = self.path(picture.digest)
        if path.is_file():
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SourceFetchError(
                f"{path.parent} cannot be made ({error.strerror}); name another folder."
            ) from error
        png = io.BytesIO()
        picture.rgb.save(png, "PNG", compress_level=1)
        write_atomic(path, png.getvalue())
        return path

    def get(self, digest: str) -> Picture | None:
        """The image of a digest; None if it is not there.

        One that is damaged on disk is taken away, as if it had never been there.

        Raises:
            ParameterError: no digest.
            SourceFetchError: it is there and may not be read.
        """
        path = self.path(digest)
        try:
            picture = open_picture(path, _ANY_SIZE)
        except SourceNotFoundError:
            return None
        except ImageError:
            picture = None
        if picture is None or picture.digest != digest:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        return picture

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def __iter__(self) -> Iterator[str]:
        """The digests of all images."""
        for path in sorted(self.folder.glob("[0-9a-f][0-9a-f]/*.png")):
            if _DIGEST.fullmatch(path.stem):
                yield path.stem


# What was kept was within a policy's caps already; PNG may be larger than what it came from.
_ANY_SIZE = SourcePolicy(max_bytes=2**30, max_pixels=2**30, max_side=2**20)
