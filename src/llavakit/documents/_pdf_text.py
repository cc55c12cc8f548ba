"""The text of a PDF's page as it is shown: characters, boxes, and lines in reading order.

Called under the lock of :mod:`llavakit.documents._pdf`. Characters come from pdfium in the order
of the page's contents, which of pages that are not turned is a better order than any that could
be found by looking. Turned pages, text that runs another way, and what was filled in later are
put in order by where they stand.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby, pairwise
from typing import Any

from llavakit.documents.text_layer import Box, TextLayer, Word, broken_share, covered_ink

_SPACE = 1_000_000  # units of the square onto which pages are mapped
_UNUSABLE = {"\0": "", "\ufffe": "-", "\uffff": ""}  # pdfium marks a hyphen at a line's end
_BREAKS = "\r\n\u2028\u2029"


@dataclass(slots=True)
class _Glyph:
    char: str
    box: Box | None = None  # None for what pdfium put in: spaces, ends of lines
    late: int = 0  # the annotation or field of a form that it stands in, from 1; 0 for print


@dataclass(slots=True)
class _Line:
    glyphs: list[_Glyph]
    turn: int = 0  # quarters that its direction is turned by, clockwise, as the page is shown
    box: Box = (0, 0, 0, 0)
    late: bool = False
    text: str = field(init=False)

    def __post_init__(self) -> None:
        self.text = "".join(one.char for one in self.glyphs).strip()
        boxes = [one.box for one in self.glyphs if one.box is not None]
        self.box = _around(boxes) if boxes else (0, 0, 0, 0)
        self.late = any(one.late for one in self.glyphs)


def read_layer(page: Any, own_objects: int, image: Any) -> TextLayer:
    """The text layer of a page.

    Args:
        page: pypdfium2's page, annotations flattened into it.
        own_objects: how many of its objects were there before that.
        image: the page as it is drawn.
    """
    import pypdfium2.raw as pdfium

    text_page = page.get_textpage()
    try:
        to_shown = _mapping(page)
        late = _late_objects(pdfium, page, own_objects)
        glyphs = list(_glyphs(pdfium, text_page, to_shown, late))
        turns = _turns(pdfium, text_page, page)
        unmapped = _unmapped(pdfium, text_page)
    finally:
        text_page.close()
    lines = _ordered(_lines(glyphs, turns), turned=page.get_rotation() != 0)
    text = "\n".join(line.text for line in lines)
    words = tuple(word for line in lines for word in _words(line))
    ink = covered_ink(image, [word.box for word in words])
    return TextLayer(text, words, round(broken_share(text, unmapped), 4), round(ink, 4))


def _mapping(page: Any) -> Any:
    """From the page's own coordinates to shares of the page as it is shown (turned, cropped)."""
    import pypdfium2.raw as pdfium

    def shown(x: float, y: float) -> tuple[float, float]:
        across, down = ctypes.c_int(), ctypes.c_int()
        pdfium.FPDF_PageToDevice(page, 0, 0, _SPACE, _SPACE, 0, x, y, across, down)
        return across.value / _SPACE, down.value / _SPACE

    # Three points give the affine map; hundreds of points apart, so that rounding is nothing.
    (x0, y0), (x1, y1), (x2, y2) = shown(0, 0), shown(1000, 0), shown(0, 1000)

    def mapped(x: float, y: float) -> tuple[float, float]:
        u, v = x / 1000, y / 1000
        return x0 + u * (x1 - x0) + v * (x2 - x0), y0 + u * (y1 - y0) + v * (y2 - y0)

    return mapped


def _glyphs(pdfium: Any, text_page: Any, to_shown: Any, late: dict[int, int]) -> Iterator[_Glyph]:
    corners = [ctypes.c_double() for _ in range(4)]
    waiting = ""  # the first half of a character beyond 16 bits
    for at in range(text_page.count_chars()):
        code = pdfium.FPDFText_GetUnicode(text_page, at)
        if 0xD800 <= code < 0xDC00:
            waiting = chr(code)
            continue
        char = chr(code) if code < 0x110000 else "\ufffd"
        if waiting and 0xDC00 <= code < 0xE000:
            char = (waiting + char).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        elif 0xDC00 <= code < 0xE000:
            char = "\ufffd"
        waiting = ""
        char = _UNUSABLE.get(char, char)
        generated = pdfium.FPDFText_IsGenerated(text_page, at) == 1
        if generated or not char.strip():
            yield _Glyph(char)
            continue
        if not pdfium.FPDFText_GetCharBox(text_page, at, *corners):
            continue
        left, right, bottom, top = (one.value for one in corners)
        box = _shown_box(to_shown(left, top), to_shown(right, bottom))
        if box[0] >= 1 or box[1] >= 1 or box[2] <= 0 or box[3] <= 0:
            continue  # outside of what is shown
        owner = pdfium.FPDFText_GetTextObject(text_page, at)
        yield _Glyph(char, _clipped(box), late.get(_address(owner), 0) if late else 0)


def _turns(pdfium: Any, text_page: Any, page: Any) -> list[int]:
    """For each character the quarters by which it is turned clockwise, as the page is shown."""
    own = page.get_rotation() // 90
    found = []
    for at in range(text_page.count_chars()):
        code = pdfium.FPDFText_GetUnicode(text_page, at)
        if 0xD800 <= code < 0xDC00:
            continue
        angle = pdfium.FPDFText_GetCharAngle(text_page, at)  # clockwise, in radians
        found.append((own + round(angle / (math.pi / 2))) % 4 if angle >= 0 else 0)
    return found


def _unmapped(pdfium: Any, text_page: Any) -> int:
    count = text_page.count_chars()
    return sum(pdfium.FPDFText_HasUnicodeMapError(text_page, at) == 1 for at in range(count))


def _late_objects(pdfium: Any, page: Any, own_objects: int) -> dict[int, int]:
    """The objects of text in what was added to a page behind its own objects.

    Each with the number of the annotation or field that it belongs to, from 1.
    """
    found: dict[int, int] = {}

    def note(one: Any, depth: int, number: int) -> None:
        kind = pdfium.FPDFPageObj_GetType(one)
        if kind == pdfium.FPDF_PAGEOBJ_TEXT:
            found[_address(one)] = number
        elif kind == pdfium.FPDF_PAGEOBJ_FORM and depth < 8:
            for at in range(min(pdfium.FPDFFormObj_CountObjects(one), 10_000)):
                note(pdfium.FPDFFormObj_GetObject(one, at), depth + 1, number)

    # Flattened are all of them into one form, in which each is a form again.
    numbers = count(1)
    for at in range(own_objects, pdfium.FPDFPage_CountObjects(page)):
        added = pdfium.FPDFPage_GetObject(page, at)
        if pdfium.FPDFPageObj_GetType(added) != pdfium.FPDF_PAGEOBJ_FORM:
            note(added, 1, next(numbers))
            continue
        for inner in range(min(pdfium.FPDFFormObj_CountObjects(added), 10_000)):
            note(pdfium.FPDFFormObj_GetObject(added, inner), 1, next(numbers))
    return found


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _lines(glyphs: Sequence[_Glyph], turns: Sequence[int]) -> list[_Line]:
    lines: list[_Line] = []
    run: list[_Glyph] = []
    directions: list[int] = []
    late = 0

    def end() -> None:
        if any(one.char.strip() for one in run):
            turn = max(set(directions), key=directions.count) if directions else 0
            lines.append(_Line(list(run), turn))
        run.clear()
        directions.clear()

    for glyph, turn in zip(glyphs, turns, strict=False):
        if glyph.char and glyph.char in _BREAKS:
            end()
            continue
        if glyph.box is not None:
            if directions and glyph.late != late:
                end()  # a value runs on neither into what is printed nor into another one
            directions.append(turn)
            late = glyph.late
        run.append(glyph)
    end()
    return lines


def _ordered(lines: list[_Line], *, turned: bool) -> list[_Line]:
    """Lines in reading order."""
    printed = [line for line in lines if not line.late]
    groups: list[_Line] = []
    turns = list(dict.fromkeys(line.turn for line in printed))
    for turn in turns:
        group = [line for line in printed if line.turn == turn]
        groups += _by_place(group, turn) if turned or turn or _is_shuffled(group) else group
    for line in sorted((one for one in lines if one.late), key=lambda one: _along(one, one.turn)):
        _insert(groups, line)
    return groups


def _is_shuffled(lines: list[_Line]) -> bool:
    """Whether upright lines jump up within their own column again and again.

    To go on at the head of the next column is no such jump; a header that is drawn last is one.
    """
    jumps = 0
    for one, other in pairwise(lines):
        (left, top, right, _), (x, _, far, bottom) = one.box, other.box
        jumps += bottom < top and min(right, far) > max(left, x)
    return jumps >= 2 and jumps > len(lines) // 10


def _by_place(lines: list[_Line], turn: int) -> list[_Line]:
    """Lines of one direction in the order in which they stand below each other."""
    rows: list[list[_Line]] = []
    for line in sorted(lines, key=lambda one: _down(one, turn)[0] + _down(one, turn)[1]):
        if rows and _same_row(rows[-1][0], line, turn):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [_joined(sorted(row, key=lambda one: _along(one, turn)), turn) for row in rows]


def _insert(lines: list[_Line], value: _Line) -> None:
    """Puts what was filled in behind the print in its row, or where its row would be."""
    rows = [at for at, line in enumerate(lines) if _same_row(line, value, value.turn)]
    before = [at for at in rows if _along(lines[at], value.turn) <= _along(value, value.turn)]
    if before:
        at = max(before, key=lambda one: _along(lines[one], value.turn))
        lines[at] = _joined(_around_value(lines[at], value), value.turn)
    elif rows:
        lines.insert(rows[0], value)
    else:
        below = [
            at
            for at, line in enumerate(lines)
            if _down(line, value.turn)[0] >= _down(value, value.turn)[1]
        ]
        lines.insert(below[0] if below else len(lines), value)


def _around_value(line: _Line, value: _Line) -> list[_Line]:
    """A line of print with a value in it: behind the words that stand before the value."""
    start = _along(value, value.turn)
    for at, glyph in enumerate(line.glyphs):
        if glyph.box is not None and _along_box(glyph.box, value.turn) >= start:
            before, behind = line.glyphs[:at], line.glyphs[at:]
            if before and before[-1].box is None:  # not within a word that the value lies upon
                return [_Line(before, line.turn), value, _Line(behind, line.turn)]
            break
    return [line, value]


def _joined(row: list[_Line], turn: int) -> _Line:
    glyphs = list(row[0].glyphs)
    for line in row[1:]:
        glyphs += [_Glyph(" "), *line.glyphs]
    return _Line(glyphs, turn)


def _same_row(one: _Line, other: _Line, turn: int) -> bool:
    """Whether two lines overlap by half of the lower one, across their direction."""
    if one.turn != other.turn:
        return False
    (top, bottom), (upper, lower) = _down(one, turn), _down(other, turn)
    shared = min(bottom, lower) - max(top, upper)
    return shared > 0.5 * min(bottom - top, lower - upper)


def _down(line: _Line, turn: int) -> tuple[float, float]:
    """From where to where a line reaches, in the direction in which lines follow each other."""
    left, top, right, bottom = line.box
    return [(top, bottom), (-right, -left), (-bottom, -top), (left, right)][turn]


def _along(line: _Line, turn: int) -> float:
    """Where a line begins, in its own direction."""
    return _along_box(line.box, turn)


def _along_box(box: Box, turn: int) -> float:
    left, top, right, bottom = box
    return [left, top, -right, -bottom][turn]


def _words(line: _Line) -> Iterator[Word]:
    for blank, run in groupby(line.glyphs, lambda one: one.box is None and not one.char.strip()):
        if blank:
            continue
        glyphs = list(run)
        boxes = [one.box for one in glyphs if one.box is not None]
        if boxes:
            yield Word("".join(one.char for one in glyphs), _around(boxes))


def _around(boxes: Sequence[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _shown_box(one: tuple[float, float], other: tuple[float, float]) -> Box:
    (x, y), (u, v) = one, other
    return min(x, u), min(y, v), max(x, u), max(y, v)


def _clipped(box: Box) -> Box:
    left, top, right, bottom = (round(min(1.0, max(0.0, side)), 4) for side in box)
    return left, top, right, bottom
