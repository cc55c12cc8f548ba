from collections.abc import Callable, Iterator
from typing import Any

import pytest

import llavakit
from llavakit.backend import Backend
from tests.remote.scripted import ScriptedServer, scripted


@pytest.fixture
def peer() -> Iterator[ScriptedServer]:
    """A scripted server (for tests marked ``enable_socket``)."""
    with scripted() as server:
        yield server


@pytest.fixture
def remote(peer: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A backend of the scripted server, of vLLM's dialect unless told otherwise."""
    monkeypatch.delenv("LLAVAKIT_API_KEY", raising=False)
    monkeypatch.setattr("llavakit.remote.transport._FIRST_PAUSE", 0.01)
    made: list[Backend] = []

    def make(**settings: Any) -> Backend:
        settings = {"base_url": peer.url, "dialect": "vllm", **settings}
        made.append(llavakit.load("m", **settings))
        return made[-1]

    yield make
    for backend in made:
        backend.close()
