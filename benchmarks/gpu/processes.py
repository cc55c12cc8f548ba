"""Stages as processes: each with a limit, none outlives its parent, none ends it.

A stage is forked from a parent that has imported everything and has not touched the GPU, so that
imports are paid once. Where a fork cannot use CUDA, it starts a fresh interpreter in its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.gpu.records import Records, brief, described, read

PR_SET_PDEATHSIG = 1
SLACK = 10.0
"""Seconds that a killed process may take to go; a driver that hangs may hold it for longer."""


@dataclass(frozen=True)
class Stage:
    """A part of the benchmark.

    Attributes:
        name: of the stage, in its lines and its log.
        run: ``module:function``; is given a :class:`benchmarks.gpu.machine.Bench`.
        limit: seconds, after which it is killed.
        least: seconds without which it is not begun.
    """

    name: str
    run: str
    limit: float
    least: float = 5.0


@dataclass(frozen=True)
class Options:
    """What a run was asked for.

    Attributes:
        out: folder of the figures.
        logs: folder of the logs.
        tiny: whether it is the rehearsal on a CPU.
        fresh: whether each stage starts an interpreter of its own.
    """

    out: Path
    logs: Path
    tiny: bool = False
    fresh: bool = False

    def command(self, stage: Stage) -> list[str]:
        """Make the command that runs one stage in a fresh interpreter."""
        command = [sys.executable, "-m", "benchmarks.gpu", "--stage", stage.name]
        command += ["--out", str(self.out), "--logs", str(self.logs)]
        return [*command, "--tiny"] if self.tiny else command


class Stopped(BaseException):
    """A signal asks the whole run to end."""


def run_all(stages: Sequence[Stage], options: Options, seconds: float) -> None:
    """Run the stages one after the other; what does not fit into the time is written as skipped.

    Args:
        stages: in the order of their value.
        options: of the run.
        seconds: for all of them.
    """
    end = time.monotonic() + seconds
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, _stop)
    for number, stage in enumerate(stages, 1):
        records = Records(options.out, stage.name)
        left = end - time.monotonic()
        if left < stage.least:
            records.write("skipped", error=f"{left:.0f} s left, {stage.least:.0f} s needed")
            continue
        log = options.logs / f"stage-{number:02}-{stage.name}.log"
        _run(stage, options, records, log, min(stage.limit, left))


def _run(stage: Stage, options: Options, records: Records, log: Path, limit: float) -> None:
    """Run one stage in a process of its own, and write how it ended."""
    began, known = time.monotonic(), len(read(options.out))
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    process = os.fork()
    if process == 0:
        _child(stage, options, log, parent)
    with contextlib.suppress(OSError):
        os.setpgid(process, process)
    try:
        records.write("begun", process, "process")
        status = _wait(process, limit)
    except Stopped as signalled:
        _kill(process)
        records.write("stopped", seconds=time.monotonic() - began, ok=False, error=str(signalled))
        raise
    taken = time.monotonic() - began
    _kill(process)  # if it is still there, and what it may have left running
    records.write("ended", seconds=taken, **_ending(status, limit, log))
    for line in read(options.out)[known + 1 :]:
        print(brief(line), flush=True)


def _ending(status: int | None, limit: float, log: Path) -> dict[str, Any]:
    """Fields that say how a stage ended."""
    if status is None:
        return {"ok": False, "error": f"killed after {limit:.0f} s"}
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return {"ok": True}
    why = f"signal {-code}" if code < 0 else f"exit status {code}"
    return {"ok": False, "error": f"{why}: {_end_of(log)}"}


def _wait(process: int, limit: float) -> int | None:
    """The exit status of a process; None if it still runs after ``limit`` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return status
        time.sleep(0.02)
    return None


def _kill(process: int) -> None:
    """Kill a stage and all that it started."""
    with contextlib.suppress(OSError):
        os.killpg(process, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        _wait(process, SLACK)


def _end_of(log: Path) -> str:
    """The last 1,000 characters of a log."""
    try:
        return log.read_text(errors="replace")[-1000:]
    except OSError as error:
        return str(error)


def _stop(number: int, frame: Any) -> NoReturn:
    raise Stopped(signal.Signals(number).name)


def _child(stage: Stage, options: Options, log: Path, parent: int) -> NoReturn:
    """Be the stage's process."""
    code = 1
    try:
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(one, signal.SIG_DFL)
        os.setpgid(0, 0)
        die_with(parent)
        _write_to(log)
        if options.fresh:
            _become(options.command(stage))
        code = run_here(stage, options, lambda: _become(options.command(stage)))
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)


def run_here(stage: Stage, options: Options, restart: Callable[[], Any] | None = None) -> int:
    """Run a stage in this process; returns its exit status.

    Args:
        stage: to run.
        options: of the run.
        restart: puts a fresh interpreter in the place of this one, where CUDA does not work.
    """
    records = Records(options.out, stage.name)
    try:
        from benchmarks.gpu.machine import Bench, quiet

        if restart is not None and not options.tiny and not _cuda_works():
            print("CUDA does not work in a fork; starting afresh", flush=True)
            restart()
        quiet()
        module, _, function = stage.run.partition(":")
        getattr(importlib.import_module(module), function)(Bench.of(options, records))
    except Exception as error:
        traceback.print_exc()
        records.write("failed", ok=False, error=described(error))
        return 1
    return 0


def _cuda_works() -> bool:
    import torch

    try:
        torch.zeros(1, device="cuda")
    except Exception:
        traceback.print_exc()
        return False
    return True


def die_with(parent: int) -> None:
    """Let this process be killed when its parent ends, however that ends (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended just before
        os._exit(1)


def leave(code: int) -> NoReturn:
    """End this process at once; threads and destructors are not waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _write_to(log: Path) -> None:
    """Send all output of this process, that of libraries too, to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _become(command: list[str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)
