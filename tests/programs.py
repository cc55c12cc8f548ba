"""Programs of the repository, run here: what they print, and nothing of them left behind.

Most of a small program's time goes into imports and into loading a model. In the process of the
tests both are there already; ``started`` takes an interpreter of its own instead, as a user does.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core import globals as langchain_globals
from llama_index.core import Settings

ROOT = Path(__file__).parent.parent


def started(*arguments: str) -> str:
    """What a program prints, run as a user would."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=200, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def printed(program: str | Path, *arguments: str) -> str:
    """What a program prints, run here."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _alone(ROOT / program, arguments),
    ):
        code = _code_of(str(ROOT / program))
        # Frameworks leave connections open, of which a fresh interpreter says nothing.
        gc.collect()
    assert not code, f"it ended with {code}\n{out.getvalue()}{err.getvalue()}"
    return out.getvalue()


def python_blocks(page: str) -> list[str]:
    """The Python programs in a page of Markdown."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def _code_of(program: str) -> object:
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


@contextlib.contextmanager
def _alone(program: Path, arguments: tuple[str, ...]) -> Iterator[None]:
    """As a fresh interpreter begins; what the program sets for its process is put back."""
    modules, environment = set(sys.modules), dict(os.environ)
    with pytest.MonkeyPatch.context() as patch, _frameworks_as_they_were(), _usual_warnings():
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [str(program), *arguments])
        patch.setattr(sys, "path", [str(program.parent), *sys.path])
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(environment)
            for name in set(sys.modules) - modules:
                if _lies_in(program.parent, name):
                    del sys.modules[name]


def _lies_in(folder: Path, module: str) -> bool:
    """Whether a module is one of the program's neighbours, and not of an installed package."""
    file = getattr(sys.modules[module], "__file__", None)
    return file is not None and Path(file).parent == folder


@contextlib.contextmanager
def _usual_warnings() -> Iterator[None]:
    """What an interpreter ignores unless it is told otherwise: tests turn warnings into errors."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for kind in (
            ResourceWarning,
            ImportWarning,
            PendingDeprecationWarning,
            DeprecationWarning,
        ):
            warnings.simplefilter("ignore", kind)
        warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")
        yield


@contextlib.contextmanager
def _frameworks_as_they_were() -> Iterator[None]:
    """LlamaIndex and LangChain have settings for the whole process."""
    settings = dict(vars(Settings))
    cache, verbose, debug = (
        langchain_globals.get_llm_cache(),
        langchain_globals.get_verbose(),
        langchain_globals.get_debug(),
    )
    try:
        yield
    finally:
        vars(Settings).clear()
        vars(Settings).update(settings)
        langchain_globals.set_llm_cache(cache)
        langchain_globals.set_verbose(verbose)
        langchain_globals.set_debug(debug)


def packages_after(*statements: str) -> dict[str, set[str]]:
    """What is imported behind each statement: packages, and those below ``llavakit``.

    One fresh interpreter runs them, one behind the other; begin with the lightest.
    """
    code = (
        "import json, sys\nfound = {}\n"
        f"for statement in {statements!r}:\n"
        "    exec(statement, {})\n"
        "    found[statement] = list(sys.modules)\n"
        "print(json.dumps(found))"
    )
    found = json.loads(started("-W", "ignore", "-c", code).splitlines()[-1])
    return {
        statement: {
            ".".join(name.split(".")[: 2 if name.startswith("llavakit.") else 1]) for name in names
        }
        for statement, names in found.items()
    }
