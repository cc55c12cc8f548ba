"""Where on a page an answer stands, and parts of pages that are asked about."""

import json

import pytest

from llavakit.documents import (
    Page,
    PageCitation,
    PageReference,
    TextLayer,
    Word,
    ask_about,
    boxes_of,
    cite,
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
