"""When a document is given up: bad pages in a row, not in total; fatal ones in total."""

from llavakit.documents.one_document import FailureLimit

BAD, FATAL = "DocumentError", "RenderError"


def seen(*errors):
    patience = FailureLimit()
    for error in errors:
        assert not patience.over
        patience.see(error)
    return patience


def test_bad_pages_in_a_row_give_it_up():
    assert seen(*[BAD] * FailureLimit.BAD_IN_A_ROW).over


def test_bad_pages_between_good_ones_do_not_however_many():
    patience = seen(*([BAD] * (FailureLimit.BAD_IN_A_ROW - 1) + [None]) * 5)
    assert not patience.over


def test_pages_that_bring_the_renderer_down_count_in_total():
    assert seen(FATAL, None, FATAL, None, FATAL).over
