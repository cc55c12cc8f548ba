import json
import subprocess
import sys

import pytest

from llavakit.errors import EngineClosedError
from llavakit.images import open_picture
from llavakit.values import Completion, SamplingParams, Text, Usage
from tests.cli.conftest import png_bytes


def colours(request):
    """The colour of the middle of each image, as the backend sees it."""
    names = {(255, 0, 0): "red", (0, 128, 0): "green", (0, 0, 255): "blue"}
    seen = []
    for image in request.messages[-1].images:
        rgb = open_picture(image.source).rgb
        pixel = rgb.getpixel((rgb.width // 2, rgb.height // 2))
        nearest = min(
            names, key=lambda one: sum(abs(a - b) for a, b in zip(one, pixel, strict=True))
        )
        seen.append(names[nearest])
    return seen


def test_pictures_and_a_question(run, fake, picture, other, loads):
    result = run("ask", picture, other, "What is this?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "a red circle\n", "")
    (request,) = fake.requests
    assert colours(request) == ["red", "blue"]
    assert request.messages[-1].content[-1] == Text("What is this?")
    assert request.params == SamplingParams(temperature=0)  # greedy unless asked otherwise
    assert loads[0][0] == "demo"


def test_a_question_without_a_picture(run, fake):
    assert run("ask", "Hello?").exit_code == 0
    assert fake.requests[0].messages[0].images == ()


@pytest.mark.parametrize("command", ["ask", "chat", "read"])
def test_the_model_may_be_on_a_server(command, run, picture, loads):
    words = {"ask": [picture, "What?"], "chat": [picture], "read": [picture]}[command]
    result = run(command, *words, "--base-url", "http://gpu-box:8000", stdin="")
    assert result.exit_code == 0, result.stderr
    assert loads[0][1]["base_url"] == "http://gpu-box:8000"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--image-file", "{a},{b}", "--query", "q"],
        ["--image-file", "{a}", "--image-file", "{b}", "q"],
        ["--image-file", "{a}|{b}", "--sep", "|", "q"],
        ["{a}", "{b}", "--query", "q"],
        ["{a}", "--image-file", "{b}", "q"],
    ],
)
def test_the_ways_of_the_original_to_name_pictures(arguments, run, fake, picture, other):
    result = run("ask", *[one.format(a=picture, b=other) for one in arguments])
    assert result.exit_code == 0, result.stderr
    assert colours(fake.requests[0]) == ["red", "blue"]
    assert fake.requests[0].messages[-1].text == "q"


def test_the_options_of_the_original(run, fake, loads):
    result = run(
        *("ask", "q", "--model-path", "liuhaotian/llava-v1.5-7b-lora", "--model-base", "b"),
        *("--conv-mode", "v1", "--temperature", 0.2, "--top_p", 0.7, "--max_new_tokens", 9),
        *("--num_beams", 1, "--load-4bit", "--device", "cuda", "--seed", 3),
    )
    assert result.exit_code == 0, result.stderr
    assert fake.requests[0].params == SamplingParams(9, 0.2, 0.7, seed=3)
    name, settings = loads[0]
    assert name == "liuhaotian/llava-v1.5-7b-lora"
    assert settings == {
        "base_url": None,
        "model_base": "b",
        "conv_mode": "v1",
        "device": "cuda",
        "load_in_4bit": True,
        "load_in_8bit": False,
    }


def test_a_system_message(run, fake):
    run("ask", "q", "--system", "Be brief.")
    assert [message.role for message in fake.requests[0].messages] == ["system", "user"]


def test_json_is_one_object_on_stdout(run, fake, picture):
    fake._answer = lambda request: Completion(" Ja: é ", usage=Usage(10, 2, 4, 8))
    result = run("ask", picture, "q", "--json")
    answer = json.loads(result.stdout)
    timings = answer.pop("timings")
    assert answer == {
        "text": "Ja: é",
        "finish_reason": "stop",
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 2,
            "cached_tokens": 4,
            "image_tokens": 8,
            "total_tokens": 12,
        },
        "model": "demo",
    }
    assert 0 <= timings["ready_s"] <= timings["first_token_s"] <= timings["total_s"]
    assert result.stdout.count("\n") == 1 and result.stderr == ""


def test_a_picture_from_stdin(run, fake):
    assert run("ask", "-", "q", stdin=png_bytes("blue")).exit_code == 0
    assert colours(fake.requests[0]) == ["blue"]


@pytest.mark.parametrize(
    ("arguments", "pages"),
    [
        (["{pdf}#page=2"], ["green"]),
        (["{pdf}#pages=2-3"], ["green", "blue"]),
        (["{pdf}#pages=3,1"], ["blue", "red"]),
        (["{pdf}#pages=2-"], ["green", "blue"]),
        (["{pdf}", "--page", "3"], ["blue"]),
        (["{pdf}", "--page", "3", "--page", "1"], ["blue", "red"]),
        (["{pdf}#page=2", "{pdf}", "--page", "1"], ["green", "red"]),
    ],
)
def test_pages_of_a_pdf(arguments, pages, run, fake, pdf):
    result = run("ask", *[one.format(pdf=pdf) for one in arguments], "--query", "q")
    assert (result.exit_code, result.stderr) == (0, "")
    assert colours(fake.requests[0]) == pages


def test_other_pages_of_a_pdf_are_not_dropped_silently(run, fake, pdf):
    result = run("ask", pdf, "q")
    assert colours(fake.requests[0]) == ["red"]
    assert "3 pages" in result.stderr and "--page" in result.stderr
    assert result.stdout == "a red circle\n"


def test_a_pdf_is_known_by_its_content(run, fake, pdf, tmp_path):
    renamed = tmp_path / "scan.png"
    pdf.rename(renamed)
    assert "3 pages" in run("ask", renamed, "q").stderr
    assert "3 pages" in run("ask", "-", "q", stdin=renamed.read_bytes()).stderr


@pytest.mark.parametrize(
    ("arguments", "match", "code"),
    [
        ([], "Ask something", 2),
        (["q", "--num-beams", "5"], "beam search", 2),
        (["q", "--temperature", "-1"], "temperature", 2),
        (["q", "--page", "2"], "--page needs a PDF or a TIFF", 2),
        (["{pdf}#page=2", "q", "--page", "3"], "--page needs a PDF or a TIFF", 2),
        (["-", "-", "q"], "stdin", 2),
        (["{picture}"], "must be the question", 2),
        (["q", "{picture}"], "must be the question", 2),
        (["{pdf}#page=0", "q"], "numbered from 1", 2),
        (["{pdf}#page=9", "q"], "no page 9", 1),
        (["nowhere.pdf", "q"], "nowhere.pdf", 1),
        (["{broken}", "q"], "", 1),
    ],
)
def test_misuse_is_told_in_one_sentence(arguments, match, code, run, fake, picture, pdf, tmp_path):
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7 nothing")
    names = {"picture": picture, "pdf": pdf, "broken": broken}
    result = run("ask", *[one.format(**names) for one in arguments])
    assert result.exit_code == code
    assert match in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == "" and fake.requests == []


def test_an_error_of_the_model_is_one_sentence_unless_debugged(run, fake):
    fake._answer = lambda request: EngineClosedError("The engine died.")
    result = run("ask", "q")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "llavakit: The engine died.\n"
    assert isinstance(run("ask", "q", "--debug").exception, EngineClosedError)


def test_a_bug_is_named_as_one(run, fake):
    fake._answer = lambda request: ZeroDivisionError("oh")
    result = run("ask", "q")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr and "--debug" in result.stderr


def test_a_missing_extra_is_one_sentence_and_exit_code_2():
    code = (
        "from importlib import util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'typer' else find(name)\n"
        "from llavakit.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and 'pip install "llavakit[cli]"' in done.stderr


def test_help_and_version_need_no_torch():
    code = (
        "import sys\nfrom llavakit.cli import main\n"
        "sys.argv = ['llavakit', {flag!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        "    print(end.code, 'torch' in sys.modules)"
    )
    for flag in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(flag=flag)], capture_output=True, text=True
        )
        assert done.stdout.endswith("0 False\n"), done.stderr


def test_a_video_is_asked_about_as_one(run, fake, picture, tmp_path):
    from tests.videos import video

    file = tmp_path / "clip.mkv"
    file.write_bytes(video(1, 3, 16, 16))
    assert run("ask", picture, str(file), "https://example.org/a.mp4", "What?").exit_code == 0
    message = fake.requests[0].messages[-1]
    assert [one.source for one in message.videos] == [str(file), "https://example.org/a.mp4"]
    assert len(message.images) == 1
