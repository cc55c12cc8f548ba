"""The commands with the bundled model."""

import json
import subprocess
import sys

import pytest
from PIL import Image as PILImage
from PIL import ImageDraw
from typer.testing import CliRunner

import llavakit
from llavakit.cli.app import app


@pytest.fixture
def circle(demo_dir, tmp_path):
    if not (demo_dir / "config.json").is_file():
        pytest.skip("the bundled checkpoint is not built")
    image = PILImage.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).ellipse((70, 70, 190, 190), fill=(220, 30, 30))
    image.save(tmp_path / "circle.png")
    image.save(tmp_path / "circle.pdf")
    return tmp_path / "circle.png"


@pytest.fixture
def run(monkeypatch, demo_backend):
    # The backend of the whole run: loading it anew for each command would only take time.
    monkeypatch.setattr(llavakit, "load", lambda model, **settings: demo_backend)

    def invoke(*arguments, stdin=None):
        return CliRunner().invoke(app, [str(one) for one in arguments], input=stdin)

    return invoke


def test_ask_about_a_page_as_json(run, circle):
    done = run("ask", circle.with_suffix(".pdf"), "What colour is the circle?", "--json")
    answer = json.loads(done.stdout)
    assert (done.exit_code, answer["text"], done.stderr) == (0, "red", "")
    assert answer["usage"]["image_tokens"] > 0


def test_chat_remembers_the_picture(run, circle):
    questions = "What shape is it?\nWhat colour is the circle?\n"
    done = run("chat", circle, "--temperature", 0, stdin=questions)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["circle", "red"]


@pytest.mark.slow
def test_the_program_prints_the_answer_and_nothing_else(circle):
    command = [sys.executable, "-c", "from llavakit.cli import main; main()"]
    command += ["ask", str(circle), "What colour is the circle?"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert (done.returncode, done.stdout, done.stderr) == (0, "red\n", "")
