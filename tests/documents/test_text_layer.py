"""The text of a page: what it holds, its order, and whether it says what the page shows."""

import random

import pytest
from PIL import Image, ImageDraw

from llavakit.documents import Page, TextLayer, Word, open_files, open_pages
from llavakit.documents.text_layer import broken_share, covered_ink, with_layer
from tests.documents.drawn import (
    FIELD,
    WORDS,
    form,
    invoice,
    print_lines,
    scan,
    sheet,
    shuffled,
    turned,
)
from tests.documents.hostile import stream
from tests.documents.test_text_order import fields

LINES = [f"{at} different words of line number{at}" for at in range(20)]


def layer(data, page_seconds=None):
    (page,) = open_files([data], text=True, page_seconds=page_seconds)
    assert isinstance(page, Page) and page.text == page.layer.text
    return page.layer


def stamp(text, x=4, y=3, mode=0):
    return f"BT {mode} Tr /F 5 Tf {x} {y} Td ({text}) Tj ET"


NOT_WHOLE = {
    "nothing": scan(),
    "stamp": scan(stamp("Scanned by X")),
    "Bates number": scan(stamp("ACME-000123", 330, 8)),
    "invisible dot": scan(stamp(".", mode=3)),
    "invisible words": scan(print_lines(["two words"], mode=3)),
    "header of a fax": scan(stamp(" ".join(LINES[:6]), 10, 590)),
    "footer of many words": scan(stamp(" ".join(LINES[:8]), 10, 6)),
    "turned scan with a stamp": scan(stamp("Scanned by X"), page="/Rotate 90"),
    "glyphs drawn as curves": sheet(
        " ".join(f"{40 + 7 * x} {500 - 12 * y} 5 8 re f" for x in range(40) for y in range(30))
        + stamp("page 1")
    ),
}
WHOLE = {
    "print": sheet(print_lines(LINES)),
    "a title alone": sheet("BT /F 30 Tf 40 300 Td (Annual report 2024) Tj ET"),
    "print on a coloured ground": scan(print_lines(LINES), Image.new("RGB", (80, 120), "khaki")),
    "a turned page of print": turned(90, shuffled(1)[0]),
}  # fmt: skip


@pytest.mark.parametrize("data", NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_text_that_does_not_say_what_the_page_shows_is_not_its_text(data):
    assert not layer(data).is_whole


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_text_that_says_what_the_page_shows_is_its_text(data):
    assert layer(data).is_whole


def test_a_recognised_scan_has_its_words_where_the_ink_is():
    image = invoice()
    lines = [f"Line {at}: goods of the kind {at * 37} at a price" for at in range(24)]
    words = "".join(
        f"BT 3 Tr /F 6 Tf 30 {600 - 36 - 22 * at} Td ({line}) Tj ET "
        for at, line in enumerate(lines)
    )
    found = layer(scan(words, image))
    assert found.is_whole and found.body_words >= 20


def test_a_font_whose_characters_have_no_meaning_is_not_trusted():
    unicode = stream(
        "/CIDInit /ProcSet findresource begin begincmap /CMapName /X def 1 begincodespacerange "
        "<00> <FF> endcodespacerange 1 beginbfrange <20> <7E> <E020> endbfrange endcmap end",
        "",
    )
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 7 0 R >>"
    data = sheet(print_lines(LINES).replace("/F ", "/G "), font, unicode)
    data = data.replace(b"/Font << /F 5 0 R >>", b"/Font << /G 6 0 R >>")
    found = layer(data)
    assert found.broken > 0.9 and not found.is_whole


@pytest.mark.parametrize(
    "text, share",
    [
        ("plain words", 0),
        ("\ue001\ue002ab", 0.5),
        ("\ufffd" * 3 + "a", 0.75),
        ("", 0),
        ("\x01\x02", 1),
    ],
)
def test_characters_without_a_meaning_are_counted(text, share):
    assert broken_share(text) == share


def test_ink_is_what_differs_from_the_paper_whatever_its_colour():
    for paper, pen in (("white", "black"), ("black", "white"), ((200, 180, 140), (20, 20, 90))):
        image = Image.new("RGB", (400, 400), paper)
        draw = ImageDraw.Draw(image)
        draw.rectangle((40, 40, 160, 80), fill=pen)
        draw.rectangle((40, 240, 160, 280), fill=pen)
        share = covered_ink(image, [(0.1, 0.1, 0.4, 0.2)])
        assert share == pytest.approx(0.5, abs=0.06)
    assert covered_ink(Image.new("RGB", (9, 9), "white"), []) == 1


@pytest.mark.parametrize("turn", [90, 180, 270])
@pytest.mark.parametrize("seed", range(5))
def test_lines_of_turned_pages_come_in_reading_order(turn, seed):
    lines, expected = shuffled(seed)
    found = layer(turned(turn, lines))
    assert found.text.split() == expected
    assert [word.text for word in found.words] == expected


@pytest.mark.parametrize("lean", [90, 180, 270])
@pytest.mark.parametrize("turn", [0, 90])
def test_text_that_runs_another_way_comes_in_its_own_order(lean, turn):
    lines, expected = shuffled(7, lean)
    assert layer(turned(turn, lines, lean=lean)).text.split() == expected


def test_contents_in_no_order_come_in_reading_order_and_columns_stay_columns():
    lines, expected = shuffled(3)
    assert layer(turned(0, lines)).text.split() == expected
    left = [(40, 60 + 40 * at, f"left{at}") for at in range(8)]
    right = [(220, 60 + 40 * at, f"right{at}") for at in range(8)]
    words = layer(turned(0, left + right)).text.split()
    assert words == [text for _, _, text in left + right]


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_words_stand_where_they_are_shown(turn):
    (word,) = layer(turned(turn, [(100, 150, "Hamburgefonts")])).words
    left, top, right, bottom = word.box
    assert left == pytest.approx(100 / 400, abs=0.01) and right > left + 0.2
    assert bottom == pytest.approx(150 / 600, abs=0.01) and top == pytest.approx(0.232, abs=0.01)


FILLED = {
    "a field with its look": (
        FIELD + "/FT /Tx /T (name) /V (KOWALSKI) /F 4 /AP << /N 7 0 R >> >>",
        stream("/Tx BMC q BT /F 14 Tf 0 g 4 8 Td (KOWALSKI) Tj ET Q EMC",
               "/Type /XObject /Subtype /Form /BBox [0 0 200 28] "
               "/Resources << /Font << /F 5 0 R >> >>"),
    ),
    "a field without a look": (FIELD + "/FT /Tx /T (name) /V (KOWALSKI) /F 4 >>",),
    "a choice": (FIELD + "/FT /Ch /Ff 131072 /T (n) /Opt [(KOWALSKI)] /V (KOWALSKI) /F 4 >>",),
    "a note on the page": (
        "<< /Type /Annot /Subtype /FreeText /P 3 0 R /Rect [140 470 360 500] "
        "/DA (/F 14 Tf 0 g) /Contents (KOWALSKI) /F 4 >>",
    ),
    "a stamp": (
        "<< /Type /Annot /Subtype /Stamp /P 3 0 R /Rect [140 470 360 500] /F 4 "
        "/AP << /N 7 0 R >> >>",
        stream("BT /F 14 Tf 4 8 Td (KOWALSKI) Tj ET",
               "/Type /XObject /Subtype /Form /BBox [0 0 200 28] "
               "/Resources << /Font << /F 5 0 R >> >>"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("objects", FILLED.values(), ids=FILLED)
@pytest.mark.parametrize("page_seconds", [None, 30])
def test_what_is_filled_in_is_in_the_text_behind_its_label(objects, page_seconds):
    text = layer(form(*objects), page_seconds).text
    assert text.splitlines() == ["APPLICATION", "Name: KOWALSKI", "Signed"]


HIDDEN = {
    "hidden": FIELD + "/FT /Tx /T (name) /V (KOWALSKI) /F 2 >>",
    "not for the screen": FIELD + "/FT /Tx /T (name) /V (KOWALSKI) /F 32 >>",
    "a password": FIELD + "/FT /Tx /Ff 8192 /T (name) /V (KOWALSKI) /F 4 >>",
}


@pytest.mark.parametrize("field", HIDDEN.values(), ids=HIDDEN)
def test_what_is_not_shown_is_not_in_the_text(field):
    assert "KOWALSKI" not in layer(form(field)).text


def test_reading_the_text_changes_no_pixel():
    data = form(*FILLED["a field without a look"])
    (plain,) = open_files([data], page_seconds=None)
    first, second = open_files([data, bytes(data) + b"\n"], text=True, page_seconds=None)
    assert plain.digest == first.digest == second.digest


def test_a_page_is_read_with_its_stamp_below_and_nothing_twice():
    known = TextLayer("Scanned by X\nTotal  5243\n.", (Word("Scanned", (0, 0, 1, 1)),))
    assert with_layer("INVOICE\ntotal 5243", known) == "INVOICE\ntotal 5243\nScanned by X"
    assert with_layer("INVOICE", None) == "INVOICE"
    assert with_layer("INVOICE", TextLayer("\ue000\ue001ab", broken=0.5)) == "INVOICE"


def test_a_layer_survives_json():
    found = layer(form(*FILLED["a stamp"]))
    assert TextLayer.from_dict(found.to_dict()) == found


def test_values_stand_behind_their_own_labels_however_many_fields_a_row_has():
    chance = random.Random(10)
    expected = [
        word
        for row in range(3)
        for column in range(2)
        for word in (f"Label{column}{row}:", chance.choice(WORDS), f"{row}{column}")
    ]
    (page,) = open_pages(fields(10), text=True)
    assert page.text.split() == expected
