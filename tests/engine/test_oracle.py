"""The law of ``oracle.py`` on a random LLaVA-1.5, by every kind of engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.oracle import FEWER_CASES, SMALL, GreedyOracle, Kind, Pair, Reference, submitted
from tests.tiny import tiny_llava

__all__ = ["submitted"]  # where programs beside the tests look for it

IN_TORCH: dict[str, Any] = {"compiled": False}
"""As where no compiled kernels are."""
ON_TWO_THREADS: dict[str, Any] = {"threads": 2}
# As on a GPU, but for its kernels: no compiled ones of the processor.
ON_A_DEVICES_PATH: dict[str, Any] = {
    "settings": {**SMALL, "lookahead": True, "static_decode": True},
    "compiled": False,
}
# What a device's path has as well is slow, and so are more cases of what `Kind()` has as well.
slow = pytest.mark.slow
KINDS = [
    pytest.param(Kind(), id="llava"),
    pytest.param(Kind(FEWER_CASES, **ON_A_DEVICES_PATH), id="llava_on_a_devices_path"),
    pytest.param(Kind(FEWER_CASES, **IN_TORCH), id="llava_in_torch"),
    pytest.param(Kind(FEWER_CASES, **ON_TWO_THREADS), id="llava_on_two_threads"),
    pytest.param(Kind(**ON_A_DEVICES_PATH), id="llava_on_a_devices_path_all", marks=slow),
    pytest.param(Kind(**IN_TORCH), id="llava_in_torch_all", marks=slow),
    pytest.param(Kind(**ON_TWO_THREADS), id="llava_on_two_threads_all", marks=slow),
    pytest.param(
        Kind(settings={**SMALL, "static_decode": True}), id="llava_in_static_shapes", marks=slow
    ),
    pytest.param(Kind(settings={**SMALL, "lookahead": True}), id="llava_ahead", marks=slow),
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tiny_llava(tmp_path_factory.mktemp("oracle"), context=512), 24)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, reference: Reference) -> Iterator[Pair]:
    with request.param.on(reference) as pair:
        yield pair


@pytest.mark.timeout(600)  # hundreds of reference answers
class TestEveryKindOfEngine(GreedyOracle):
    pass


__all__ = ["TestEveryKindOfEngine", "submitted"]
