"""TIFFs as scanners, faxes and cameras write them, directory by directory."""

from __future__ import annotations

import struct
from collections.abc import Sequence

SHORT, LONG, RATIONAL = 3, 4, 5
Tag = tuple[int, int, Sequence[int]]


def written(*frames: tuple[bytes, Sequence[Tag], Sequence[tuple]], order: str = "<") -> bytes:
    """A TIFF of frames: pixels in strips of one row where ``rows`` is given, tags, SubIFDs.

    Each frame is (strips, tags, subs): a list of strips' bytes, further tags, and frames that
    become its SubIFDs.
    """
    out = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    link = 4
    for frame in frames:
        offset = _directory(out, frame, order)
        out[link : link + 4] = struct.pack(order + "I", offset)
        link = len(out) - 4
    return bytes(out)


def _directory(out: bytearray, frame: tuple, order: str) -> int:
    strips, tags, subs = frame
    places = []
    for strip in strips:
        places.append(len(out))
        out += strip
    tags = [*tags, (273, LONG, places), (279, LONG, [len(strip) for strip in strips])]
    if subs:
        inner = []
        for sub in subs:
            inner.append(_directory(out, sub, order))
        tags.append((330, LONG, inner))
    entries = b""
    for tag, kind, values in sorted(tags):
        size = {SHORT: "H", LONG: "I", RATIONAL: "I"}[kind]
        data = struct.pack(f"{order}{len(values)}{size}", *values)
        count = len(values) // 2 if kind == RATIONAL else len(values)
        if len(data) > 4:
            place = len(out)
            out += data
            data = struct.pack(order + "I", place)
        entries += struct.pack(order + "HHI", tag, kind, count) + data.ljust(4, b"\0")
    offset = len(out)
    out += struct.pack(order + "H", len(tags)) + entries + bytes(4)
    return offset


def bits(
    size: tuple[int, int], *more: Tag, rows: int = 1, subs: Sequence[tuple] = (), fill: int = 0xFF
) -> tuple:
    """A frame of one bit a pixel in strips of ``rows`` rows."""
    width, height = size
    row = bytes([fill]) * ((width + 7) // 8)
    strips = [row * min(rows, height - at) for at in range(0, height, rows)]
    known = {tag for tag, _, _ in more}
    tags = [
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, [1]),
        (259, SHORT, [1]),
        (262, SHORT, [1]),
        (277, SHORT, [1]),
        (278, LONG, [rows]),
    ]
    return strips, [*(one for one in tags if one[0] not in known), *more], list(subs)


def kind(value: int) -> Tag:
    """NewSubfileType."""
    return (254, LONG, [value])


def dpi(across: int, down: int) -> list[Tag]:
    """XResolution and YResolution."""
    return [(282, RATIONAL, [across, 1]), (283, RATIONAL, [down, 1])]
