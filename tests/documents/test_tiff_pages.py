"""TIFFs of offices: every page is read or reported, and shown as the sheet was."""

import io
import struct

import pytest
from PIL import Image

from llavakit.documents import Failure, Page, count_pages, open_files, open_pages
from llavakit.errors import ImageDecodeError, UnsupportedImageError
from llavakit.images import metered, open_picture, tiff
from llavakit.images.tiff import MOST_PAGES, read_directories
from tests.documents.tiffs import LONG, SHORT, bits, dpi, kind, written

PAGE, THUMB = (80, 100), (8, 10)


def read(data):
    items = list(open_files([data], page_seconds=None))
    assert len(items) == count_pages(data), "pages + failures are what the file declares"
    return items


def sizes(data):
    return [item.size if isinstance(item, Page) else str(item.error) for item in read(data)]


def test_budgets_are_those_of_a_page_and_not_of_the_file():
    """Each page takes more reads than a sixtieth of what a file of that length once had."""
    items = read(written(*[bits((16, 1100))] * 60))
    assert [type(item) for item in items] == [Page] * 60


@pytest.mark.slow
def test_a_fax_archive_of_two_thousand_pages_is_read_to_its_end():
    sheets = [Image.new("1", (32, 40), 1) for _ in range(2000)]
    out = io.BytesIO()
    sheets[0].save(out, "TIFF", compression="group4", save_all=True, append_images=sheets[1:])
    assert all(isinstance(item, Page) for item in read(out.getvalue()))


def test_what_all_pages_together_may_cost_ends_with_one_failure_that_names_the_rest(monkeypatch):
    monkeypatch.setattr(
        metered.ReadBudget, "of_all_images", lambda data: metered.ReadBudget(3 * 40, 10**9)
    )
    data = written(*[bits((16, 30))] * 9)
    items = list(open_files([data], page_seconds=None))
    *pages, rest = items
    assert isinstance(rest, Failure) and rest.number is None
    assert sum(item.lost if isinstance(item, Failure) else 1 for item in items) == 9
    assert f"{len(pages) + 1}-9" in str(rest.error) and str(rest.pages) == f"{len(pages) + 1}-9"


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "frames, expected",
    [
        ([bits(PAGE, kind(2)), bits(THUMB, kind(1)), bits(PAGE, kind(2))], [PAGE, PAGE]),
        ([bits(PAGE, kind(0)), bits(THUMB, kind(1)), bits((4, 5), kind(1))], [PAGE]),
        ([bits(PAGE), bits(THUMB, (255, SHORT, [2]))], [PAGE]),  # the old tag
        ([bits(PAGE, kind(0)), bits(PAGE, kind(4))], [PAGE]),  # a mask
        ([bits(PAGE, kind(3)), bits(PAGE, kind(2))], [PAGE]),
        ([bits(PAGE, subs=[bits(THUMB, kind(1)), bits((4, 5), kind(1))])] * 2, [PAGE, PAGE]),
        ([bits(THUMB, kind(1), subs=[bits(PAGE, kind(0))])], [PAGE]),  # as cameras write them
        ([bits(THUMB, kind(1)), bits((4, 5), kind(1))], [THUMB, (4, 5)]),  # nothing is in full
    ],
    ids=["thumbnails", "pyramid", "SubfileType", "mask", "reduced-page", "subifds", "camera",
         "only-reduced"],
)  # fmt: skip
def test_reduced_copies_and_masks_are_not_pages(frames, expected, order):
    assert sizes(written(*frames, order=order)) == expected


def test_an_image_that_begins_with_its_thumbnail_is_opened_in_full():
    assert open_picture(written(bits(THUMB, kind(1)), bits(PAGE, kind(0)))).size == PAGE


@pytest.mark.parametrize(
    "tags, expected",
    [
        (dpi(204, 98), (80, 209)),
        (dpi(204, 196), (80, 105)),
        (dpi(204, 391), (154, 100)),
        ([*dpi(80, 38), (296, SHORT, [3])], (80, 211)),  # in centimetres
        ([*dpi(2, 1), (296, SHORT, [1])], (80, 200)),  # no unit: a proportion
        (dpi(300, 300), PAGE),
        (dpi(0, 98), PAGE),
        (dpi(9600, 1), PAGE),  # no device makes those
        ([*dpi(200, 100), (274, SHORT, [6])], (200, 80)),  # lies on its side
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_pages_have_the_proportions_of_the_sheet(tags, expected, order):
    assert sizes(written(bits(PAGE, *tags), order=order)) == [expected]


def test_the_coarser_side_is_enlarged_within_the_limit():
    data = written(bits((800, 1000), *dpi(204, 98)))
    (page,) = open_pages(data, max_pixels=100_000)
    assert page.size[0] * page.size[1] <= 100_000
    assert page.size[1] / page.size[0] == pytest.approx(1000 * 204 / 98 / 800, abs=0.02)


@pytest.mark.parametrize(
    "code, words",
    [(34712, "JPEG 2000"), (34887, "LERC"), (34661, "JBIG"), (33003, "Aperio"), (34933, "PNG"),
     (50002, "JPEG XL"), (34720, "MDI"), (4711, "code 4711")],
)  # fmt: skip
def test_a_codec_that_is_not_decoded_is_named_and_the_other_pages_are_read(code, words):
    first, second = read(written(bits(PAGE, (259, SHORT, [code])), bits(PAGE)))
    assert isinstance(second, Page) and words in str(first.error)
    assert "damaged" not in str(first.error) and "truncated" not in str(first.error)
    with pytest.raises(UnsupportedImageError, match=words):
        open_picture(written(bits(PAGE, (259, SHORT, [code]))))


def test_pixels_of_a_kind_that_is_not_decoded_are_no_damage():
    deep = bits(PAGE, (258, SHORT, [13]), (262, SHORT, [32803]))
    (failure,) = read(written(deep))
    assert "13 bits" in str(failure.error) and "damaged" not in str(failure.error)


def test_a_codec_that_is_decoded_and_damaged_is_damaged():
    out = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(out, "TIFF", compression="tiff_lzw")
    data = bytearray(out.getvalue())
    data[8:2000] = b"\xff" * 1992
    (failure,) = read(bytes(data))
    assert "damaged" in str(failure.error)


def broken_link(data: bytes, target: int) -> bytes:
    """The last directory's link leads somewhere else."""
    return data[:-4] + struct.pack("<I", target)


def test_where_the_chain_of_pages_breaks_off_is_the_last_page_and_a_failure():
    data = written(*[bits(PAGE)] * 3)
    items = read(broken_link(data, len(data) + 100))
    assert [type(item) for item in items] == [Page] * 3 + [Failure]
    assert items[-1].number == 4 and "breaks off" in str(items[-1].error)


def test_a_chain_that_leads_back_ends():
    data = written(*[bits(PAGE)] * 3)
    (first,) = struct.unpack_from("<I", data, 4)
    assert sizes(broken_link(data, first)) == [PAGE] * 3


def test_directories_that_lie_in_one_another_are_walked_in_bounded_time():
    # 30,000 directories, each of which says that it has 60,000 entries.
    step, count = 8, 30_000
    data = bytearray(b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 60_000) * 800_000)
    found = read_directories(bytes(data))
    assert found.broken or len(found.pages) <= count * step


def test_more_pages_than_any_file_has_are_a_failure(monkeypatch):
    monkeypatch.setattr(tiff, "MOST_PAGES", 5)
    items = read(written(*[bits(PAGE)] * 9))
    assert [type(item) for item in items] == [Page] * 5 + [Failure]
    assert "more than 5 images" in str(items[-1].error) and MOST_PAGES == 100_000


def test_a_bigtiff_has_its_pages():
    tifffile = pytest.importorskip("tifffile")
    import numpy as np

    out = io.BytesIO()
    with tifffile.TiffWriter(out, bigtiff=True) as file:
        for grey in (10, 200):
            page = np.full((100, 80), grey, np.uint8)
            file.write(page, subifds=1, resolution=(204, 102), contiguous=False)
            file.write(page[::10, ::10], subfiletype=1)
    assert sizes(out.getvalue()) == [(80, 200), (80, 200)]
    assert [p.picture.rgb.getpixel((4, 4))[0] for p in read(out.getvalue())] == [10, 200]


def test_a_tiff_without_a_directory_is_damaged():
    with pytest.raises(ImageDecodeError, match="truncated or damaged"):
        open_picture(b"II*\0" + bytes(4))
    assert LONG == 4
