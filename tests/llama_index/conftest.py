import asyncio
import gc
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from llavakit.backend import Backend
from llavakit.images import open_picture
from llavakit.llama_index import LLaVA
from llavakit.testing import FakeBackend
from tests.llama_index.pictures import Case


@pytest.fixture(autouse=True, scope="module")
def _framework_leaves_connections_open() -> Iterator[None]:
    """The framework's Memory never closes its database, which is told when it is collected."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True, scope="module")
def _one_model_for_all(shared_demo: Backend) -> None:
    """Nothing is loaded where nothing is asked."""


@pytest.fixture(autouse=True)
def _framework_closes_its_loops(request: pytest.FixtureRequest) -> None:
    """Where there is no event loop, the framework makes one that it closes; else one it leaves."""
    if not inspect.iscoroutinefunction(request.function):
        asyncio.set_event_loop(None)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case.drawn(tmp_path, "ellipse", (220, 30, 30))


@pytest.fixture
def square(tmp_path: Path) -> Case:
    return Case.drawn(tmp_path, "rectangle", (30, 60, 220))


@pytest.fixture
def digest(case: Case) -> str:
    return open_picture(case.png).digest


@pytest.fixture
def fake() -> FakeBackend:
    return FakeBackend(["a red circle"])


@pytest.fixture
def llm(fake: FakeBackend) -> LLaVA:
    return LLaVA(backend=fake, model="fake")
