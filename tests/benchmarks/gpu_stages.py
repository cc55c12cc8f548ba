"""Stages that end in every way but the right one, for ``test_gpu``."""

import os
import signal
import subprocess
import time
from typing import Any


def raises(bench: Any) -> None:
    with bench.records.figure("first"):
        raise ValueError("no such number")
    with bench.records.figure("second") as line:
        line["value"] = 2
    raise RuntimeError("behind all figures")


def hangs(bench: Any) -> None:
    bench.records.write("before", 1)
    child = subprocess.Popen(["sleep", "600"])
    bench.records.write("child", child.pid)
    time.sleep(600)


def dies(bench: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def measures(bench: Any) -> None:
    bench.records.write("figure", 1)


def late(bench: Any) -> None:
    bench.records.write("figure", 1)
