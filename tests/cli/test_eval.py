"""``llavakit eval``: what a user sees of a benchmark."""

import json

import pytest

from llavakit.errors import EngineClosedError
from tests.evaluation.datasets import WRITERS


@pytest.fixture
def pope(tmp_path):
    WRITERS["pope"](tmp_path / "pope")
    return tmp_path / "pope"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_eval_prints_a_table_and_leaves_files(run, fake, loads, pope, out):
    fake._answer = lambda request: "Yes, there is."
    result = run("eval", "pope", "--data", pope, "--out", out, "--model", "a/b", "--load-4bit")
    assert result.exit_code == 0 and result.stderr == f"Results are in {out}.\n"
    first, _, header, f1, *_ = result.stdout.splitlines()
    assert first == "POPE, a/b" and header.split()[:2] == ["score", "95%"]
    assert f1.startswith("F1, mean of categories") and "66.67%" in f1
    assert "12 questions asked, 0 without an answer, 0 answers cut." in result.stdout
    left = {path.name for path in out.iterdir()} - {".answers.jsonl.lock"}  # filelock 4 leaves it
    assert left == {"answers.jsonl", "answers.jsonl.job", "results.json"}
    assert loads[0] == (
        "a/b",
        {
            "model_base": None,
            "conv_mode": None,
            "load_in_4bit": True,
            "load_in_8bit": False,
            "device": "auto",
            "base_url": None,
        },
    )


def test_eval_prints_json(run, fake, pope, out):
    result = run("eval", "pope", "--data", pope, "--out", out, "--json", "--limit", 3)
    told = json.loads(result.stdout)
    assert told == json.loads((out / "results.json").read_text())
    assert (told["questions"], told["of"]) == (3, 12) and len(fake.requests) == 3


def test_eval_goes_on_and_asks_nothing_twice(run, fake, pope, out):
    assert run("eval", "pope", "--data", pope, "--out", out, "--limit", 5).exit_code == 0
    again = run("eval", "pope", "--data", pope, "--out", out)
    assert "5 answers were there before" in again.stderr and len(fake.requests) == 12
    other = run("eval", "pope", "--data", pope, "--out", out, "--model", "other")
    assert other.exit_code == 2 and "belongs to another job (model was" in other.stderr
    assert run("eval", "pope", "--data", pope, "--out", out, "--restart").exit_code == 0
    assert len(fake.requests) == 24


def test_eval_has_a_folder_of_its_own_for_each_model(run, fake, pope, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model in ("liuhaotian/llava-v1.5-7b", "/models/my llava/"):
        assert run("eval", "pope", "--data", pope, "--model", model).exit_code == 0
    names = sorted(path.name for path in (tmp_path / "eval/pope").iterdir())
    assert names == ["llava-v1.5-7b", "my-llava"]


def test_eval_takes_files_that_lie_elsewhere(run, fake, pope, out, tmp_path):
    elsewhere = {}
    for option, name in (
        ("--questions", "llava_pope_test.jsonl"),
        ("--images", "val2014"),
        ("--annotations", "coco"),
    ):
        elsewhere[option] = tmp_path / f"my-{name}"
        (pope / name).rename(elsewhere[option])
    options = [part for pair in elsewhere.items() for part in pair]
    result = run("eval", "pope", "--data", pope, "--out", out, *options)
    assert result.exit_code == 0
    shown = fake.requests[0].messages[0].images[0].source
    assert shown == elsewhere["--images"] / "a.png"


def test_eval_asks_a_server(run, fake, loads, pope, out):
    url = "http://127.0.0.1:1/v1"
    assert run("eval", "pope", "--data", pope, "--out", out, "--base-url", url).exit_code == 0
    model, keywords = loads[0]
    assert (model, keywords["base_url"], keywords["device"]) == ("demo", url, "auto")
    assert not any(keywords[name] for name in ("model_base", "conv_mode", "load_in_4bit"))


def test_eval_tells_what_is_wrong_in_one_sentence(run, fake, pope, out, tmp_path):
    cases = [
        (("popes", "--data", pope), 2, "There is no benchmark 'popes'"),
        (("pope", "--data", tmp_path / "none"), 1, "is not a folder"),
        (("pope", "--data", pope, "--window", 0), 2, "window is 0"),
        (("pope", "--data", pope, "--out", pope / "llava_pope_test.jsonl"), 1, "cannot be made"),
    ]
    for arguments, code, told in cases:
        elsewhere = () if "--out" in arguments else ("--out", out)
        result = run("eval", *arguments, *elsewhere)
        assert result.exit_code == code, result.output
        assert told in result.stderr and result.stderr.count("\n") == 1
        assert result.stdout == "" and fake.requests == []


def test_eval_tells_the_first_errors_and_fails_if_nothing_could_be_answered(
    run, fake, pope, out, monkeypatch
):
    for path in (pope / "val2014").iterdir():
        path.unlink()
    monkeypatch.setattr(fake, "submit", opening(fake.submit))
    result = run("eval", "pope", "--data", pope, "--out", out)
    assert result.exit_code == 1 and "12 without an answer" in result.stdout
    told = result.stderr.splitlines()
    assert len(told) == 7 and told[0].startswith("llavakit: Question 0 (a.png): There is no file")
    assert told[5] == "llavakit: further errors are in answers.jsonl only."


def opening(submit):
    """The fake opens no images; here it does, as a real backend."""
    from llavakit.images import open_picture

    def opened(request):
        for image in request.messages[0].images:
            open_picture(image.source)
        return submit(request)

    return opened


def test_eval_of_a_model_that_dies_fails_and_goes_on_later(run, fake, pope, out):
    script = iter(["yes", "yes", EngineClosedError("The engine has died.")])
    fake._answer = lambda request: next(script)
    result = run("eval", "pope", "--data", pope, "--out", out, "--window", 1)
    assert (result.exit_code, result.stdout) == (1, "") and "has died" in result.stderr
    fake._answer = lambda request: "yes"
    again = run("eval", "pope", "--data", pope, "--out", out)
    assert again.exit_code == 0 and "2 answers were there before" in again.stderr
