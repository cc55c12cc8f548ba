"""The directories of a TIFF: which of its images are pages, and what their tags declare.

Pillow walks the directories by itself and gives each the same standing. Here they are walked
once, under a budget of their own, so that thumbnails, reduced copies and masks are known as such
and every page is opened at its own place, with budgets of its own.

Source: TIFF 6.0 (Adobe, 1992), pages 14 to 41; BigTIFF (libtiff.gitlab.io).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from llavakit.errors import ImageDecodeError

MOST_PAGES = 100_000
"""Most pages of one TIFF; one of 64 MiB that is honest has fewer."""

_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_WANTED = {254, 255, 256, 257, 258, 259, 262, 274, 277, 282, 283, 330}
_MOST_VALUES = 64  # of one tag; those that are read here need no more


@dataclass(frozen=True, slots=True)
class Directory:
    """One image of a TIFF.

    Attributes:
        offset: where its directory begins, in bytes.
        tags: the values of the tags that are of concern here, by number; rationals as floats.
    """

    offset: int
    tags: dict[int, tuple[float, ...]] = field(default_factory=dict)

    def value(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        values = self.tags.get(tag)
        return int(values[0]) if values else default

    @property
    def is_page(self) -> bool:
        """Whether it is an image in full resolution: no reduced copy, no mask of another one."""
        if 254 in self.tags:
            return not self.value(254) & (_REDUCED | _MASK)
        return self.value(255) != 2  # SubfileType, which NewSubfileType replaced: 2 is reduced

    @property
    def stretch(self) -> float:
        """Pixels across an inch for each pixel down an inch; 1 where pixels are square.

        Faxes have 204 x 98 dpi. What no device makes (beyond 1:10) is taken for a slip.
        """
        across, down = (self.tags.get(tag, (0.0,))[0] for tag in (282, 283))
        if not (across > 0 and down > 0 and 0.1 <= across / down <= 10):
            return 1.0
        return down / across if self.value(274, 1) >= 5 else across / down  # it lies on its side


@dataclass(frozen=True, slots=True)
class Directories:
    """The images of a TIFF.

    Attributes:
        pages: those that are pages, in their order.
        broken: why the chain of directories cannot be followed to its end; "" where it can.
    """

    pages: tuple[Directory, ...]
    broken: str


def read_directories(data: bytes) -> Directories:
    """Walk the chain of directories.

    A thumbnail whose image in full resolution is in its SubIFDs (as cameras write them) stands
    for that image. Where nothing claims to be in full resolution, everything is a page.

    Raises:
        ImageDecodeError: there is no first directory.
    """
    walk = _Walk(data)
    chain = walk.chain()
    if not chain:
        raise ImageDecodeError(
            f"The TIFF is truncated or damaged ({walk.broken}); send the whole file."
        )
    pages = []
    for one in chain:
        full = one if one.is_page else walk.full_resolution_of(one)
        if full is not None:
            pages.append(full)
    return Directories(tuple(pages or chain), walk.broken)


class _Walk:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        self._big = data[2:4] in (b"+\0", b"\0+")
        # Directories of honest files do not overlap.
        self._left = len(data) + 2**20
        self._seen: set[int] = set()
        self.broken = ""

    def chain(self) -> list[Directory]:
        found: list[Directory] = []
        try:
            offset = self._unpack("Q", 8)[0] if self._big else self._unpack("I", 4)[0]
            # One that leads back is the end: all that it leads to was seen.
            while offset and offset not in self._seen:
                if len(found) >= MOST_PAGES:
                    raise _Break(f"it has more than {MOST_PAGES:,} images")
                directory, offset = self._directory(offset)
                found.append(directory)
        except _Break as error:
            self.broken = str(error)
        if not (found or self.broken):
            self.broken = "it has no image"
        return found

    def full_resolution_of(self, reduced: Directory) -> Directory | None:
        """The image of which a directory is a copy, where it is among its SubIFDs."""
        for offset in reduced.tags.get(330, ()):
            try:
                directory, _ = self._directory(int(offset))
            except _Break:
                continue
            if directory.is_page and 256 in directory.tags:
                return directory
        return None

    def _directory(self, offset: int) -> tuple[Directory, int]:
        self._seen.add(offset)
        head, entry, link = ("Q", "HHQQ", "Q") if self._big else ("H", "HHII", "I")
        (count,) = self._unpack(head, offset)
        size = struct.calcsize(self._order + entry)
        start = offset + struct.calcsize(self._order + head)
        self._left -= count * size
        if self._left < 0:
            raise _Break("its directories lie in one another")
        if start + count * size > len(self._data):
            raise _Break("a directory goes on behind the end of the file")
        entries = memoryview(self._data)[start : start + count * size]
        tags = {}
        for at, one in enumerate(struct.iter_unpack(self._order + entry, entries)):
            if one[0] in _WANTED and one[0] not in tags:
                inline = start + at * size + size - struct.calcsize(self._order + link)
                tags[one[0]] = self._values(one[1], one[2], one[3], inline)
        # Some writers leave out the last link.
        end = start + count * size
        follows = end + struct.calcsize(self._order + link) <= len(self._data)
        return Directory(offset, tags), self._unpack(link, end)[0] if follows else 0

    def _values(self, kind: int, count: int, value: int, inline: int) -> tuple[float, ...]:
        """The values of a tag, as far as they can be read: a slip in one is no broken file."""
        count = min(count, _MOST_VALUES)
        width = _SIZES.get(kind, 0)
        offset = inline if count * width <= (8 if self._big else 4) else value
        try:
            if kind == 5:
                pairs = self._unpack(f"{2 * count}I", offset)
                return tuple(a / b if b else 0.0 for a, b in zip(*[iter(pairs)] * 2, strict=True))
            if kind in _CODES:
                return self._unpack(f"{count}{_CODES[kind]}", offset)
            if kind in (11, 12):
                return self._unpack(f"{count}{'f' if kind == 11 else 'd'}", offset)
        except _Break:
            pass
        return ()

    def _unpack(self, code: str, offset: int) -> tuple[Any, ...]:
        try:
            return struct.unpack_from(self._order + code, self._data, offset)
        except struct.error as error:
            raise _Break("it names a place behind the end of the file") from error


class _Break(Exception):
    """The chain cannot be followed any further."""


_DECODED = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32946, 34925, 50000, 50001))
_ALWAYS = frozenset((1, 2, 3, 4, 5, 7, 8, 32773, 32946))  # in whichever libtiff
_CODECS = {
    6: "old-style JPEG",
    9: "JBIG (T.85)",
    10: "JBIG (T.43)",
    32766: "NeXT RLE",
    32767: "Sony ARW",
    32769: "Epson ERF",
    32770: "Samsung SRW",
    32809: "ThunderScan",
    32867: "Kodak KDC",
    32895: "IT8 CTPAD",
    32896: "IT8 LW",
    32897: "IT8 MP",
    32898: "IT8 BL",
    32908: "Pixar film",
    32909: "Pixar log",
    32947: "Kodak DCS",
    33003: "JPEG 2000 (Aperio, YCbCr)",
    33004: "JPEG 2000 (lossy)",
    33005: "JPEG 2000 (Aperio, RGB)",
    33007: "JPEG (Alternative)",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv 24",
    34712: "JPEG 2000",
    34713: "Nikon NEF",
    34715: "JBIG2",
    34718: "MDI binary level",
    34719: "MDI progressive transform",
    34720: "MDI vector",
    34887: "LERC",
    34892: "lossy JPEG (DNG)",
    34925: "LZMA",
    34926: "Zstandard (old code)",
    34927: "WebP (old code)",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL (DNG)",
    65000: "Kodak DCR",
    65535: "Pentax PEF",
}


def undecoded_codec(directory: Directory) -> str | None:
    """The name of a compression that is not decoded here; None for one that may be."""
    code = directory.value(259, 1)
    return None if code in _DECODED else _codec(code)


def doubtful_codec(directory: Directory) -> str | None:
    """The name of a compression that not every libtiff decodes; None for the common ones."""
    code = directory.value(259, 1)
    return None if code in _ALWAYS else _codec(code)


def _codec(code: int) -> str:
    return f"{_CODECS[code]} ({code})" if code in _CODECS else f"code {code}"


def pixel_kind(directory: Directory) -> str:
    """What its pixels are, in the words of the format, for an error."""
    bits = "/".join(str(int(bit)) for bit in directory.tags.get(258, (1,)))
    return f"{bits} bits, photometric interpretation {directory.value(262)}"
