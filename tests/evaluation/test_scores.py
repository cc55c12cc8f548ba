"""Intervals: where they lie, how they shrink, and that they are always the same."""

import io
import zipfile
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit.errors import ParameterError
from llavakit.evaluation.metrics import Counts
from llavakit.evaluation.scores import f1, mean, share, sum_of_means, wilson
from llavakit.evaluation.workbook import workbook


def test_wilsons_interval_is_that_of_the_textbook():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for part, whole, low, high in [
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718),
    ]:  # fmt: skip
        assert wilson(part, whole) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(1, 500), st.data())
def test_wilsons_interval_holds_the_share(whole, data):
    part = data.draw(st.integers(0, whole))
    low, high = wilson(part, whole)
    assert 0 <= low <= part / whole <= high <= 1
    mirrored = wilson(whole - part, whole)
    assert mirrored == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_a_bootstrap_of_right_and_wrong_agrees_with_wilson():
    found = mean("x", [1.0] * 700 + [0.0] * 300)
    low, high = wilson(700, 1000)
    assert found.value == pytest.approx(70) and found.interval == "bootstrap"
    assert found.low == pytest.approx(100 * low, abs=0.4)
    assert found.high == pytest.approx(100 * high, abs=0.4)


def test_the_same_answers_give_the_same_interval():
    values = [0.3, 1.0, 0.9, 0.0, 0.6] * 20
    assert mean("x", values) == mean("x", list(values))


def test_more_questions_give_a_narrower_interval():
    few, many = (mean("x", [0.0, 0.3, 1.0] * count) for count in (10, 1000))
    assert few.value == pytest.approx(many.value)
    assert many.high - many.low < (few.high - few.low) / 5


def test_a_sum_of_means_adds_categories_up():
    found = sum_of_means("x", [[200.0, 0.0], [150.0]])
    assert (found.value, found.unit, found.questions) == (250, "points", 3)
    assert found.low == 150 and found.high == 350


def test_f1_has_an_interval_around_it_and_none_where_it_is_not_defined():
    found = f1("x", [Counts(80, 20, 70, 30)])
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(100 * 160 / 210)
    both = f1("x", [Counts(80, 20, 70, 30), Counts(10, 0, 10, 0)])
    assert both.value == pytest.approx((100 * 160 / 210 + 100) / 2)
    assert f1("x", [Counts(tn=3)]).value is None and share("x", 0, 0).value is None


def cells(data):
    """What a spreadsheet holds, read back from its XML."""
    name = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    book = zipfile.ZipFile(io.BytesIO(data))
    strings = [
        "".join(text.text or "" for text in one.iter(f"{name}t"))
        for one in ElementTree.fromstring(book.read("xl/sharedStrings.xml")).iter(f"{name}si")
    ]
    return [
        [
            strings[int(cell.find(f"{name}v").text)]
            if cell.get("t") == "s"
            else int(cell.find(f"{name}v").text)
            for cell in row.iter(f"{name}c")
        ]
        for row in ElementTree.fromstring(book.read("xl/worksheets/sheet1.xml")).iter(f"{name}row")
    ]


def test_a_workbook_holds_what_was_put_in():
    rows = [["index", "a & <b>", ""], [7, " spaced\ttext\nand more ", "请"], [2**60, "\x01ok", "é"]]
    data = workbook(rows)
    assert cells(data) == [rows[0], rows[1], [str(2**60), "ok", "é"]]
    assert workbook(rows) == data
    for name in zipfile.ZipFile(io.BytesIO(data)).namelist():
        ElementTree.fromstring(zipfile.ZipFile(io.BytesIO(data)).read(name))


def test_no_cell_of_a_workbook_is_a_formula_or_a_link():
    rows = [["=1+1", "http://example.com", "@SUM(A1)"]]
    data = workbook(rows)
    assert cells(data) == rows
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert not any("worksheets/_rels" in name for name in names)


def test_a_table_too_wide_for_a_sheet_is_refused():
    with pytest.raises(ParameterError, match="more rows or columns"):
        workbook([["x"] * 16_385])
