"""``llavakit index`` and ``llavakit search``: from a folder to an answer with its page."""

import json

import pytest
from PIL import Image

from llavakit.retrieval import embedder as embedders
from tests.cli.test_ask import colours
from tests.retrieval.colours import ColourEmbedder
from tests.retrieval.documents import coloured, picture

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def asked(monkeypatch):
    """The arguments of every ``load_embedder``, which gives an embedder without a model."""
    calls = []

    def load(model, **settings):
        calls.append((model, settings))
        return ColourEmbedder(str(model))

    monkeypatch.setattr(embedders, "load_embedder", load)
    return calls


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(coloured("red", "green", "blue", words="alpha"))
    picture(folder / "b.png", "yellow", "black")
    return folder


@pytest.fixture
def made(run, asked, folder, tmp_path):
    result = run("index", folder, "--out", tmp_path / "index")
    assert (result.exit_code, result.stdout) == (0, "")
    return tmp_path / "index", result


def test_a_folder_is_indexed_and_again_when_it_has_changed(run, made, folder, asked):
    out, result = made
    assert f"4 pages indexed; {out} holds 4 pages.\n" in result.stderr
    assert "1 page without a text layer" in result.stderr
    (folder / "b.png").unlink()
    (folder / "c.pdf").write_bytes(b"%PDF-1.7 no more")
    again = run("index", folder, "--out", out)
    assert again.exit_code == 0 and "c.pdf" in again.stderr
    assert (
        f"0 pages indexed, 1 could not be indexed, 1 document removed, 1 document as before; {out} "
        "holds 3 pages.\n" in again.stderr
    )
    assert asked[0] == ("demo", {"adapter": None, "device": "auto"})


def test_options_go_to_the_model_and_the_index(run, asked, folder, tmp_path):
    out = tmp_path / "index"
    options = ["--model", "m", "--adapter", "x", "--load-4bit", "--device", "cpu"]
    made = run("index", folder, "-o", out, *options, "--dpi", 72, "--store", "qdrant")
    assert made.exit_code == 0
    assert asked == [("m", {"adapter": "x", "device": "cpu", "load_in_4bit": True})]
    (first, *_) = json.loads(run("search", out, "green", "--json", "--model", "m").stdout)["pages"]
    assert first["page"] == 2
    refused = run("search", out, "green", "--mode", "text", "--model", "m")
    assert refused.exit_code == 2 and "Qdrant" in refused.stderr
    other = run("search", out, "green")
    assert other.exit_code == 2 and "another embedder (m, 24 numbers)" in other.stderr
    assert "--base-url" not in run("index", "--help").stdout


def test_pages_are_printed_the_best_first(run, made, folder):
    out, _ = made
    result = run("search", out, "the green page", "-k", 2)
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first.startswith(f"1. {folder / 'a.pdf'}, page 2  ") and second.startswith("2. ")
    found = json.loads(run("search", out, "alpha blue", "--mode", "hybrid", "--json").stdout)
    assert (found["question"], found["mode"]) == ("alpha blue", "hybrid")
    assert found["pages"][0]["page"] == 3 and found["pages"][0]["ranks"]["pixels"] == 1
    assert "answer" not in found


def test_an_answer_comes_with_its_pages(run, made, folder, fake, loads):
    out, _ = made
    fake._answer = lambda request: "alpha 2"
    result = run("search", out, "the green page", "-k", 1, "--answer")
    assert result.stdout.startswith(f"alpha 2\n\n1. {folder / 'a.pdf'}, page 2  ")
    assert colours(fake.requests[0]) == ["green"] and loads[0][0] == "demo"
    whole = json.loads(run("search", out, "the green page", "--answer", "--json").stdout)
    assert whole["answer"]["text"] == "alpha 2"
    (first, *others) = whole["answer"]["citations"]
    assert (first["source"], first["page"]) == (str(folder / "a.pdf"), 2)
    ((left, top, right, bottom),) = first["boxes"]
    assert 0 < left < right < 1 and 0 < top < bottom < 0.3
    assert len(others) == 3


def test_another_model_answers(run, made, loads):
    out, _ = made
    assert run("search", out, "green", "--answer", "--answer-model", "llava").exit_code == 0
    assert loads == [("llava", {})]
    refused = run("search", out, "green", "--answer-model", "llava")
    assert refused.exit_code == 2 and "--answer" in refused.stderr


def test_a_heatmap_of_the_first_page(run, made, tmp_path):
    out, _ = made
    image = tmp_path / "seen.png"
    result = run("search", out, "black", "--heatmap", image)
    assert result.exit_code == 0 and "b.png, page 1" in result.stderr
    drawn = Image.open(image)
    assert drawn.size == (60, 60)
    red, _, blue = drawn.getpixel((45, 45))
    assert red > blue + 50
    for wrong in ("seen", "seen.txt"):
        refused = run("search", out, "black", "--heatmap", tmp_path / wrong)
        assert refused.exit_code == 2 and "is not the name of an image" in refused.stderr
    refused = run("search", out, "black", "--heatmap", tmp_path / "no" / "such.png")
    assert refused.exit_code == 2 and "cannot be written" in refused.stderr


def test_what_is_not_there_is_one_sentence(run, asked, folder, tmp_path, made):
    missing = run("search", tmp_path / "nothing", "red")
    assert missing.exit_code == 2 and "holds no index" in missing.stderr
    assert not (tmp_path / "nothing").exists()
    out, _ = made
    nothing = run("search", out, "omega", "--mode", "text")
    assert (nothing.exit_code, nothing.stderr) == (1, "llavakit: no page was found.\n")
    assert run("search", out, "red", "--mode", "magic").exit_code == 2
    assert run("search", out, " ").exit_code == 2
    refused = run("index", folder, "--out", folder)
    assert refused.exit_code == 2 and "other files" in refused.stderr
    empty = run("index", tmp_path / "no.pdf", "--out", tmp_path / "other")
    assert empty.exit_code == 1 and "no.pdf" in empty.stderr


def test_interrupted_indexing_says_how_to_go_on(run, asked, folder, tmp_path, monkeypatch):
    def interrupted(self, **given):
        raise KeyboardInterrupt

    monkeypatch.setattr(ColourEmbedder, "embed", interrupted)
    result = run("index", folder, "--out", tmp_path / "index")
    assert result.exit_code == 130
    assert result.stderr == "llavakit: interrupted; the same command goes on.\n"
