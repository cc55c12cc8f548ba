"""The law of ``oracle.py`` on models that are not LLaVA-1.5: one with tiles, and a trained one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llavakit.demo import checkpoint_path
from tests.engine.oracle import ALL_CASES, FEWER_CASES, GreedyOracle, Kind, Pair, Reference
from tests.tiny import TinyModel, tiny_llava_next

ROOMY = {
    "prefill_chunk": 90,
    "kv_cache_bytes": 1600 * 4 * 2 * 2 * 64 * 4,
    "image_cache_bytes": 150 * 192 * 4,
}
"""For the bundled model: as small as 64 tokens an image allow."""


def llava_next(path: Path) -> Reference:
    return Reference(tiny_llava_next(path, context=512), 24)


def demo(path: Path) -> Reference:
    """A trained model, whose answers are far from random."""
    return Reference(TinyModel(checkpoint_path()), 12)


MODELS = [
    pytest.param((llava_next, Kind()), id="llava_next"),
    pytest.param((demo, Kind(FEWER_CASES, ROOMY)), id="demo"),
    pytest.param((demo, Kind(ALL_CASES, ROOMY)), id="demo_all", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=MODELS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    make, kind = request.param
    with kind.on(make(tmp_path_factory.mktemp("oracle"))) as pair:
        yield pair


@pytest.mark.timeout(600)  # hundreds of reference answers
class TestEveryModel(GreedyOracle):
    pass
