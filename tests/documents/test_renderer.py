"""The process that draws is ended from outside: no page is lost by it."""

import os
import signal
import sys

import pytest

from llavakit.documents import Failure, Page, _isolated, open_files
from llavakit.errors import RendererKilledError
from tests.documents.drawn import print_lines, sheet
from tests.documents.hostile import RED, page, tree
from tests.documents.test_pages import THREE

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
]


@pytest.fixture
def processes(monkeypatch):
    """The processes that were started, each of which can be made to end before a request."""
    started, asked = [], []
    start, exchange = _isolated.subprocess.Popen, _isolated._exchange
    ends: dict[int, int] = {}

    def popen(*args, **options):
        started.append(start(*args, **options))
        return started[-1]

    def exchanged(process, request, data):
        asked.append(request)
        if len(asked) in ends:
            os.kill(process.pid, ends[len(asked)])
            process.wait(10)
        return exchange(process, request, data)

    monkeypatch.setattr(_isolated.subprocess, "Popen", popen)
    monkeypatch.setattr(_isolated, "_exchange", exchanged)
    return started, ends


@pytest.mark.parametrize(
    "at, number",
    [(1, signal.SIGKILL), (2, signal.SIGKILL), (4, signal.SIGTERM)],
    ids=["opening", "page-1", "page-3"],
)
def test_it_is_started_again_and_every_page_is_read(processes, at, number):
    started, ends = processes
    ends[at] = number
    items = list(open_files([THREE]))
    assert [type(item) for item in items] == [Page] * 3 and len(started) == 2


def test_between_two_pages_it_is_started_again(processes):
    started, _ = processes
    pages = open_files([THREE, page(RED)], renderers=1)
    for number in range(4):
        assert isinstance(next(pages), Page)
        if number == 3:
            break
        os.kill(started[-1].pid, signal.SIGKILL)
        started[-1].wait(10)
    assert list(pages) == [] and len(started) == 4


def test_twice_at_one_page_is_a_failure_of_that_page_that_names_the_cause(processes):
    _, ends = processes
    # 1 opens, 2 draws, 3 opens again, 4 draws again.
    ends[2] = ends[4] = signal.SIGKILL
    first, second, third = open_files([THREE])
    assert isinstance(first, Failure) and isinstance(first.error, RendererKilledError)
    assert "memory" in str(first.error) and first.number == 1
    assert isinstance(second, Page) and isinstance(third, Page)


def test_a_crash_of_its_own_is_not_tried_again(processes):
    started, ends = processes
    ends[2] = signal.SIGSEGV
    items = list(open_files([tree("3 0 R 3 0 R", 2)]))
    assert isinstance(items[0], Failure) and "brought its renderer down" in str(items[0].error)
    assert len(started) <= 2


def test_text_and_boxes_are_those_of_this_process():
    data = sheet(print_lines(["some words"]))
    (one,), (other,) = (open_files([data], text=True, page_seconds=s) for s in (30, None))
    assert one.layer == other.layer and one.layer.words
