"""Of every document, pages and failures together are as many as the file declares."""

import random

import pytest

from llavakit.documents import Failure, count_pages, open_files, open_pages
from llavakit.errors import InputError
from tests.documents.corpus import KINDS

pytestmark = pytest.mark.timeout(120)
SEEDS = 5


def test_there_are_files_enough():
    assert len(KINDS) >= 30 and len(KINDS) * SEEDS >= 150


def check(kind, seed, page_seconds):
    data, declared = KINDS[kind](random.Random(f"{kind} {seed}"))
    items = list(open_files([data], text=True, dpi=50, page_seconds=page_seconds))
    known = sum(item.lost if isinstance(item, Failure) else 1 for item in items)
    assert known == declared == count_pages(data)
    read = [item.number for item in items if item.number is not None]
    assert read == list(range(1, len(read) + 1)), "in order, none twice"
    for item in items:
        if isinstance(item, Failure):
            assert isinstance(item.error, InputError) and 10 < len(str(item.error)) < 400
        else:
            assert min(item.size) >= 1
    good = [item for item in items if not isinstance(item, Failure)]
    if good:  # and a page by itself is the page that it is among the others
        (one,) = open_pages(data, pages=[good[-1].number], dpi=50)
        assert one.digest == good[-1].digest


@pytest.mark.parametrize("kind", KINDS)
def test_pages_and_failures_are_what_a_file_declares(kind):
    check(kind, 0, None)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("kind", KINDS)
def test_pages_and_failures_are_what_any_file_declares(kind, seed):
    check(kind, seed, 30)
