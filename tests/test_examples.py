"""The examples and the README run as they stand, and print what is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments: str, **options: str) -> str:
    """What a program prints, run as a user would."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
        env={**os.environ, **options},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_demo_answers_every_question_right():
    printed = run("examples/demo.py")
    assert "BAD" not in printed
    for framework in ("LangChain", "LlamaIndex"):
        found = re.search(rf"{framework}: (\d+) of (\d+) right", printed)
        assert found is not None
        assert int(found[1]) == int(found[2]) >= 8
    assert "0 pictures encoded anew" in printed
    assert printed.count("10 of 10 right, with the page cited") == 2
    for kind in (".png", ".jpg", ".webp", ".pdf p."):
        assert kind in printed


def test_shortest_program_names_the_colour():
    assert run("examples/ask.py").splitlines()[0] == "red"


def test_langchain_example_answers_about_each_shape():
    printed = run("examples/langchain_chat.py")
    assert re.search(r"chain: +blue", printed)
    assert re.search(r"batch: +\['red', 'blue', 'green'\]", printed)
    assert re.search(r"turn 2: +red", printed)


def test_langchain_batch_describes_every_picture():
    printed = run("examples/langchain_batch.py")
    assert "heart.png: a red heart" in printed
    assert "shapes.png: a red circle, a blue square and a green triangle" in printed
    assert "invoice.png: a page with the title INVOICE" in printed


def test_langchain_extraction_reads_the_invoice_and_every_page():
    printed = run("examples/langchain_extract.py")
    assert "picture: title='INVOICE' number=2284 total=320" in printed
    assert len(re.findall(r"page \d: +title='[A-Z]+' number=\d+ total=\d+", printed)) == 4


def test_langchain_agent_uses_its_tools_and_gives_an_object():
    printed = run("examples/langchain_agent.py")
    assert "multiply({'a': 6, 'b': 7})" in printed and "The result is 42." in printed
    assert "get_weather({'city': 'London'})" in printed and "The result is rainy." in printed
    assert "object: name='Ada' age=36" in printed


def readme_blocks() -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("number", range(len(readme_blocks())))
def test_readme_snippet_runs(number: int, tmp_path: Path):
    script = tmp_path / "snippet.py"
    script.write_text(readme_blocks()[number])
    run(str(script))
