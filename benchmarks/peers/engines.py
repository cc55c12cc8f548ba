"""Which engines this machine has. One that is absent is one line, never a failure."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


class AbsentError(Exception):
    """An engine is not installed; the message says what would make it be there."""


@dataclass(frozen=True)
class Engine:
    """An engine that can be measured.

    Attributes:
        name: as in the tables.
        asker: its module in ``askers``.
        version: what it says about itself.
        python: the Python that its process runs in.
        program: its server, if it is one.
    """

    name: str
    asker: str
    version: str
    python: str = sys.executable
    program: str = ""


def find(names: Sequence[str]) -> tuple[list[Engine], dict[str, str]]:
    """Look for the engines; return those found, and why each of the others was skipped."""
    found, skipped = [], {}
    for name in names:
        try:
            found.append(ENGINES[name]())
        except AbsentError as absent:
            skipped[name] = str(absent)
    return found, skipped


def _generate() -> Engine:
    return Engine("generate", "generate", f"transformers {_version('transformers')}")


def _llavakit() -> Engine:
    return Engine("llavakit", "llavakit", f"{_version('llavakit')}, torch {_version('torch')}")


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _llama_cpp() -> Engine:
    folder = os.environ.get("LLAMA_CPP_BIN")
    server = shutil.which("llama-server", path=folder)
    if server is None or shutil.which("llama-quantize", path=folder) is None:
        where = f"LLAMA_CPP_BIN={folder}" if folder else "PATH; set LLAMA_CPP_BIN to their folder"
        raise AbsentError(f"no llama-server and llama-quantize in {where}")
    if importlib.util.find_spec("gguf") is None:
        raise AbsentError("the package gguf, which writes its model files, is not installed")
    server = str(Path(server).resolve())
    said = _run([server, "--version"], {"LD_LIBRARY_PATH": str(Path(server).parent)})
    version = next((line for line in said if line.startswith("version")), "of no known version")
    return Engine("llama.cpp", "llama_cpp", version.removeprefix("version: "), program=server)


def _vllm() -> Engine:
    python = os.environ.get("VLLM_PYTHON") or _python_beside("vllm")
    if python is None:
        raise AbsentError("no vllm in PATH; set VLLM_PYTHON to a Python that has it")
    if shutil.which(python) is None:
        raise AbsentError(f"VLLM_PYTHON={python} is not a program")
    code = "import torch, vllm; print('found', vllm.__version__ + ', torch', torch.__version__)"
    said = _run([python, "-c", code], {"VLLM_LOGGING_LEVEL": "ERROR", "PYTHONPATH": ""})
    for line in said:
        if line.startswith("found "):
            return Engine("vLLM", "vllm", line.removeprefix("found "), python=python)
    raise AbsentError(f"{python} cannot import vllm: {said[-1] if said else 'no message'}")


def _python_beside(command: str) -> str | None:
    """The Python of the environment that a command in PATH belongs to."""
    found = shutil.which(command)
    return shutil.which("python", path=str(Path(found).parent)) if found else None


def _run(command: Sequence[str], environment: dict[str, str]) -> list[str]:
    """Run a command and return the lines that it printed, on either stream."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=120,
            env=os.environ | environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AbsentError(f"{command[0]} does not run: {error}") from error
    return done.stdout.strip().splitlines()


ENGINES: dict[str, Callable[[], Engine]] = {
    "generate": _generate,
    "llavakit": _llavakit,
    "llama.cpp": _llama_cpp,
    "vLLM": _vllm,
}
