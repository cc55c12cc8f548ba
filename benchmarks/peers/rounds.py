"""Rounds: every contender once, in turn, each in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.child import Job
from benchmarks.peers.engines import Engine
from benchmarks.peers.files import model_file

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 1800
"""Seconds after which a process is given up."""

Results = dict[str, list[dict[str, Any]]]
"""By the contender's name: what :func:`benchmarks.peers.child.measure` gave, once a round."""


@dataclass(frozen=True)
class Contender:
    """An engine with weights of one precision."""

    engine: Engine
    precision: str

    @property
    def name(self) -> str:
        return f"{self.engine.name} {self.precision}"


@dataclass(frozen=True)
class Table:
    """What is compared in one table.

    Attributes:
        title: of the table.
        folder: the model's, see :func:`benchmarks.peers.files.prepare`.
        contenders: in the order of a round.
        workloads: what each is asked.
        slots: of llama.cpp's server.
    """

    title: str
    folder: Path
    contenders: Sequence[Contender]
    workloads: Sequence[str]
    slots: int


class FailedError(Exception):
    """A contender's process failed; the message has its last line and the log."""


def run_rounds(table: Table, rounds: int, threads: int) -> tuple[Results, dict[str, str]]:
    """Run the rounds; return the results, and why each that failed has none.

    One that failed is left out of later rounds, and the others go on.
    """
    results: Results = {contender.name: [] for contender in table.contenders}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for contender in table.contenders:
            if contender.name in failed:
                continue
            print(f"round {number + 1}, {threads} threads: {contender.name}", file=sys.stderr)
            try:
                results[contender.name].append(_run(table, contender, threads))
            except FailedError as failure:
                failed[contender.name] = str(failure)
                del results[contender.name]
                print(f"{contender.name} failed: {failure}", flush=True)
    return results, failed


def _run(table: Table, contender: Contender, threads: int) -> dict[str, Any]:
    engine, folder = contender.engine, table.folder
    job = Job(
        engine=engine.asker,
        precision=contender.precision,
        threads=threads,
        slots=table.slots,
        workloads=list(table.workloads),
        model=str(model_file(folder, engine, contender.precision)),
        folder=str(folder),
        program=engine.program,
    )
    name = contender.name.replace(" ", "-")
    file, log = folder / f"{name}.json", folder / f"{name}.log"
    result = file.with_suffix(".result.json")
    result.unlink(missing_ok=True)
    file.write_text(json.dumps(asdict(job)))
    command = [engine.python, "-m", "benchmarks.peers.child", str(file)]
    try:
        with log.open("w") as output:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=_environment(engine, threads),
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=LONGEST,
            )
    except subprocess.TimeoutExpired:
        raise FailedError(f"no answer within {LONGEST} seconds ({log})") from None
    if done.returncode or not result.exists():
        *_, last = ["no message", *log.read_text(errors="replace").strip().splitlines()]
        raise FailedError(f"{last} ({log})")
    measured: dict[str, Any] = json.loads(result.read_text())
    return measured


def _environment(engine: Engine, threads: int) -> dict[str, str]:
    """Bound the threads before any library starts; nothing may be fetched."""
    count = str(threads)
    bounds = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "HF_HUB_OFFLINE": "1"}
    environment = os.environ | bounds
    if engine.python != sys.executable:
        # Packages of this Python are none of the other's.
        environment.pop("PYTHONPATH", None)
    return environment
