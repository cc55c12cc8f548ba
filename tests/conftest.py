"""Models and images that many tests share. Everything is real, only small."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from llavakit.backend import Backend
    from tests.loopback import Server
    from tests.tiny import TinyModel

# Before torch is imported, here and in the processes that tests start: tests measure behaviour
# and not speed, and several OpenMP threads starve at every barrier of a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"


# A busy machine is no fault of a test's, and the gate says the same of one commit twice: it tries
# the same examples each time. `make test-all` looks for new ones.
settings.register_profile("gate", deadline=None, derandomize=True, database=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("LLAVAKIT_EXAMPLES", "gate"))


def pytest_collection_finish() -> None:
    """What collecting imported stays till the end: no garbage collection looks through it again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """No server outlives the run (a worker's `atexit` is never called)."""
    if "tests.servers" in sys.modules:
        sys.modules["tests.servers"].close_all()


@pytest.fixture(scope="session")
def demo_dir() -> Path:
    """The bundled checkpoint."""
    from llavakit.demo import checkpoint_path

    return checkpoint_path()


@pytest.fixture(scope="session")
def demo_backend() -> Iterator[Backend]:
    """The bundled model; held for the whole run, so that it is loaded once."""
    import llavakit

    # A configuration of its own: other tests close what they have loaded, which may be shared.
    backend = llavakit.load("demo", max_waiting=1023)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def shared_demo() -> Backend:
    """What every ``model="demo"`` of a module shares; held, or each test would load it anew."""
    import llavakit

    return llavakit.load("demo")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A random LLaVA-1.5 of a few thousand parameters, with its reference implementation."""
    from tests.tiny import tiny_llava

    return tiny_llava(tmp_path_factory.mktemp("tiny-llava"))


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on loopback (for tests marked ``enable_socket``)."""
    from tests.loopback import Server

    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True, scope="module")
def _free_models() -> Iterator[None]:
    """Models of one module are freed before the next one begins.

    What is left (modules, models of the whole run) stays: later collections skip it, or each would
    look through all that tests before it imported.
    """
    yield
    gc.collect()
    gc.freeze()


def _loggers() -> Iterator[logging.Logger]:
    """The root's, ours and the server's: those that programs set up for a process of their own."""
    yield logging.root
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith(("llavakit", "uvicorn")) and isinstance(logger, logging.Logger):
            yield logger


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """Commands decide what is logged in their process; here that would be any later test."""
    before = {one.name: (one.level, one.handlers[:], one.propagate) for one in _loggers()}
    yield
    for logger in _loggers():
        level, handlers, propagate = before.get(logger.name, (logging.NOTSET, [], True))
        if logger.level != level:
            logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate
