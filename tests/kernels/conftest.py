from __future__ import annotations

from collections.abc import Iterator

import pytest

from llavakit.kernels.native import SWITCH, Kernels, kernels


@pytest.fixture
def library() -> Kernels:
    """The compiled kernels; tests of them are skipped where there was no compiler."""
    found = kernels()
    if found is None:
        pytest.skip("no compiled kernels here")
    return found


@pytest.fixture
def in_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything computes in torch, as where there is no compiler."""
    monkeypatch.setenv(SWITCH, "0")
    kernels.cache_clear()
    yield
    monkeypatch.undo()
    kernels.cache_clear()
