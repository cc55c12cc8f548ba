"""Documents made to do harm end in right pages or typed errors: soon, and in little memory."""

import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llavakit.documents import Failure, Page, _isolated, open_files
from llavakit.errors import InputError, RenderError
from tests.documents.hostile import DOCUMENTS, RED, nested_forms, page, pdf, stream, tree

pytestmark = pytest.mark.timeout(120)

SECONDS = 40  # tests run on machines that are busy with other things, too
MEMORY = 600 * 2**20


def read(*sources, **options):
    """All pages and failures, within the bounds."""
    began, peak = time.monotonic(), _peak()
    items = list(open_files(sources, page_seconds=3, **options))
    assert time.monotonic() - began < SECONDS
    assert _peak() - peak < MEMORY
    for item in items:
        if isinstance(item, Failure):
            assert isinstance(item.error, InputError)
            assert 10 < len(str(item.error)) < 400
        else:
            assert item.size[0] * item.size[1] <= 16_000_000
    return items


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("make", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_hostile_document_harms_nobody(make, tmp_path):
    bad, good = tmp_path / "a-bad.pdf", tmp_path / "b-good.pdf"
    bad.write_bytes(make())
    good.write_bytes(page(RED))
    items = read(tmp_path)
    assert len(items) <= 110
    *others, last = items
    assert others and {one.source for one in others} == {str(bad)}
    assert isinstance(last, Page) and last.source == str(good)
    assert last.picture.rgb.getpixel((9, 9)) == (255, 0, 0)


@pytest.mark.parametrize(
    "name, pages",
    [("a GIF of 10,000 frames", 1), ("a TIFF whose directories go round", 1),
     ("a font that is missing", 1), ("a page of negative size", 1)],
)  # fmt: skip
def test_what_is_only_strange_is_read(name, pages):
    items = read(DOCUMENTS[name]())
    assert [type(item) for item in items] == [Page] * pages


def test_a_page_that_hangs_costs_itself_alone():
    leaves = "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 72 72] /Contents 4 0 R /Resources "
    kind = "/Type /XObject /Subtype /Form /BBox [0 0 72 72] "
    nested = [
        stream("/X Do " * 10, f"{kind} /Resources << /XObject << /X {8 + n} 0 R >> >>")
        for n in range(12)
    ]
    data = pdf(
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [6 0 R 3 0 R 6 0 R] /Count 3 >>",
        leaves + "<< /XObject << /X 7 0 R >> >> >>",
        stream("/X Do"),
        stream(RED),
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 72 72] /Contents 5 0 R >>",
        *nested,
        stream(RED, kind),
    )
    first, second, third = read(data)
    assert isinstance(first, Page) and isinstance(third, Page) and first.digest == third.digest
    assert isinstance(second, Failure) and second.number == 2
    assert isinstance(second.error, RenderError) and "longer than 3 seconds" in str(second.error)


def test_a_document_is_given_up_after_three_pages_that_its_renderer_does_not_survive(monkeypatch):
    from llavakit.documents._isolated import IsolatedPdf

    def fall(self, number):
        raise RenderError(f"Page {number} brought its renderer down.")

    monkeypatch.setattr(IsolatedPdf, "page", fall)
    items = read(tree("3 0 R " * 9, 9))
    assert [item.number for item in items] == [1, 2, 3, None]
    assert "pages='4-9'" in str(items[-1].error)


def test_a_document_of_nothing_but_bad_pages_is_given_up():
    items = read(tree("3 0 R", 100_000))
    assert isinstance(items[0], Page)
    assert [item.number for item in items] == [*range(1, 102), None]
    assert all(isinstance(item, Failure) for item in items[1:])


def test_a_folder_called_pdf_is_a_folder(tmp_path):
    (tmp_path / "a.pdf").mkdir()
    (failure,) = read(tmp_path / "a.pdf")
    assert "holds no images and no documents" in str(failure.error)


def test_pipes_and_devices_are_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pdf")
    names = [tmp_path / "pipe.pdf", "/dev/zero", "/dev/random", "/proc/self/mem"]
    kinds = [type(item.error).__name__ for item in read(*names)]
    assert kinds == ["SourceNotAllowedError"] * 4


def test_links_that_go_round_end(tmp_path):
    (tmp_path / "one.pdf").symlink_to("two.pdf")
    (tmp_path / "two.pdf").symlink_to("one.pdf")
    (tmp_path / "round").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "good.pdf").write_bytes(page(RED))
    items = read(tmp_path)
    assert [Path(item.source).name for item in items] == [
        "gone.png",
        "good.pdf",
        "one.pdf",
        "two.pdf",
    ]
    assert [isinstance(item, Page) for item in items] == [False, True, False, False]


def test_files_that_may_not_be_read_are_failures(tmp_path):
    closed = tmp_path / "closed.pdf"
    closed.write_bytes(page(RED))
    closed.chmod(0)
    (item,) = read(closed)
    if os.geteuid() == 0:  # root may read everything
        assert isinstance(item, Page)
    else:
        assert type(item.error).__name__ == "SourceFetchError"
    closed.chmod(stat.S_IRUSR)


def test_a_folder_that_may_not_be_listed_is_a_failure(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "good.pdf").write_bytes(page(RED))
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    kinds = [type(item).__name__ for item in read(tmp_path)]
    assert sorted(kinds) == ["Failure", "Page"]


@pytest.mark.parametrize("renderers", [1, 3])
def test_leaving_ends_the_processes_that_render(monkeypatch, renderers):
    started = []
    start = _isolated._start
    monkeypatch.setattr(_isolated, "_start", lambda: (started.append(start()), started[-1])[1])
    documents = [page(RED.replace("1 0", f"0.{at} 0")) for at in range(9)]
    pages = open_files(documents, renderers=renderers)
    for _ in range(4):
        next(pages)
    assert started and all(process.poll() is None for process in started)
    pages.close()
    assert all(process.poll() is not None for process in started)
    assert not [one for one in threading.enumerate() if one.name == "llavakit-renderer"]


def test_the_process_that_draws_does_not_outlive_a_program_that_was_killed(tmp_path):
    (tmp_path / "hangs.pdf").write_bytes(nested_forms())
    code = (
        "import sys; from llavakit.documents import open_files, _isolated\n"
        "started = _isolated.Renderer._started\n"
        "def told(self):\n"
        "    process = started(self)\n"
        "    print(process.pid, flush=True)\n"
        "    return process\n"
        "_isolated.Renderer._started = told\n"
        "next(open_files([sys.argv[1]], page_seconds=4))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "hangs.pdf")]
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc to look at")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        worker = int(program.stdout.readline())
        program.stdout.readline()  # the page is about to be asked for
        time.sleep(1.5)
        program.kill()
    assert _runs(worker)  # it is inside pdfium, and hears nothing of it
    end = time.monotonic() + SECONDS
    while _runs(worker):
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def in_a_process(code):
    return subprocess.run([sys.executable, "-c", code], input=b"", capture_output=True, timeout=60)


def test_the_process_that_draws_caps_its_own_memory():
    done = in_a_process(
        "import resource; from llavakit.documents import _worker; _worker.main();"
        "print(resource.getrlimit(resource.RLIMIT_AS)[0] == _worker.MAX_MEMORY)"
    )
    assert done.stdout.strip() == b"True", done


def test_the_process_that_draws_ends_itself_when_its_time_is_over():
    done = in_a_process(
        "import time; from llavakit.documents import _worker; _worker._alarm(0.2); time.sleep(20)"
    )
    assert done.returncode == -signal.SIGALRM


def test_a_process_that_does_not_end_itself_is_ended(monkeypatch):
    monkeypatch.setattr(_isolated, "_GRACE", -2.9)
    monkeypatch.setattr(_isolated, "_START", "import time; time.sleep(20)")
    began = time.monotonic()
    (failure,) = open_files([nested_forms()], page_seconds=3)
    assert isinstance(failure, Failure) and time.monotonic() - began < 10
