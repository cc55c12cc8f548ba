"""What every store of page vectors does, and what only LanceDB's does."""

import gc
import json

import numpy as np
import pytest

from llavakit.embeddings import Embedding, maxsim
from llavakit.errors import ParameterError
from llavakit.retrieval.lance import LanceVectors
from llavakit.retrieval.qdrant import QdrantVectors
from llavakit.retrieval.vectors import PageRow
from tests.retrieval.test_scoring import unit

D = 16
QUERY = Embedding(unit(np.random.default_rng(7).standard_normal((5, D))))


def rows(count, seed=0, document=1):
    chance = np.random.default_rng(seed)
    return [
        PageRow(
            (document + number // 10, number % 10),
            json.dumps({"number": number}),
            f"Page {number} of seven pages" if number % 3 else "",
            unit(chance.standard_normal((chance.integers(1, 9), D))),
        )
        for number in range(count)
    ]


def best(rows, k):
    """The keys of the best rows, by the MaxSim of what a store in fp16 keeps."""
    kept = {row.key: row.vectors.astype(np.float16).astype(np.float32) for row in rows}
    scores = {key: maxsim(QUERY, Embedding(vectors)) for key, vectors in kept.items()}
    return sorted(scores, key=lambda key: -scores[key])[:k]


def keys(found):
    return [row.key for row in found]


@pytest.fixture(params=[LanceVectors, QdrantVectors])
def store(request, tmp_path):
    store = request.param(tmp_path / "store", D)
    yield store
    store.close()


def test_an_empty_store_finds_nothing(store):
    assert store.count() == 0 and list(store.keys()) == []
    assert store.search(QUERY, 3) == []
    store.settle()
    store.add([])
    store.delete(1)
    assert store.count() == 0


def test_search_ranks_by_maxsim(store):
    made = rows(50)
    for at in range(0, 50, 20):
        store.add(made[at : at + 20])
    found = store.search(QUERY, 7)
    assert keys(found) == best(made, 7)
    by_key = {row.key: row for row in made}
    for row in found:
        assert (row.reference, row.text) == (by_key[row.key].reference, by_key[row.key].text)
        exact = maxsim(QUERY, Embedding(by_key[row.key].vectors))
        assert row.score == pytest.approx(exact, abs=5e-3)
    assert len(store.search(QUERY, 80)) == 50


def test_many_pages_without_codes_are_searched_some_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("llavakit.retrieval.lance._KEYS", 7)
    store = LanceVectors(tmp_path / "store", D)
    store.add(rows(50))
    store.delete(2)
    left = [row for row in rows(50) if row.key[0] != 2]
    assert keys(store.search(QUERY, 9)) == best(left, 9)


def test_pages_are_deleted_from_a_place_on_and_by_document(store):
    made = rows(30)
    store.add(made)
    store.delete(2, at_least=4)
    store.delete(3)
    left = [row for row in made if row.key[0] == 1 or (row.key[0] == 2 and row.key[1] < 4)]
    assert sorted(store.keys()) == sorted(row.key for row in left)
    assert store.count() == 14 and keys(store.search(QUERY, 20)) == best(left, 20)


def test_rows_outlive_the_store_that_wrote_them(store, tmp_path):
    store.add(rows(12))
    store.close()
    again = type(store)(tmp_path / "store", D)
    assert keys(again.search(QUERY, 3)) == best(rows(12), 3)
    again.close()


def test_full_text_ranks_by_words_in_lance(tmp_path):
    store = LanceVectors(tmp_path / "store", D)
    assert store.search_text("pages", 3) == []
    store.add(rows(30))
    assert keys(store.search_text("page 17", 30))[0] == (2, 7)
    found = store.search_text("seven", 40)
    assert len(found) == 20 and all(row.text for row in found)  # 20 of 30 have a text
    store.add([PageRow((9, 0), "{}", "the Über pump (model 7)", QUERY.vectors)])
    assert keys(store.search_text("uber PUMPS", 3)) == [(9, 0)]  # not in the index of words yet
    assert store.search_text('AND "(unbalanced', 3) == []  # words, and not a language
    store.settle()
    assert keys(store.search_text("pump", 3)) == [(9, 0)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_qdrant_refuses_a_ranking_of_words_it_does_not_have(tmp_path):
    store = QdrantVectors(tmp_path / "store", D)
    with pytest.raises(ParameterError, match='mode="pixels"'):
        store.search_text("pump", 3)
    with pytest.raises(ParameterError, match="open in another process"):
        QdrantVectors(tmp_path / "store", D)
    gc.collect()  # the client that was refused has left its lock file open
    store.close()


@pytest.fixture
def coded(tmp_path):
    """A store with codes, and pages for which it has none."""
    store = LanceVectors(tmp_path / "store", D, coded_from=200)
    made = rows(300)
    store.add(made[:250])
    store.settle()
    store.add(made[250:])
    return store, made


def generations(store):
    return sorted(name for name in store._db.list_tables().tables if name != "pages")


def test_of_many_pages_the_candidates_are_scored_exactly(coded, monkeypatch):
    store, made = coded
    assert generations(store) == ["centroids-1", "codes-1"]
    monkeypatch.setattr("llavakit.retrieval.lance.CANDIDATES", 150)
    scored = []
    exact = LanceVectors._exact

    def counted(self, query, k, pages):
        pages = list(pages)
        scored.append(sum(len(found) for found, _, _ in pages))
        return exact(self, query, k, pages)

    monkeypatch.setattr(LanceVectors, "_exact", counted)
    assert keys(store.search(QUERY, 5)) == best(made, 5)
    assert scored == [150]


def test_pages_without_codes_are_found(coded):
    store, made = coded
    (_, codes) = store._coding.latest()
    codes.delete("key >= 0")  # as if the process had been killed before any was written
    assert keys(store.search(QUERY, 5)) == best(made, 5)


def test_rows_that_lie_elsewhere_now_are_found_by_their_keys(coded, monkeypatch):
    store, made = coded
    assert keys(store.search(QUERY, 5)) == best(made, 5)
    version = store._rows._held[0]
    store.add(rows(40, seed=3, document=500))
    store.delete(1)
    store._pages.optimize()  # joins files: other ids for the same rows
    # As if it had happened right behind the look at the version.
    monkeypatch.setattr(type(store._pages), "version", property(lambda _: version))
    wanted = np.array(sorted(one["key"] for one in store._pages.search().to_list())[:30])
    batches = list(store._rows.fetch(store._pages, wanted, ["key", "text"], 7))
    assert sorted(key for one in batches for key in one.column("key").to_pylist()) == [
        key for key in wanted if key in store._rows._held[1]
    ]
    assert all(one.num_rows <= 7 for one in batches)


def test_codes_go_with_their_pages(coded):
    store, made = coded
    first = best(made, 1)[0]
    store.delete(first[0])
    left = [row for row in made if row.key[0] != first[0]]
    assert keys(store.search(QUERY, 5)) == best(left, 5)
    assert store._coding.latest()[1].count_rows() == len(left)


def test_an_index_that_has_grown_gets_new_centroids(coded):
    store, made = coded
    store.settle()
    assert generations(store) == ["centroids-1", "codes-1"]
    more = rows(800, seed=5, document=100)
    store.add(more)
    store.settle()
    assert generations(store) == ["centroids-2", "codes-2"]
    assert keys(store.search(QUERY, 5)) == best(made + more, 5)


def test_a_half_made_generation_is_passed_over_and_made_anew(coded):
    store, made = coded
    store._db.create_table("centroids-2", store._db.open_table("centroids-1").to_arrow())
    assert keys(store.search(QUERY, 5)) == best(made, 5)
    store.add(rows(800, seed=5, document=100))
    store.settle()
    assert generations(store) == ["centroids-2", "codes-2"]


def test_a_store_that_is_open_sees_what_another_one_does(coded, tmp_path):
    store, made = coded
    other = LanceVectors(tmp_path / "store", D, coded_from=200)
    assert keys(other.search(QUERY, 5)) == best(made, 5)
    more = rows(800, seed=5, document=100)
    for at in range(0, 800, 20):  # so many files that they are joined, and the old ones removed
        store.add(more[at : at + 20])
    store.settle()
    assert keys(other.search(QUERY, 5)) == best(made + more, 5)
    assert store._pages.stats()["fragment_stats"]["num_fragments"] < 20
