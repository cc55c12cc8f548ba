"""``llavakit eval vidore``: what a user sees of it, with a tiny published retriever."""

import json

import pytest

from tests.evaluation.vidore import beir, pairs, png
from tests.retrieval.checkpoints import BUILDERS


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    path = tmp_path_factory.mktemp("retriever") / "colmodernvbert"
    BUILDERS["colmodernvbert"](path)
    return path


@pytest.fixture
def data(tmp_path):
    pages = {1: png("red"), 2: png("blue", "green"), 3: b"no image"}
    beir(tmp_path / "data" / "one", pages, {0: ("red", "english")}, [(0, 1, 1)])
    pairs(tmp_path / "data" / "two", [("blue", "a", png("blue")), (None, "b", png("cyan"))])
    return tmp_path / "data"


def test_vidore_prints_a_table_and_goes_on(run, data, retriever, tmp_path):
    out = tmp_path / "out"
    command = ["eval", "vidore", "--data", data, "--model", retriever, "--out", out]
    result = run(*command)
    assert result.exit_code == 0, result.stderr
    first, _, header, *lines = result.stdout.splitlines()
    assert first == f"ViDoRe, {retriever}" and header.split()[:2] == ["score", "95%"]
    assert [line.split("  ")[0] for line in lines[:5]] == [
        "nDCG@5, mean of tasks",
        "nDCG@10, mean of tasks",
        "recall@1, mean of tasks",
        "recall@5, mean of tasks",
        "one: nDCG@5",
    ]
    assert "one: 1 queries against 3 pages of" in result.stdout
    assert "1 pages could not be embedded, and no query finds them." in result.stdout
    assert "Page 3 of one" in result.stderr and f"Results are in {out}.\n" in result.stderr
    again = run(*command, "--json")
    assert json.loads(again.stdout) == json.loads((out / "results.json").read_text())
    assert "5 pages were there before" in again.stderr


def test_options_that_have_no_effect_are_refused(run, data, retriever):
    vidore = ["eval", "vidore", "--data", data, "--model", retriever]
    for option, value in (
        ("--limit", 3),
        ("--max-tokens", 5),
        ("--window", 5),
        ("--images", data),
        ("--questions", data),
        ("--annotations", data),
        ("--base-url", "http://localhost:1"),
    ):
        result = run(*vidore, option, value)
        assert result.exit_code == 2 and f"{option} has no effect for vidore" in result.stderr
    for option in ("--adapter", "--conv-mode", "--model-base"):
        result = run(*vidore, option, "vicuna_v1")
        assert result.exit_code == 2 and "leave it out" in result.stderr
    for option, value in (("--adapter", data), ("--pool", 3)):
        result = run("eval", "pope", "--data", data, option, value)
        assert result.exit_code == 2 and f"{option} has no effect but for vidore" in result.stderr


def test_a_folder_without_data_sets_is_refused(run, retriever, tmp_path):
    result = run("eval", "vidore", "--data", tmp_path, "--model", retriever)
    assert result.exit_code == 1 and "holds no data set of ViDoRe" in result.stderr
