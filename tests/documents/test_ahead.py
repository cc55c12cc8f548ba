"""Pages that are rendered ahead by several processes are those of one, in the same order."""

import gc
import io
import os
import random
import signal
import sys
import threading
import time
from functools import partial

import pytest

from llavakit.documents import Document, Failure, Page, PageRange, _isolated, _stretches, open_files
from llavakit.documents._stretches import Stretches
from llavakit.errors import DocumentError, PasswordError
from llavakit.images import Picture
from tests.documents.corpus import KINDS
from tests.documents.hostile import RED, encrypted, page, tree
from tests.documents.test_pages import COLOURS, THREE, pdf, tiff

pytestmark = pytest.mark.timeout(120)


def long(pages=23):
    """A PDF whose pages differ in their colour."""
    return pdf(*(f"{at / pages} 0 1 rg 0 0 99 199 re f" for at in range(pages)), box="0 0 20 30")


def said(items):
    """What can be known of pages and failures."""
    return [
        (item.source, item.number, item.digest, item.text)
        if isinstance(item, Page)
        else (item.source, item.number, str(item.error), item.pages)
        for item in items
    ]


def both(sources, **options):
    """The pages by one renderer and by three."""
    one, three = (
        said(open_files(sources, renderers=count, dpi=40, text=True, **options)) for count in (1, 3)
    )
    assert three == one
    return one


def test_documents_of_all_kinds_come_as_they_do_one_by_one():
    chance = random.Random(7)
    kinds = [
        "fax group 4", "tiff torn", "pdf of print", "pdf form", "pdf with lost pages",
        "pdf of absurd boxes", "archive of images", "archive with damage", "image by itself",
        "archive of documents",
    ]  # fmt: skip
    files = [KINDS[kind](chance) for kind in kinds]
    found = both([data for data, _ in files] + [b"", encrypted(), tiff(*COLOURS)])
    assert len(found) > sum(count for _, count in files)


def test_long_pdfs_are_cut_among_them_and_given_up_at_the_same_page():
    found = both(
        [
            Document(long(), "3-20,1,40"),
            Document(long(), "21-"),
            Document(long(24), earlier=(None,) * 6),
            Document(tree("3 0 R", 300)),
            Document(tree("3 0 R", 301), earlier=(None, *["DocumentError"] * 60)),
            Document(tree("3 0 R 99 0 R " * 20, 40)),
        ]
    )
    assert [pages for *_, pages in found if isinstance(pages, PageRange)] == [
        PageRange(((102, 300),)),
        PageRange(((102, 301),)),
    ]


def test_a_long_pdf_by_itself_keeps_several_of_them_busy(monkeypatch):
    started, start = [], _isolated._start
    monkeypatch.setattr(_isolated, "_start", lambda: (started.append(start()), started[-1])[1])
    assert len(list(open_files([long(60)], renderers=3))) == 60
    assert len(started) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_one_that_the_system_ends_costs_no_page(monkeypatch):
    started, start = [], _isolated._start
    monkeypatch.setattr(_isolated, "_start", lambda: (started.append(start()), started[-1])[1])
    items = []
    for item in open_files([long(40)], renderers=2):
        items.append(item)
        if len(items) in (5, 20):
            os.kill(started[-1].pid, signal.SIGKILL)
    assert [item.number for item in items] == list(range(1, 41))
    assert all(isinstance(item, Page) for item in items)


def test_functions_and_files_of_the_caller_are_called_in_the_callers_thread():
    threads = []

    class File(io.BytesIO):
        def read(self, *size):
            threads.append(threading.get_ident())
            return super().read(*size)

    def ask(name):
        threads.append(threading.get_ident())
        return "wrong"

    items = list(
        open_files([File(THREE), encrypted(), File(b""), File(THREE)], password=ask, renderers=3)
    )
    assert [type(item) for item in items] == [Page] * 3 + [Failure] * 2 + [Page] * 3
    assert isinstance(items[3].error, PasswordError) and len(threads) > 6
    assert set(threads) == {threading.get_ident()}


def test_what_a_password_function_raises_is_the_callers():
    def ask(name):
        raise EOFError("nobody is there")

    with pytest.raises(EOFError, match="nobody"):
        list(open_files([encrypted(), page(RED)], password=ask, renderers=2))


# The pool itself, without processes: a renderer starts none before it is asked for a page.


def a_page(name, number, size=(4, 4)):
    from PIL import Image

    return Page(str(name), number, Picture(Image.new("RGB", size)))


def test_what_is_made_ahead_is_bounded_in_pages_and_in_pixels(monkeypatch):
    made = []

    def make(name, size, renderer):
        for number in range(200):
            made.append(name)
            yield a_page(name, number, size)

    for size, pixels, most in (((4, 4), 10**9, 16), ((100, 100), 30_000, 5)):
        monkeypatch.setattr(_stretches, "MOST_PIXELS", pixels)
        made.clear()
        pool = Stretches(2, 30)
        stretches = [pool.add((at, 0), partial(make, at, size)) for at in range(6)]
        pages = pool.taken(stretches[0])
        for taken in range(1, 4):
            next(pages)
            time.sleep(0.1)
            assert len(made) <= taken + most + 1
        pool.close()


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_order_of_work_everything_comes_in_order(seed, monkeypatch):
    monkeypatch.setattr(_stretches, "MOST_PIXELS", 100)
    monkeypatch.setattr(_stretches, "MOST_PAGES", 2)
    chance = random.Random(seed)
    lengths = [chance.choice([0, 1, 1, 3, 9]) for _ in range(20)]
    naps = [chance.choice([0, 0, 0.002]) for _ in range(400)]

    def make(name, count, renderer):
        for number in range(count):
            time.sleep(naps.pop())
            if chance.random() < 0.1:
                pool.on_caller(lambda: calls.append(threading.get_ident()))
            yield a_page(name, number)
        if name == (13, 0):
            raise DocumentError("the end")

    calls = []
    pool = Stretches(chance.choice([1, 2, 4]), 30)
    try:
        found, expected = [], []
        stretches = {at: pool.add((at, 0), partial(make, (at, 0), n)) for at, n in
                     enumerate(lengths)}  # fmt: skip
        for at, length in enumerate(lengths):
            if at == 13:
                with pytest.raises(DocumentError, match="the end"):
                    found += pool.taken(stretches[at])
                continue
            wanted = length if at % 5 else min(length, 2)  # some are left in the middle
            pages = pool.taken(stretches[at])
            found += [next(pages) for _ in range(wanted)]
            if wanted < length:
                pages.close()
            else:
                assert next(pages, None) is None
            expected += [(str((at, 0)), number) for number in range(wanted)]
            if at % 4 == 0:  # parts that are added late are made before what follows
                late = [pool.add((at, part), partial(make, (at, part), 3)) for part in (1, 2)]
                for part, stretch in enumerate(late, 1):
                    found += pool.taken(stretch)
                    expected += [(str((at, part)), number) for number in range(3)]
        assert [(one.source, one.number) for one in found if one.source != "(13, 0)"] == expected
        assert set(calls) <= {threading.get_ident()}
    finally:
        pool.close()
    assert not [one for one in threading.enumerate() if one.name == "llavakit-renderer"]


def test_a_document_that_was_read_leaves_nothing_for_the_garbage_collector():
    """Its bytes would stay until Python looks for cycles, which may take thousands of pages."""
    gc.collect()
    gc.disable()
    try:
        found = list(open_files([long(3), long(12), long(23)], renderers=2, dpi=40))
        left = [one for one in gc.get_objects() if isinstance(one, _stretches.Stretch)]
    finally:
        gc.enable()
    assert len(found) == 38
    assert left == []
