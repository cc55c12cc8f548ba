"""An empty argument, as a script writes it whose variable is not set, is told and not dropped."""

import pytest
from typer.testing import CliRunner

from llavakit.cli.app import app

HEART = "examples/data/heart.png"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["read", HEART, "--prompt", ""], "--prompt"),
        (["read", HEART, "--prompt="], "--prompt"),
        (["read", HEART, "--store", "", "--out", "out.jsonl"], "--store"),
        (["read", HEART, "-o", ""], "-o"),
        (["read", ""], "An argument"),
        (["ask", HEART, ""], "An argument"),
        (["ask", HEART, "--query", ""], "--query"),
        (["ask", HEART, "What is it?", "--sep", ""], "--sep"),
        (["chat", HEART, "--system", ""], "--system"),
        (["serve", "demo", "--host", ""], "--host"),
        (["serve", "demo", "--served-model-name", ""], "--served-model-name"),
        (["eval", "pope", "--data", ""], "--data"),
        (["data", "check", ""], "An argument"),
        (["export", "demo", ""], "An argument"),
        (["train", "lora", "--out", ""], "--out"),
        (["index", HEART, "--out", ""], "--out"),
        (["search", "index", ""], "An argument"),
        (["search", "index", "red", "--heatmap", ""], "--heatmap"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_empty_argument_is_told_by_its_name(arguments, named):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr == f"llavakit: {named} is empty; leave it out, or say what is meant.\n"


@pytest.mark.parametrize("question", [[HEART, "  "], [HEART, "--query", " "]])
def test_a_blank_question_is_told(question):
    result = CliRunner().invoke(app, ["ask", *question])
    assert result.exit_code == 2 and "The question is blank" in result.stderr


def test_a_blank_prompt_is_told():
    result = CliRunner().invoke(app, ["read", HEART, "--prompt", "  "])
    assert result.exit_code == 2 and "prompt is ' '; it must be words" in result.stderr
