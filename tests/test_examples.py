"""The examples and the README run as they stand, and print what is true."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import llavakit
from llavakit.images import open_picture
from tests.programs import printed, python_blocks, started

README = python_blocks("README.md")


@pytest.fixture(autouse=True, scope="module")
def _model() -> Iterator[None]:
    """Held, so that the examples share it."""
    backend = llavakit.load("demo")
    yield
    backend.close()


@pytest.mark.slow  # `.ci/run` runs `make demo`, which ends with an error where an answer is wrong
def test_demo_answers_every_question_right():
    told = started("examples/demo.py")
    assert "BAD" not in told
    for framework in ("LangChain", "LlamaIndex"):
        found = re.search(rf"{framework}: (\d+) of (\d+) right", told)
        assert found is not None
        assert int(found[1]) == int(found[2]) >= 8
    assert "0 images encoded anew" in told
    assert told.count("10 of 10 right, with the page cited") == 2
    assert "Found by pixels: LangChain 10 of 10, LlamaIndex 10." in told
    looked = re.search(r"Where it looked on p\. \d+ for '.+': (.+\.png)", told)
    assert looked is not None and min(open_picture(Path(looked[1])).size) >= 100
    for kind in (".png", ".jpg", ".webp", ".pdf p."):
        assert kind in told


def test_shortest_program_names_the_colour():
    assert printed("examples/ask.py").splitlines()[0] == "red"


def test_langchain_example_answers_about_each_shape():
    told = printed("examples/langchain_chat.py")
    assert re.search(r"chain: +blue", told)
    assert re.search(r"batch: +\['red', 'blue', 'green'\]", told)
    assert re.search(r"turn 2: +red", told)


def test_langchain_batch_describes_every_picture():
    told = printed("examples/langchain_batch.py")
    assert "heart.png: a red heart" in told
    assert "shapes.png: a red circle, a blue square and a green triangle" in told
    assert "invoice.png: a page with the title INVOICE" in told


def test_langchain_extraction_reads_the_invoice_and_every_page():
    told = printed("examples/langchain_extract.py")
    assert "picture: title='INVOICE' number=2284 total=320" in told
    assert len(re.findall(r"page \d: +title='[A-Z]+' number=\d+ total=\d+", told)) == 4


def test_langchain_agent_uses_its_tools_and_gives_an_object():
    told = printed("examples/langchain_agent.py")
    assert "multiply({'a': 6, 'b': 7})" in told and "The result is 42." in told
    assert "get_weather({'city': 'London'})" in told and "The result is rainy." in told
    assert "object: name='Ada' age=36" in told


def starts_a_process(block: str) -> bool:
    """Pages of documents are drawn in another process, whose start depends on the program's."""
    return "PageImageLoader" in block or "PageIndex" in block


@pytest.mark.parametrize("number", range(len(README)))
def test_readme_snippet_runs(number: int, tmp_path: Path):
    shutil.rmtree("build/index", ignore_errors=True)  # of a run before, maybe of other weights
    script = tmp_path / "snippet.py"
    script.write_text(README[number])
    run = started if starts_a_process(README[number]) else printed
    run(str(script))


def test_two_readme_snippets_run_in_a_process_of_their_own():
    assert sum(map(starts_a_process, README)) == 2
