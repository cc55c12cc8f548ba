"""Models and pictures that many tests share. Everything is real, only small."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import llavakit
from llavakit.backend import Backend
from llavakit.demo import checkpoint_path
from tests.tiny import TinyModel, tiny_llava, tiny_llava_next

# For the processes that tests start: with several OpenMP threads each, a busy machine starves
# them at every barrier.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def demo_dir() -> Path:
    """The bundled checkpoint."""
    return checkpoint_path()


@pytest.fixture(scope="session")
def demo_backend() -> Iterator[Backend]:
    """The bundled model; held for the whole run, so that it is loaded once."""
    backend = llavakit.load("demo")
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A random LLaVA-1.5 of a few thousand parameters, with its reference implementation."""
    return tiny_llava(tmp_path_factory.mktemp("tiny-llava"))


@pytest.fixture(scope="session")
def tiny_next(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A random LLaVA-NeXT of a few thousand parameters, with its reference implementation."""
    return tiny_llava_next(tmp_path_factory.mktemp("tiny-llava-next"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tests measure behaviour, not speed; one torch thread keeps small machines responsive."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _free_models() -> Iterator[None]:
    """Models of one module are freed before the next one begins."""
    yield
    gc.collect()
