"""Pages in an archive (ZIP, CBZ): those of its documents and images, in the order of their names.

An archive is one document. Its members are read one at a time and never written to a disk, so
that their names (``../../etc``) lead nowhere.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from llavakit.documents.passwords import encrypted
from llavakit.documents.suffixes import SUFFIXES, LeftOut, Note
from llavakit.errors import DocumentError, ImageError, ImageTooLargeError, UnsupportedImageError
from llavakit.sources.formats import sniff

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from llavakit.documents.readers import PageReader
    from llavakit.documents.text_layer import TextLayer
    from llavakit.sources import SourcePolicy

MOST_MEMBERS = 100_000
"""Most files of an archive."""

_TIMES = 128  # SourcePolicy.max_bytes: what all members together may give
_OF_SEVERAL = ("PDF", "TIFF", "HEIC")
_HEAD = 4096
_DIGITS = re.compile(r"(\d+)")
_AES = 99


class ArchiveReader:
    """An archive as one document (see :class:`~llavakit.documents.readers.PageReader`).

    Args:
        data: all of it.
        label: its name in errors.
        policy: most bytes of a member.
        unlocked: calls what it is given with passwords, until one of them does not raise
            ``PasswordError``.
        open_member: opens the document that a member is, given its content and name.
        note: called with what is left out.
    """

    def __init__(
        self,
        data: bytes,
        label: str,
        policy: SourcePolicy,
        unlocked: Callable[[Callable[[str | None], None]], None],
        open_member: Callable[[bytes, str], PageReader],
        note: Note,
    ) -> None:
        self._note = note
        self._label = label
        self._cap = policy.max_bytes
        self._unlocked = unlocked
        self._open_member = open_member
        self._left = _TIMES * policy.max_bytes
        self._password: bytes | None = None
        self._open: tuple[int, PageReader] | None = None
        self._file = self._listed(data)
        self._members = self._pages_first()
        self._unlock()
        # For each page its member and its number there; None where the member does not open.
        self._places: list[tuple[int, int]] = []
        for at, member in enumerate(self._members):
            self._places += [(at, number) for number in range(1, self._count_of(at, member) + 1)]
        if not self._places:
            raise DocumentError(f"The archive {label} holds no images and no documents.")

    @property
    def spent(self) -> str:
        """Why no more of it is read; "" while it is."""
        return "its members together are larger than any honest archive's" if self._is_spent else ""

    @property
    def _is_spent(self) -> bool:
        return self._left < 0

    def count(self) -> int:
        return len(self._places)

    def page(self, number: int) -> tuple[PILImage.Image, TextLayer | None] | None:
        if number > len(self._places):
            return None
        at, inner = self._places[number - 1]
        member = self._members[at].filename[-60:]
        try:
            found = self._reader(at).page(inner)
        except (DocumentError, ImageError) as error:
            kind = type(error) if isinstance(error, DocumentError) else DocumentError
            raise kind(f"Page {number} of {self._label} ({member}): {error}") from error
        if found is None:
            raise DocumentError(f"Page {number} of {self._label} ({member}) is not there.")
        return found

    def attachments(self) -> list[str]:
        return []

    def attachment(self, index: int) -> bytes:
        raise DocumentError("It has no attachments.")

    def close(self) -> None:
        self._let_go()
        self._file.close()

    def _listed(self, data: bytes) -> zipfile.ZipFile:
        try:
            file = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, *_BROKEN) as error:
            raise DocumentError(
                f"{self._label} is a damaged ZIP archive or Office document; send the whole file."
            ) from error
        names = {one.filename for one in file.infolist()}
        if "[Content_Types].xml" in names or "mimetype" in names:
            raise UnsupportedImageError(
                "This is an Office document or an e-book, which has no pages before it is laid "
                "out; export it as a PDF."
            )
        if len(names) > MOST_MEMBERS:
            raise DocumentError(
                f"The archive {self._label} has {len(names):,} files, above {MOST_MEMBERS:,}; make "
                "several of it."
            )
        return file

    def _pages_first(self) -> list[zipfile.ZipInfo]:
        """The members that are documents or images, in the order in which people count."""
        left_out: Counter[str] = Counter()
        found = []
        for one in self._file.infolist():
            parts = PurePosixPath(one.filename.replace("\\", "/")).parts
            if one.is_dir() or any(_is_hidden(part) for part in parts):
                continue
            suffix = PurePosixPath(one.filename).suffix.lower()
            if suffix in SUFFIXES:
                found.append(one)
            else:
                left_out[suffix] += 1
        if left_out:
            self._note(LeftOut(self._label, left_out))
        return sorted(found, key=lambda one: _as_counted(one.filename))

    def _unlock(self) -> None:
        """Finds the password, where there are encrypted members.

        Raises:
            PasswordError: it is not known.
            DocumentError: the encryption is one that Python does not know.
        """
        locked = [one for one in self._members if one.flag_bits & 1]
        if not locked:
            return
        if any(one.compress_type == _AES for one in locked):
            raise DocumentError(
                f"{self._label} is encrypted with AES, which is not read here; extract it first."
            )

        def attempt(password: str | None) -> None:
            if password is None:
                raise encrypted(self._label, None)
            try:
                with self._file.open(locked[0], pwd=password.encode()) as stream:
                    stream.read(1)
            except (RuntimeError, zipfile.BadZipFile, *_BROKEN) as error:
                raise encrypted(self._label, password) from error
            self._password = password.encode()

        self._unlocked(attempt)

    def _count_of(self, at: int, member: zipfile.ZipInfo) -> int:
        """The pages of a member: one, where it does not open or is one image."""
        try:
            if sniff(self._bytes(member, _HEAD)) not in _OF_SEVERAL:
                return 1
            return self._reader(at).count()
        except (DocumentError, ImageError):
            return 1  # the failure that it is

    def _reader(self, at: int) -> PageReader:
        if self._open is not None and self._open[0] == at:
            return self._open[1]
        self._let_go()
        member = self._members[at]
        reader = self._open_member(self._bytes(member), member.filename)
        self._open = (at, reader)
        return reader

    def _let_go(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _bytes(self, member: zipfile.ZipInfo, most: int | None = None) -> bytes:
        """The content of a member, or its first bytes. What it claims as its size is not believed.

        Raises:
            ImageTooLargeError: over ``max_bytes``, or over what all members may give.
            DocumentError: damaged, or packed in a way that is not known.
        """
        cap = self._cap
        wanted = cap + 1 if most is None else most
        try:
            with self._file.open(member, pwd=self._password) as stream:
                data = stream.read(wanted)
        except (NotImplementedError, RuntimeError) as error:
            raise DocumentError(
                f"it is packed or encrypted in a way that is not known here ({error}); extract "
                "the archive first."
            ) from error
        except (zipfile.BadZipFile, *_BROKEN) as error:
            raise DocumentError("it is damaged in the archive; send the whole file.") from error
        if most is not None:
            return data
        self._left -= len(data)
        if self._is_spent:
            raise ImageTooLargeError("The archive's members together are too large; split it.")
        if len(data) > cap:
            raise ImageTooLargeError(
                f"It has more than the {cap:,} bytes of SourcePolicy.max_bytes when it is "
                "unpacked; shrink it or raise the cap."
            )
        return data


# What zipfile, zlib and lzma raise for damaged bytes.
_BROKEN = (zlib.error, EOFError, OSError, ValueError, struct.error, IndexError)


def _is_hidden(part: str) -> bool:
    return part == "__MACOSX" or (part.startswith(".") and part not in (".", ".."))


def _as_counted(name: str) -> list[tuple[int, int, str]]:
    """A key by which page 10 comes after page 2."""
    parts = _DIGITS.split(name.lower())
    return [(0, int(one), "") if one.isdigit() else (1, 0, one) for one in parts if one]
