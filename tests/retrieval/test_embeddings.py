"""The value: dense vectors, pooling, scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.embeddings import Embedding, maxsim
from llavakit.errors import ParameterError


def unit(rows: object) -> np.ndarray:
    made = np.asarray(rows, dtype=np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_maxsim_is_the_sum_of_each_words_best_product():
    query = Embedding(unit([[1, 0], [0, 1]]))
    page = Embedding(unit([[1, 0], [1, 1], [-1, 0]]))
    assert maxsim(query, page) == pytest.approx(1 + np.sqrt(0.5))
    assert maxsim(page, query) == pytest.approx(1 + np.sqrt(0.5) + 0)


def test_pooling_joins_what_is_alike_and_its_boxes():
    vectors = unit([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.1], [0, 0, 1], [0.1, 0, 1]])
    places = np.array([[x / 6, 0, (x + 1) / 6, 1] for x in range(6)], dtype=np.float32)
    pooled = Embedding(vectors, places).pooled(2)
    assert len(pooled) == 3
    order = np.argsort(pooled.places[:, 0])
    np.testing.assert_allclose(pooled.places[order][:, 0], [0, 2 / 6, 4 / 6])
    np.testing.assert_allclose(pooled.places[order][:, 2], [2 / 6, 4 / 6, 1])
    wanted = unit([vectors[:2].mean(0), vectors[2:4].mean(0), vectors[4:].mean(0)])
    np.testing.assert_allclose(pooled.vectors[order], wanted, atol=1e-6)


@given(
    seed=st.integers(0, 2**16),
    count=st.integers(1, 40),
    factor=st.integers(1, 7),
)
@settings(max_examples=60)
def test_pooling_clusters_as_scipys_ward_does(seed: int, count: int, factor: int):
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    distance = pytest.importorskip("scipy.spatial.distance")
    vectors = unit(np.random.default_rng(seed).normal(size=(count, 8)))
    pooled = Embedding(vectors).pooled(factor)
    wanted = -(-count // factor)
    assert len(pooled) == wanted
    if wanted == count:
        return
    far = np.maximum(1 - vectors @ vectors.T, 0)
    np.fill_diagonal(far, 0)
    tree = hierarchy.linkage(distance.squareform((far + far.T) / 2, checks=False), "ward")
    labels = hierarchy.fcluster(tree, wanted, "maxclust")
    means = unit([vectors[labels == one].mean(0) for one in np.unique(labels)])
    nearest = (pooled.vectors @ means.T).max(axis=1)
    np.testing.assert_allclose(nearest, 1, atol=1e-4)


def test_a_dense_vector_is_the_mean_direction():
    found = Embedding(unit([[1, 0], [0, 1]])).dense
    np.testing.assert_allclose(found, [np.sqrt(0.5)] * 2, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 4), (4,)])
def test_vectors_of_another_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ParameterError, match="shape"):
        Embedding(np.zeros(shape, np.float32))
