import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llavakit.embeddings import Embedding, maxsim
from llavakit.retrieval.scoring import CoarseScores, encode, score_pages, train_centroids


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def made(lengths, dimensions=16, seed=0):
    """Vectors of pages, behind each other, and where those of each end."""
    chance = np.random.default_rng(seed)
    return unit(chance.standard_normal((sum(lengths), dimensions))), np.cumsum(lengths)


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(LENGTHS, st.integers(1, 6))
def test_pages_scored_together_have_the_maxsim_of_each(lengths, words):
    vectors, ends = made(lengths)
    query, _ = made([words], seed=1)
    parts = np.split(vectors, ends[:-1])
    alone = [maxsim(Embedding(query), Embedding(part)) for part in parts]
    np.testing.assert_allclose(score_pages(query, vectors, ends), alone, atol=1e-5)


@given(LENGTHS, st.integers(1, 6))
def test_coarse_scores_are_the_maxsim_of_the_centroids(lengths, words):
    vectors, ends = made(lengths)
    centroids, _ = made([7], seed=2)
    query, _ = made([words], seed=1)
    codes = encode(vectors, centroids)
    coarse = CoarseScores(query, centroids).of(codes, ends)
    exact = score_pages(query, centroids[codes], ends)
    products = centroids @ query.T
    step = (products.max(axis=0) - products.min(axis=0)).max() / 255
    shifted = exact - products.min(axis=0).sum()
    np.testing.assert_allclose(coarse * step, shifted, atol=words * step * 0.51 + 1e-4)


def test_a_code_is_the_nearest_centroid():
    vectors, _ = made([5000])  # more than are compared at once
    centroids, _ = made([31], seed=1)
    nearest = ((vectors[:, None] - centroids) ** 2).sum(-1).argmin(-1)
    assert (encode(vectors, centroids) == nearest).all()


def test_centroids_come_to_lie_in_the_middle_of_clusters():
    middles, _ = made([8], seed=3)
    noise = np.random.default_rng(4).standard_normal((800, 16)) * 0.02
    sample = unit(np.repeat(middles, 100, axis=0) + noise)
    centroids = train_centroids(sample, 64)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    assert ((middles @ centroids.T).max(axis=1) > 0.995).all()
    assert (centroids == train_centroids(sample, 64)).all()
