"""The benchmark of many pages: what it takes for right is right, and few pages are all found."""

import json

import numpy as np
import pytest

from benchmarks import retrieval_scale
from llavakit.embeddings import Embedding, maxsim


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(retrieval_scale, "AT_ONCE", 40)
    monkeypatch.setattr(retrieval_scale, "QUERIES", 3)


def test_what_is_right_is_the_maxsim_of_all_pages(small):
    queries = retrieval_scale.make_queries(80)
    pages = [one for number in (0, 1) for one in retrieval_scale.make_pages(number)[0]]
    kept = [Embedding(page.astype(np.float16).astype(np.float32)) for page in pages]
    for query, found in zip(queries, retrieval_scale.exact(queries, 80), strict=True):
        scores = [maxsim(Embedding(query), page) for page in kept]
        best = sorted(range(80), key=lambda at: -scores[at])[: retrieval_scale.BEST]
        assert found == {(1 + at // 40, at % 40) for at in best}


def test_figures_of_an_index_that_is_made_and_searched(small, tmp_path):
    queries = retrieval_scale.make_queries(80)
    figures = retrieval_scale.build(tmp_path / "index", 80, queries)
    figures |= retrieval_scale.search(tmp_path / "index", 80, queries)
    assert figures["share of the exact ten"] == 1.0
    assert 16_384 < figures["bytes a page"] < 25_000  # 64 vectors of 128 numbers in fp16
    assert all(figures[name] > 0 for name in ("query ms, median", "query ms, longest"))
    assert json.loads(json.dumps(figures)) == figures
