"""Runs: killed anywhere, they go on to the same table; errors are rows; others' files stay."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from llavakit.cli.app import app
from llavakit.errors import EngineClosedError, OutOfMemoryError, ParameterError, QueueFullError
from llavakit.evaluation import Data, evaluate, open_benchmark, to_table
from llavakit.testing import FakeBackend
from tests.evaluation.datasets import WRITERS


@pytest.fixture
def pope(written):
    return open_benchmark("pope", Data(written("pope")))


def by_prompt(request):
    """An answer that depends on the question only, half of them wrong."""
    return "Yes" if "circle" in request.messages[0].text else "no"


@pytest.fixture
def whole(pope, tmp_path):
    """A run that nobody disturbed: its folder and its results."""
    out = tmp_path / "whole"
    return out, evaluate(pope, FakeBackend(by_prompt), out, model="m")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("window", [1, 3, 50])
def test_a_run_that_was_killed_at_any_byte_goes_on_to_the_same_files(pope, whole, window, tmp_path):
    folder, results = whole
    everything = (folder / "answers.jsonl").read_bytes()
    out = tmp_path / "cut"
    out.mkdir()
    for length in range(0, len(everything), 97):
        (out / "answers.jsonl").write_bytes(everything[:length])
        (out / "answers.jsonl.job").write_bytes((folder / "answers.jsonl.job").read_bytes())
        backend = FakeBackend(by_prompt)
        again = evaluate(pope, backend, out, model="m", window=window)
        assert len(backend.requests) == len(pope.questions) - everything[:length].count(b"\n")
        assert again == results and files(out) == files(folder)


def test_a_run_that_failed_goes_on(pope, whole, tmp_path):
    script = ["Yes", EngineClosedError("gone")]
    out = tmp_path / "failed"
    with pytest.raises(EngineClosedError):
        evaluate(pope, FakeBackend(script), out, model="m", window=1)
    assert evaluate(pope, FakeBackend(by_prompt), out, model="m") == whole[1]


@pytest.mark.slow  # documents/test_jobs kills a run of the same machinery
def test_a_killed_program_goes_on_to_the_table_of_an_undisturbed_run(tmp_path, demo_backend):
    root = tmp_path / "data"
    WRITERS["pope"](root)
    path = root / "llava_pope_test.jsonl"
    path.write_text(path.read_text() * 4)
    for labels in (root / "coco").iterdir():
        labels.write_text(labels.read_text() * 4)
    out = tmp_path / "killed"
    ask = ["eval", "pope", "--data", str(root), "--out", str(out), "--window", "1"]
    command = [sys.executable, "-c", "from llavakit.cli import main; main()", *ask]

    killed = subprocess.Popen(command)
    answers = out / "answers.jsonl"
    while not (answers.exists() and answers.stat().st_size > 1000):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    before = answers.read_bytes().count(b"\n")
    assert 0 < before < 48
    again = CliRunner().invoke(app, ask)
    assert again.exit_code == 0, again.output
    assert f"{before} answers were there before" in again.stderr

    # The undisturbed run has another window, and an engine with a past.
    read = open_benchmark("pope", Data(root))
    results = evaluate(read, demo_backend, tmp_path / "whole", model="demo")
    assert again.stdout == to_table(results) and "100.00%" in again.stdout
    assert files(out) == files(tmp_path / "whole")


def test_a_missing_picture_is_a_row_with_an_error_and_counts_as_wrong(
    written, demo_backend, tmp_path
):
    root = written("pope")
    (root / "val2014/b.png").unlink()
    read = open_benchmark("pope", Data(root))
    out = tmp_path / "out"
    seen = []
    results = evaluate(read, demo_backend, out, model="demo", progress=seen.append)
    assert (results.questions, results.errors) == (12, 4)
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [row["number"] for row in rows] == list(range(12))
    failed = [row for row in rows if row["error"]]
    assert len(failed) == 4 and all(
        "(b.png): There is no" in row["error"]["message"] for row in failed
    )
    found = {score.name: score.value for score in results.scores}
    assert found["random: accuracy"] == pytest.approx(100 * 4 / 6)
    # A lost yes lowers recall and a lost no precision, as wrong answers would.
    assert found["random: recall"] == pytest.approx(100 * 2 / 3)
    assert found["random: precision"] == pytest.approx(100 * 2 / 3)
    assert "12 questions asked, 4 without an answer" in to_table(results)
    assert [step.done for step in seen] == list(range(13)) and seen[-1].errors == 4

    WRITERS["mmvet"](tmp_path / "new")
    (root / "val2014/b.png").write_bytes((tmp_path / "new/images/b.png").read_bytes())
    assert evaluate(read, demo_backend, out, model="demo").errors == 4
    retried = evaluate(read, demo_backend, out, model="demo", retry_errors=True)
    assert retried.errors == 0 and {score.value for score in retried.scores} == {50, 100}
    assert evaluate(read, demo_backend, out, model="demo") == retried


def test_one_bad_request_harms_no_other(pope, tmp_path):
    def answers(request):
        bad = "square" in request.messages[0].text
        return OutOfMemoryError("no room") if bad else "yes"

    results = evaluate(pope, FakeBackend(answers), tmp_path / "out", model="m")
    assert 0 < results.errors < results.questions


def test_a_full_queue_is_waited_for(pope, whole, tmp_path):
    class Busy(FakeBackend):
        def submit(self, request):
            self.tries = getattr(self, "tries", 0) + 1
            if self.tries % 2:
                raise QueueFullError("full")
            return super().submit(request)

    assert evaluate(pope, Busy(by_prompt), tmp_path / "busy", model="m") == whole[1]


def test_a_limit_asks_the_first_questions_and_the_rest_later(pope, whole, tmp_path):
    out = tmp_path / "out"
    few = evaluate(pope, FakeBackend(by_prompt), out, model="m", limit=5)
    assert (few.questions, few.of) == (5, 12)
    assert "The first 5 of 12 questions asked" in to_table(few)
    backend = FakeBackend(by_prompt)
    assert evaluate(pope, backend, out, model="m") == whole[1] and len(backend.requests) == 7
    assert evaluate(pope, backend, out, model="m", limit=5) == few and len(backend.requests) == 7
    with pytest.raises(ParameterError, match="limit is 0"):
        evaluate(pope, backend, out, model="m", limit=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "other"}, "model was"),
        ({"max_tokens": 7}, "max_tokens was 128 and is 7"),
        ({"settings": {"conv_mode": "plain"}}, "settings was"),
    ],
)
def test_answers_of_another_run_are_left_alone(pope, whole, change, told):
    folder, _ = whole
    before = files(folder)
    with pytest.raises(ParameterError, match=told):
        evaluate(pope, FakeBackend(["x"]), folder, **{"model": "m", **change})
    assert files(folder) == before
    evaluate(pope, FakeBackend(["x"]), folder, restart=True, **{"model": "m", **change})
    assert files(folder) != before


def test_answers_to_other_questions_are_left_alone(whole, written):
    path = written("pope") / "llava_pope_test.jsonl"
    path.write_text(path.read_text().replace("Is there a", "Is there any"))
    changed = open_benchmark("pope", Data(written("pope")))
    with pytest.raises(ParameterError, match="sha256 of the questions was"):
        evaluate(changed, FakeBackend(["x"]), whole[0], model="m")


def test_answers_about_pictures_of_another_name_are_left_alone(whole, written):
    for path in written("pope").rglob("*.json*"):
        path.write_text(path.read_text().replace('"b.png"', '"a.png"'))
    changed = open_benchmark("pope", Data(written("pope")))
    with pytest.raises(ParameterError, match="sha256 of the questions was"):
        evaluate(changed, FakeBackend(["x"]), whole[0], model="m")


def test_answers_about_other_pictures_of_the_same_names_are_left_alone(pope, whole, written):
    folder, results = whole
    images = written("pope") / "val2014"
    other = shutil.copytree(images, images.parent / "other")
    elsewhere = open_benchmark("pope", Data(written("pope"), images=other))
    assert evaluate(elsewhere, FakeBackend([]), folder, model="m") == results  # a moved folder
    (other / "b.png").write_bytes((other / "b.png").read_bytes() + b" ")
    before = files(folder)
    with pytest.raises(ParameterError, match=r"\(b\.png\) was answered about another image"):
        evaluate(elsewhere, FakeBackend(["x"]), folder, model="m")
    assert files(folder) == before
    shutil.rmtree(other)  # scored anew where the pictures are no more
    assert evaluate(elsewhere, FakeBackend([]), folder, model="m") == results


def test_answers_of_another_revision_are_left_alone(pope, whole):
    backend = FakeBackend(["x"])
    backend._info = replace(backend.info, revision="abc")
    with pytest.raises(ParameterError, match="revision was"):
        evaluate(pope, backend, whole[0], model="m")


def test_answers_can_be_read_by_the_originals_scripts(pope, whole):
    size = pope.questions[2].image.stat().st_size
    lines = [json.loads(line) for line in (whole[0] / "answers.jsonl").read_text().splitlines()]
    assert lines[2] == {
        "number": 2,
        "question_id": 2,
        "prompt": "Is there a square in the image?\n"
        "Answer the question using a single word or phrase.",
        "text": "no",
        "model_id": "m",
        "image_bytes": size,
        "finish_reason": "stop",
        "error": None,
    }


def test_results_as_json_hold_the_table(whole):
    folder, results = whole
    told = json.loads((folder / "results.json").read_text())
    assert told["scores"][0] == {
        "name": "F1, mean of categories",
        "value": results.scores[0].value,
        "low": results.scores[0].low,
        "high": results.scores[0].high,
        "interval": "bootstrap",
        "questions": 12,
        "unit": "%",
    }
    assert told["benchmark"] == "pope" and told["errors"] == 0
