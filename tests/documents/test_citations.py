"""Where on a page an answer stands, and parts of pages that are asked about."""

import json

import pytest

from llavakit.documents import (
    Page,
    PageCitation,
    PageReference,
    TextLayer,
    Tiles,
    Word,
    ask_about,
    boxes_of,
    cite,
    cite_answer,
    fit_pages,
    open_files,
)
from llavakit.errors import DocumentError, ParameterError
from llavakit.testing import FakeBackend
from tests.documents.drawn import scan, shuffled, turned

pytestmark = pytest.mark.timeout(60)
LINES = [
    (40, 100, "The total of this invoice"),
    (40, 140, "is 5243 crowns, payable"),
    (40, 400, "ANNA"),
]


@pytest.fixture
def reference(tmp_path):
    def of(data):
        path = tmp_path / "a.pdf"
        path.write_bytes(data)
        (page,) = open_files(path, page_seconds=None)
        return PageReference.of(page)

    return of


def ink(image, box):
    """The darkest grey within a box."""
    width, height = image.size
    left, top, right, bottom = box
    cut = image.crop(
        (int(left * width), int(top * height), int(right * width), int(bottom * height))
    )
    return cut.convert("L").getextrema()[0]


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_quoted_words_are_found_where_they_are_shown(turn, reference):
    known = reference(turned(turn, LINES))
    found = cite(known, "Total: of this INVOICE is 5243", page_seconds=None)
    first, second = found.boxes
    assert first[1] == pytest.approx(90 / 600, abs=0.02) and second[1] > first[3]
    image = found.show(page_seconds=None)
    assert image.size == known.size and all(ink(image, box) < 90 for box in found.boxes)
    (red,) = {image.getpixel((int(first[0] * image.width) - 1, int(first[1] * image.height)))}
    assert red == (220, 30, 30)


def test_a_citation_survives_json_and_is_shown_in_small(reference):
    found = cite(reference(turned(0, LINES)), "5243", page_seconds=None)
    assert len(found.boxes) == 1
    again = PageCitation.from_metadata(json.loads(json.dumps(found.metadata())))
    assert again.boxes == found.boxes and again.reference == found.reference
    assert max(again.thumbnail(100, page_seconds=None).size) == 100
    with pytest.raises(DocumentError, match="damaged"):
        PageCitation.from_metadata({**found.metadata(), "boxes": [[1, 2]]})


def test_words_that_are_not_there_and_pages_without_words_have_no_boxes(reference):
    assert cite(reference(turned(0, LINES)), "nothing of the kind", page_seconds=None).boxes == ()
    known = reference(scan())
    assert cite(known, "goods", page_seconds=None).boxes == ()
    assert cite(known).boxes == () and cite(known).show(page_seconds=None).size == known.size


def test_a_quote_with_a_word_too_many_stands_where_most_of_it_stands():
    words = ["a", "total", "of", "5243", "crowns"]
    boxes = [(at / 10, 0, at / 10 + 0.08, 0.1) for at in range(5)]
    layer = TextLayer("", tuple(map(Word, words, boxes)))
    (box,) = boxes_of(layer, "the total of 5243")
    assert box == pytest.approx((0.1, 0, 0.38, 0.1))
    assert boxes_of(layer, "the price of bread") == () == boxes_of(layer, "...")


def test_a_page_that_has_changed_is_not_cited(reference, tmp_path):
    known = reference(turned(0, LINES))
    (tmp_path / "a.pdf").write_bytes(turned(0, shuffled(1)[0]))
    with pytest.raises(DocumentError, match="is not the page"):
        cite(known, "5243", page_seconds=None)


@pytest.mark.parametrize(
    "answer, found",
    [
        ("It amounts to 5243.", ["5243"]),
        ("is 5243 crowns, payable", ["is 5243 crowns, payable"]),
        ({"total": 5243, "name": "ANNA", "paid": True, "more": [None]}, ["5243", "ANNA"]),
        ("It is not known.", []),
        ("", []),
    ],
)
def test_an_answer_is_found_by_its_words_or_by_its_numbers(reference, answer, found):
    known = reference(turned(0, LINES))
    (cited,) = cite_answer([known], answer, page_seconds=None)
    expected = [box for one in found for box in cite(known, one, page_seconds=None).boxes]
    assert list(cited.boxes) == expected and bool(cited.note) == (not found)
    assert PageCitation.from_metadata(json.loads(json.dumps(cited.metadata()))) == cited


def test_a_citation_without_boxes_says_why(reference, tmp_path):
    printed = cite(reference(turned(0, LINES)), "nothing of the kind", page_seconds=None)
    assert "do not stand in the text layer" in printed.note
    known = reference(scan())
    assert "no text layer" in cite(known, "goods", page_seconds=None).note
    assert cite(known).note == "" and cite(known, "", page_seconds=None).note == ""
    (tmp_path / "a.pdf").unlink()
    (gone,) = cite_answer([known], "goods", page_seconds=None)
    assert gone.boxes == () and "a.pdf" in gone.note and gone.quote == "goods"


def test_a_region_is_cut_into_tiles_as_well(reference):
    (page,) = open_files([turned(0, LINES)], page_seconds=None)
    tiles, region = Tiles(2, 2), (0, 0.5, 1, 1)
    whole, *cut = ask_about([page], "What?", region=region, tiles=tiles).images
    assert whole.source.size == (page.size[0], page.size[1] // 2)
    assert [one.source for one in cut] == tiles.cut(whole.source)
    assert len(ask_about([page, "words", page], "What?", tiles=tiles).images) == 10
    assert len(ask_about([page], "What?", tiles=Tiles(1, 1)).images) == 1
    fitted = fit_pages(FakeBackend(), [page], "What?", region=region, tiles=tiles)
    assert len(fitted.message.images) == 5 and fitted.tokens > 5


def test_a_region_is_shown_at_full_resolution():
    (page,) = open_files([turned(0, LINES)], page_seconds=None)
    assert isinstance(page, Page)
    width, height = page.size
    message = ask_about([page], "What?", region=(0, 0.5, 1, 1))
    (shown,) = message.images
    assert shown.source.size == (width, height / 2)
    assert (
        shown.source.rgb.tobytes()
        == page.picture.rgb.crop((0, height // 2, width, height)).tobytes()
    )
    fitted = fit_pages(FakeBackend(), [page], "What?", region=(0.2, 0, 0.4, 0.1))
    assert fitted.pages == (page,)
    assert fitted.message.images[0].source.size == (round(width * 0.2), round(height * 0.1))
    for region in ((0, 0, 0, 1), (0.5, 0, 0.2, 1), (0, 0, 2, 1)):
        with pytest.raises(ParameterError, match="region"):
            ask_about([page], "What?", region=region)
