"""ViDoRe: its files in every layout, figures worked out by hand, and runs that go on."""

import json
import math
import random
from contextlib import suppress

import numpy as np
import pytest

from llavakit.embeddings import Embedding, maxsim
from llavakit.errors import InputError, LlavaKitError, ParameterError, SourceNotFoundError
from llavakit.evaluation import evaluate_retrieval, open_benchmark, read_tasks, to_retrieval_table
from llavakit.evaluation.data import Data
from llavakit.evaluation.vidore_pages import _maxsims
from tests.evaluation.vidore import Colours, beir, pairs, png, write

PAGES = {
    1: png("red", "green"),
    2: png("green", "blue"),
    3: png("blue"),
    10: png("yellow", "red"),
}
QUERIES = {
    0: ("red green", "english"),
    1: ("blue", "english"),
    2: ("rouge red", "french"),
}
JUDGED = [(0, 1, 2.0), (0, 2, 1.0), (1, 3, 1.0), (2, 10, 1.0)]


def scores_of(results):
    return {score.name: score.value for score in results.scores}


@pytest.fixture
def small(tmp_path):
    return beir(tmp_path / "small", PAGES, QUERIES, JUDGED)


def run(folder, out, embedder=None, **options):
    embedder = embedder or Colours()
    return evaluate_retrieval(read_tasks(folder), embedder, out, model="colours", **options)


def test_figures_are_those_worked_out_by_hand(small, tmp_path):
    results = run(small, tmp_path / "out")
    found = scores_of(results)
    # Query 0, "red green": page 1 has both (2.0); page 10 has red, and yellow, of which green is a
    # half (1 + 0.707); page 2 has green (1 + 0); page 3 neither. Ranks 1, 10, 2, 3; grades 2, 0, 1.
    first = (2 + 1 / 2) / (2 + 1 / math.log2(3))
    # Query 1, "blue": pages 2 and 3 both have it, and the last id comes first: page 3 at rank 1.
    second = 1.0
    # Query 2, "red": pages 1 and 10 both have it; as strings "10" is before "1" when descending.
    third = 1.0
    assert found["small: nDCG@5"] == pytest.approx(100 * (first + second + third) / 3)
    assert found["small: nDCG@10"] == found["small: nDCG@5"]
    assert found["small: recall@1"] == pytest.approx(100 * (1 / 2 + 1 + 1) / 3)
    assert found["small: recall@5"] == 100
    assert found["small, english: nDCG@5"] == pytest.approx(100 * (first + second) / 2)
    assert found["small, french: nDCG@5"] == pytest.approx(100)
    (score,) = [one for one in results.scores if one.name == "small: nDCG@5"]
    assert score.interval == "bootstrap" and score.low < score.value < score.high
    assert score.questions == 3
    (counts,) = results.tasks
    assert (counts.queries, counts.pages, counts.vectors) == (3, 4, 1.8)
    assert (counts.page_errors, counts.query_errors, counts.absent, counts.unjudged) == (0,) * 4


@pytest.mark.parametrize(
    "dash, name",
    [
        ("-", "{}/test-00000-of-00001.parquet"),
        ("_", "{}/test-00000-of-00001.parquet"),
        ("-", "{}/test/0000.parquet"),
        ("-", "{}/train-00000-of-00001.parquet"),
    ],
)
def test_layouts_of_the_second_and_third_version_give_the_same(tmp_path, small, dash, name):
    other = beir(tmp_path / "x" / "small", PAGES, QUERIES, JUDGED, dash, name)
    assert run(other, tmp_path / "a").scores == run(small, tmp_path / "b").scores


def test_of_several_splits_the_one_named_test_is_read(small, tmp_path):
    for table in ("corpus", "queries", "qrels"):
        (small / table / "dev-00000-of-00001.parquet").write_bytes(b"never opened")
    assert run(small, tmp_path / "out").tasks[0].queries == 3
    for file in small.rglob("test-*"):
        file.rename(file.with_name(file.name.replace("test-", "train-")))
    with pytest.raises(InputError, match=r"splits dev, train and none named test"):
        read_tasks(small)


def test_the_first_version_has_equal_queries_once_and_rows_without_one(tmp_path):
    folder = pairs(
        tmp_path / "docvqa",
        [
            ("red", "b.png", png("green", "blue")),
            ("red", "a.png", png("red")),  # the last row of a query says which page
            (None, "c.png", png("yellow")),
            ("green blue", "b.png", png("green", "blue")),
            ("cyan", "d.png", png("cyan")),
        ],
    )
    embedder = Colours()
    results = run(folder, tmp_path / "out", embedder)
    (counts,) = results.tasks
    assert (counts.task, counts.queries, counts.pages) == ("docvqa", 3, 4)
    assert embedder.images == 4  # b.png once
    # "red" finds a.png at once, and so does each; cyan (0, 1, 1) / sqrt(2) is d.png's own.
    assert scores_of(results)["docvqa: nDCG@5"] == 100


def test_a_name_with_two_images_counts_by_the_better_one(tmp_path):
    folder = pairs(
        tmp_path / "d",
        [("red", "a", png("green")), (None, "a", png("red")), (None, "b", png("yellow"))],
    )
    results = run(folder, tmp_path / "out")
    assert scores_of(results)["d: recall@1"] == 100 and results.tasks[0].pages == 2


def test_pages_that_are_judged_and_absent_count_as_not_found(small, tmp_path):
    folder = beir(tmp_path / "d", PAGES, QUERIES, [*JUDGED, (1, 99, 1)])
    results = run(folder, tmp_path / "out")
    first = (2 + 1 / 2) / (2 + 1 / math.log2(3))
    second = 1 / (1 + 1 / math.log2(3))
    assert scores_of(results)["d: nDCG@5"] == pytest.approx(100 * (first + second + 1) / 3)
    assert scores_of(results)["d: recall@5"] == pytest.approx(100 * (1 + 0.5 + 1) / 3)
    assert results.tasks[0].absent == 1
    assert "1 judged pages are not among the pages" in to_retrieval_table(results)


def test_queries_without_judgements_are_left_out_and_those_of_grade_zero_count(tmp_path):
    queries = {**QUERIES, 3: ("green", "english"), 4: ("cyan", "english")}
    folder = beir(tmp_path / "d", PAGES, queries, [*JUDGED, (4, 1, 0)])
    results = run(folder, tmp_path / "out")
    (counts,) = results.tasks
    assert (counts.queries, counts.unjudged) == (4, 1)
    assert scores_of(results)["d: recall@5"] == 75
    assert "1 queries have no judged page, and are left out." in to_retrieval_table(results)


def test_pages_and_queries_that_cannot_be_embedded_are_counted(tmp_path):
    pages = {**PAGES, 4: b"no image", 5: png("grey")}
    queries = {**QUERIES, 3: ("grey", "english"), 4: ("yellow", "english")}
    judged = [*JUDGED, (3, 3, 1), (4, 4, 1)]
    folder = beir(tmp_path / "d", pages, queries, judged)
    progress = []
    results = run(folder, tmp_path / "out", progress=progress.append)
    (counts,) = results.tasks
    assert (counts.queries, counts.pages) == (5, 6)
    assert (counts.page_errors, counts.query_errors) == (2, 1)
    assert scores_of(results)["d: recall@5"] == 60
    errors = [one.error for one in progress if one.error]
    assert [one[:15] for one in errors] == ["Page 4 of d: Th", "Page 5 of d: it"]
    assert progress[-1].errors == 2 and progress[-1].done == progress[-1].total == 6
    table = to_retrieval_table(results)
    assert "2 pages could not be embedded" in table and "1 queries could not be" in table
    again = Colours()
    assert run(folder, tmp_path / "out", again) == results and again.images == 0
    run(folder, tmp_path / "out", again, retry_errors=True)
    assert again.images > 0


def test_several_tasks_are_averaged_and_each_is_shown(tmp_path):
    beir(tmp_path / "all" / "one", PAGES, QUERIES, JUDGED)
    pairs(tmp_path / "all" / "two", [("red", "a", png("blue")), (None, "b", png("red"))])
    (tmp_path / "all" / "notes").mkdir()
    (tmp_path / "all" / "README.md").write_text("")
    results = run(tmp_path / "all", tmp_path / "out")
    found = scores_of(results)
    assert found["two: recall@1"] == 0 and found["two: nDCG@5"] == pytest.approx(100 / math.log2(3))
    for name in ("nDCG@5", "nDCG@10", "recall@1", "recall@5"):
        both = (found[f"one: {name}"] + found[f"two: {name}"]) / 2
        assert found[f"{name}, mean of tasks"] == pytest.approx(both)
    lines = to_retrieval_table(results).splitlines()
    assert lines[0] == "ViDoRe, colours" and lines[3].startswith("nDCG@5, mean of tasks")
    assert "one: 3 queries against 4 pages of 1.8 vectors." in lines


def many(folder, pages=50, seed=0):
    """Random stripes, and a query for every second page, with the colours of the page."""
    rng = random.Random(seed)
    names = ["red", "green", "blue", "yellow", "cyan"]
    rows = []
    for number in range(pages):
        chosen = [rng.choice(names) for _ in range(rng.randint(1, 6))]
        query = " ".join([*chosen, f"number {number}"]) if number % 2 else None
        rows.append((query, f"page {number:03d}", png(*chosen)))
    return pairs(folder, rows)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("stop", [0, 1, 16, 17, 49])
def test_a_run_that_was_killed_goes_on_to_the_same_files(tmp_path, stop):
    folder = many(tmp_path / "many")
    whole = run(folder, tmp_path / "whole")
    embedder = Colours()
    embedder.stop_after = stop
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "killed", embedder)
    rest = Colours()
    assert run(folder, tmp_path / "killed", rest) == whole
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert rest.images == 50 - stop // 16 * 16  # groups of 16 are written together


def test_a_run_that_was_torn_at_any_byte_goes_on_to_the_same_files(tmp_path):
    folder = many(tmp_path / "many", pages=20)
    whole = run(folder, tmp_path / "whole")
    everything = (tmp_path / "whole" / "pages.jsonl").read_bytes()
    for length in range(0, len(everything), 397):
        out = tmp_path / "torn"
        out.mkdir(exist_ok=True)
        (out / "pages.jsonl").write_bytes(everything[:length])
        (out / "pages.jsonl.job").write_bytes((tmp_path / "whole" / "pages.jsonl.job").read_bytes())
        assert run(folder, out) == whole
        assert (out / "pages.jsonl").read_bytes() == everything


def test_pages_of_another_run_are_never_mixed_in(small, tmp_path):
    out = tmp_path / "out"
    run(small, out)
    for other in (
        {"embedder": Colours("others")},
        {"pool": 2},
        {"settings": {"conv_mode": "x"}},
    ):
        with pytest.raises(ParameterError, match="belongs to another job"):
            run(small, out, **other)
    changed = beir(tmp_path / "y" / "small", PAGES, {0: ("green", "english")}, JUDGED)
    with pytest.raises(ParameterError, match="belongs to another job"):
        run(changed, out)
    assert run(changed, out, restart=True).tasks[0].queries == 1


def test_other_judgements_are_scored_anew_without_embedding(small, tmp_path):
    before = run(small, tmp_path / "out")
    judged = [(0, 3, 1), (1, 1, 1), (2, 2, 1)]
    other = beir(tmp_path / "y" / "small", PAGES, QUERIES, judged)
    embedder = Colours()
    after = run(other, tmp_path / "out", embedder)
    assert embedder.images == 0 and scores_of(after) != scores_of(before)


def test_an_image_that_changed_is_embedded_again(small, tmp_path):
    run(small, tmp_path / "out")
    pages = {**PAGES, 3: png("yellow")}
    other = beir(tmp_path / "y" / "small", pages, QUERIES, JUDGED)
    embedder = Colours()
    after = run(other, tmp_path / "out", embedder)
    assert embedder.images == 4  # the group of the page
    assert scores_of(after) == scores_of(run(other, tmp_path / "fresh"))


def test_pooling_is_measured(tmp_path):
    folder = many(tmp_path / "many")
    whole, pooled = run(folder, tmp_path / "a"), run(folder, tmp_path / "b", pool=3)
    assert pooled.tasks[0].vectors < whole.tasks[0].vectors / 2
    assert "vectors pooled by 3" in to_retrieval_table(pooled)
    assert scores_of(pooled) != scores_of(whole)


def test_scores_of_many_queries_at_once_are_maxsim(monkeypatch):
    rng = np.random.default_rng(0)

    def some(count):
        vectors = rng.normal(size=(count, 8)).astype(np.float32)
        return Embedding(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    queries = [some(rng.integers(1, 9)) if number % 4 else None for number in range(23)]
    page = some(17)
    for most in (1, 100, 1 << 24):
        monkeypatch.setattr("llavakit.evaluation.vidore_pages._PRODUCTS", most)
        found = _maxsims(queries, page)
        for score, query in zip(found, queries, strict=True):
            if query is None:
                assert np.isnan(score)
            else:
                assert score == pytest.approx(maxsim(query, page), abs=1e-5)


def test_results_are_written_as_json(small, tmp_path):
    results = run(small, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == json.loads(json.dumps(results.to_dict()))
    assert written["fingerprint"] == "colours" and written["tasks"][0]["queries"] == 3


def broken(small, table, rows):
    write(small / table / "test-00000-of-00001.parquet", rows)


@pytest.mark.parametrize(
    "table, rows, match",
    [
        ("qrels", [{"query-id": 0, "corpus-id": 1}], r"qrels.*has no column score, only"),
        ("qrels", [{"query": 0, "corpus-id": 1, "score": 1}], r"no column query-id or query_id"),
        (
            "qrels",
            [{"query-id": 0, "corpus-id": 1, "score": 0.5}],
            r"0\.5 is not a whole number",
        ),
        ("qrels", [{"query-id": 77, "corpus-id": 1, "score": 1}], r"no query has a judged page"),
        ("queries", [{"query-id": 0, "query": None}], r"the query 0 is not text"),
        (
            "queries",
            [{"query-id": 0, "query": "a"}, {"query-id": 0, "query": "b"}],
            r"the query 0 is there twice",
        ),
        ("corpus", [{"corpus-id": 1, "picture": 1}], r"has no column image"),
        ("corpus", [{"corpus-id": 1, "image": "a.png"}], r"the column image holds str"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(small, tmp_path, table, rows, match):
    broken(small, table, rows)
    with pytest.raises(InputError, match=match) as error:
        run(small, tmp_path / "out")
    assert str(small.resolve()) in str(error.value)


def test_an_image_without_bytes_is_an_error_of_its_page(small, tmp_path):
    rows = [{"corpus-id": 1, "image": {"bytes": None, "path": "a.png"}}]
    broken(small, "corpus", [*rows, {"corpus-id": 3, "image": png("blue")}])
    results = run(small, tmp_path / "out")
    assert results.tasks[0].page_errors == 1 and results.tasks[0].pages == 2


def test_damaged_and_missing_files_are_refused(small, tmp_path):
    file = small / "qrels" / "test-00000-of-00001.parquet"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(InputError, match=r"qrels.*cannot be read as parquet.*download it again"):
        read_tasks(small)
    file.unlink()
    with pytest.raises(InputError, match="lacks parquet files in one of its folders"):
        read_tasks(small)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no data set of ViDoRe"):
        read_tasks(tmp_path / "empty")
    with pytest.raises(SourceNotFoundError, match="not a folder"):
        read_tasks(tmp_path / "nowhere")


@pytest.mark.parametrize("table", ["corpus", "queries", "qrels"])
def test_a_damaged_file_gives_an_error_in_words_wherever_it_is_damaged(small, tmp_path, table):
    file = small / table / "test-00000-of-00001.parquet"
    whole = file.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 30)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with suppress(LlavaKitError):  # or the damage is one of an image, or of none that is read
            run(small, tmp_path / "out", restart=True)


def test_vidore_is_no_benchmark_of_questions(small):
    with pytest.raises(ParameterError, match="vidore asks no questions"):
        open_benchmark("vidore", Data(small))
