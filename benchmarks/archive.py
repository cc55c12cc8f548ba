"""``python -m benchmarks.archive``: ten thousand pages through ``run_job`` in one run.

The pages are drawn: PDFs of 50, four of five pages print (reportlab), the fifth one of twenty scans
(JPEG) with its number upon it. The model is tiny and random (a LLaVA of 32 channels, four tokens an
answer), so that the figures are those of everything else: rendering, windows, lines, memory.

Three figures come of it: pages a second as a ratio to one renderer that renders each page when it
is asked for, in turn in this run; the memory of the program that reads, at 1,000 pages and at the
end; and what ``kill -9`` costs a run of that size.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.rates import report, timed

PAGES_A_FILE, SCANS, DIFFERENT = 50, 5, 20
TOKENS = 4
_READ = "from benchmarks.archive import read_archive; read_archive()"


def main() -> None:
    """Draw the archive, read it, and print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.archive", description=__doc__)
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--sample", type=int, default=400, help="pages of a round of the ratio")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dpi", type=float, default=72)
    parser.add_argument("--renderers", type=int, default=None)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        archive, model = folder / "archive", _model(folder / "model")
        files = _draw(archive, options.pages)
        small = _sample(folder / "sample", files, options.sample)
        settings = {"model": str(model), "dpi": options.dpi, "renderers": options.renderers}
        figures: dict[str, Any] = {
            "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
            "load before": os.getloadavg()[0],
            "settings": {**settings, "model": "tiny, random", "pages": options.pages},
        }
        figures["ratio"] = _ratio(small, folder, settings, options.repeats)
        figures["memory"] = _whole(archive, folder / "whole.jsonl", settings)
        rate = figures["memory"]["pages per second"]
        figures["killed"] = _killed(archive, folder, settings, rate)
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


def _model(path: Path) -> Path:
    from tests.tiny import tiny_llava

    return tiny_llava(path).path


def _draw(folder: Path, pages: int) -> list[Path]:
    """The archive; every page is another one."""
    folder.mkdir()
    files = []
    for first in range(0, pages, PAGES_A_FILE):
        files.append(folder / f"{first:06}.pdf")
        _draw_file(files[-1], range(first, min(pages, first + PAGES_A_FILE)))
    return files


def _draw_file(path: Path, numbers: range) -> None:
    from reportlab.lib.pagesizes import A4
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), pagesize=A4, pageCompression=1)
    for number in numbers:
        if number % SCANS:
            canvas.setFont("Helvetica", 10)
            for at, line in enumerate(_words(number)):
                canvas.drawString(60, 780 - 15 * at, line)
        else:
            canvas.drawImage(_scan(number % DIFFERENT), 0, 0, *A4)
            canvas.drawString(60, 20, f"{number}")
        canvas.showPage()
    canvas.save()


def _words(number: int) -> list[str]:
    chance = random.Random(number)
    return [
        f"Page {number}, line {at}: " + " ".join(f"{chance.randrange(10**6)}" for _ in range(8))
        for at in range(25)
    ]


@cache
def _scan(number: int) -> Any:
    from PIL import Image, ImageDraw
    from reportlab.lib.utils import ImageReader

    image = Image.new("RGB", (1240, 1754), (250, 249, 245))
    draw = ImageDraw.Draw(image)
    for at, line in enumerate(_words(number)):
        draw.text((100, 100 + 34 * at), line, fill=0)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=85)
    return ImageReader(jpeg)


def _sample(folder: Path, files: list[Path], pages: int) -> Path:
    folder.mkdir()
    for file in files[: max(1, pages // PAGES_A_FILE)]:
        (folder / file.name).symlink_to(file)
    return folder


def _ratio(sample: Path, folder: Path, settings: dict[str, Any], repeats: int) -> Any:
    """One renderer without reading ahead, and the pool, in turn."""
    _backend(settings["model"])  # loaded before the first round
    rounds = []
    for _ in range(repeats):
        runs = {}
        for name, renderers in (("one by one", 1), ("ahead", settings["renderers"])):
            out = folder / f"{name}.jsonl"
            runs[name] = timed(lambda n=renderers, o=out: _sampled(sample, o, settings, n))
        rounds.append(runs)
    lines = len(rounds[0]["one by one"][1])
    title = f"{lines} pages, rendered one by one and ahead"
    return report(title, "pages", rounds, lines, ("lines", lines), _same)


def _sampled(sample: Path, out: Path, settings: dict[str, Any], renderers: int | None) -> list[str]:
    job = _job(sample, settings, renderers)
    _run(job, out, restart=True)
    return out.read_text().splitlines()


def _same(expected: list[str], given: list[str]) -> int:
    return sum(map(str.__eq__, expected, given))


def _job(folder: Path, settings: dict[str, Any], renderers: int | None) -> Any:
    from llavakit.documents import Job, Task, View

    view = View(settings["dpi"], renderers=renderers)
    task = Task("transcribe", max_tokens=TOKENS)
    return Job((str(folder),), task, "tiny", view=view, settings={"path": settings["model"]})


def _run(job: Any, out: Path, **options: Any) -> Any:
    from llavakit.documents import run_job

    return run_job(job, _backend(job.settings["path"]), out, **options)


def _backend(path: str) -> Any:
    import llavakit

    return llavakit.load(path, device="cpu")  # the same one each time


def read_archive() -> None:
    """Read an archive in a process of its own, and say on each line of stdout how it goes."""
    folder, out, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    _backend(settings["model"])  # its loading is no work of the run's
    began, pages = time.perf_counter(), 0

    def note(reading: Any) -> None:
        nonlocal pages
        pages += 1
        if pages == 1 or pages % 500 == 0:
            _say(pages, began)

    tally = _run(_job(Path(folder), settings, settings["renderers"]), Path(out), progress=note)
    _say(pages, began, failures=tally.failures, earlier=tally.earlier)


def _say(pages: int, began: float, **more: int) -> None:
    seconds = round(time.perf_counter() - began, 2)
    mib, theirs = _mib("self"), sum(map(_mib, _children()))
    said = {"pages": pages, "seconds": seconds, "mib": mib, "renderers": round(theirs, 1)}
    print(json.dumps(said | more), flush=True)


def _mib(process: str) -> float:
    """The resident memory of a process."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0.0  # it has ended
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _children() -> list[str]:
    lists = Path("/proc/self/task").glob("*/children")
    return [child for one in lists for child in one.read_text().split()]


def _program(archive: Path, out: Path, settings: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _READ, str(archive), str(out), json.dumps(settings)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _said(program: subprocess.Popen[str]) -> list[dict[str, Any]]:
    output, _ = program.communicate()
    assert program.returncode == 0, program.returncode
    return [json.loads(line) for line in output.splitlines()]


def _whole(archive: Path, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """One run over everything; memory as it goes."""
    said = _said(_program(archive, out, settings))
    at = {one["pages"]: one["mib"] for one in said}
    first, last = said[0], said[-1]
    early = min(1000, last["pages"] // 2 // 500 * 500 or 1)
    later = [mib for pages, mib in at.items() if pages >= early]
    return {
        "pages": last["pages"],
        "failures": last["failures"],
        "pages per second": round((last["pages"] - 1) / (last["seconds"] - first["seconds"]), 2),
        f"MiB at {early}": at[early],
        f"MiB at {last['pages']}": last["mib"],
        "growth in MiB": round(last["mib"] - at[early], 1),
        "most growth in MiB": round(max(later) - at[early], 1),
        "course": [[one[key] for key in ("pages", "seconds", "mib", "renderers")] for one in said],
    }


def _killed(archive: Path, folder: Path, settings: dict[str, Any], rate: float) -> dict[str, Any]:
    """``kill -9`` at nine tenths, and what the next run does before its first new page.

    Pages under way are lost with it: those that the model reads, and those rendered ahead.
    """
    whole = (folder / "whole.jsonl").read_bytes().splitlines(keepends=True)
    out, left = folder / "killed.jsonl", len(whole) * 9 // 10
    state = json.loads((folder / "whole.jsonl.job").read_bytes()) | {"finished": None}
    Path(f"{out}.job").write_text(json.dumps(state))
    out.write_bytes(b"".join(whole[: left - left // 20]))
    running = _program(archive, out, settings)
    while out.read_bytes().count(b"\n") < left:
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    kept = out.read_bytes().count(b"\n")
    resumed = _said(_program(archive, out, settings))
    fresh = [
        _first_page(archive, folder / f"fresh-{number}.jsonl", settings) for number in range(3)
    ]
    first, again = resumed[0]["seconds"], statistics.median(fresh)
    lost = 64 + 8 * (settings["renderers"] or 2)
    return {
        "lines when it was killed": kept,
        "read after that": resumed[-1]["pages"],
        "same bytes as an undisturbed run": out.read_bytes() == b"".join(whole),
        "seconds to the first new page": first,
        "seconds to the first page of a fresh run": again,
        "seconds of finding out what is there": round(max(0.0, first - again), 2),
        "pages under way that are read again, at most": lost,
        "seconds of extra work, at most": round(max(0.0, first - again) + lost / rate, 2),
    }


def _first_page(archive: Path, out: Path, settings: dict[str, Any]) -> float:
    running = _program(archive, out, settings)
    assert running.stdout is not None
    first = json.loads(running.stdout.readline())
    running.kill()
    running.communicate()
    return float(first["seconds"])


if __name__ == "__main__":
    main()
