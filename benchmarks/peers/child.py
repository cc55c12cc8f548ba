"""One contender in a process of its own: ``python -m benchmarks.peers.child JOB``.

Runs in the Python of the contender, which may know nothing of llavakit or torch; this module
needs the standard library alone.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers.work import Request, Work, load_work


@dataclass(frozen=True)
class Job:
    """What one process measures; paths are absolute.

    Attributes:
        engine: the module in ``askers`` that asks it.
        precision: of the weights: ``fp32``, ``8bit`` or ``4bit``, or llama.cpp's own word.
        threads: how many the engine may use.
        slots: how many requests a server answers at once, where that must be said.
        workloads: names in ``WORKLOADS``.
        model: the checkpoint's folder or, for llama.cpp, the text model's file.
        folder: has the work and the images; logs go there.
        program: the engine's server, if it is one.
    """

    engine: str
    precision: str
    threads: int
    slots: int
    workloads: list[str]
    model: str
    folder: str
    program: str = ""

    def image(self, number: int) -> Path:
        """The file of an image."""
        return Path(self.folder) / "images" / f"{number}.png"


@dataclass(frozen=True)
class Reply:
    """One answer: seconds to its first and last token from when all were asked, and its text."""

    first: float
    last: float
    tokens: int
    text: str


class Asker(Protocol):
    """An engine that is loaded and waits for requests."""

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer the requests, all asked at once, greedily and to their full length."""

    def peak_memory(self) -> int:
        """The most MiB that the engine's process ever had resident."""

    def close(self) -> None:
        """Stop what was started."""


def peak_memory(process: int | str = "self") -> int:
    """Read the peak resident memory of a process in MiB (Linux)."""
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) // 1024


def ask_together(asker: Asker, work: Work) -> list[Reply]:
    """All requests at once."""
    return asker.ask(work.together)


def ask_single(asker: Asker, work: Work) -> list[Reply]:
    """One request alone."""
    return asker.ask([work.single])


def chat(asker: Asker, work: Work) -> list[Reply]:
    """One conversation, turn by turn; each prompt has the answers that were given."""
    replies: list[Reply] = []
    for turn in range(len(work.chat.questions)):
        questions = work.chat.questions[: turn + 1]
        answers = [reply.text for reply in replies]
        replies += asker.ask([replace(work.chat, questions=questions, answers=answers)])
    return replies


WORKLOADS = {"single": ask_single, "chat": chat, "together": ask_together}
"""In this order in every process, so that what is warm is the same for all."""


def measure(job: Job) -> dict[str, Any]:
    """Load the engine, warm it up, and run the workloads of the job."""
    module = importlib.import_module(f"benchmarks.peers.askers.{job.engine}")
    work = load_work(Path(job.folder) / "work.json")
    asker: Asker = module.start(job)
    try:
        asker.ask([work.warm])
        replies = {
            name: [asdict(reply) for reply in run(asker, work)]
            for name, run in WORKLOADS.items()
            if name in job.workloads
        }
        return {"replies": replies, "memory": asker.peak_memory()}
    finally:
        asker.close()


def main() -> None:
    """Read the job's file, and write its result beside it."""
    file = Path(sys.argv[1])
    result = measure(Job(**json.loads(file.read_text())))
    file.with_suffix(".result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
