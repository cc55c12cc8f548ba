"""The examples for LlamaIndex run as they stand, and print what is true."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import llavakit
from tests.programs import ROOT, printed, python_blocks, started


@pytest.fixture(autouse=True, scope="module")
def _model() -> Iterator[None]:
    """Held, so that the examples share it."""
    backend = llavakit.load("demo")
    yield
    backend.close()


def test_chat_sees_the_picture_in_every_notation():
    told = printed("examples/llama_index_chat.py")
    assert re.search(r"turn 2: +red \(\d+ of \d+ tokens were known\)", told)
    assert re.search(r"template: +blue", told)
    assert re.search(r"complete: +green", told)


def test_query_engine_finds_the_picture_and_looks_at_it():
    told = printed("examples/llama_index_query.py")
    assert "What colour is the heart? red (heart.png)" in told
    assert "What is the title of the page? INVOICE (invoice.png)" in told


def test_extraction_reads_the_invoice_and_every_page():
    told = printed("examples/llama_index_extract.py")
    assert "picture: title='INVOICE' number=2284 total=320" in told
    assert len(re.findall(r"page \d: +title='[A-Z]+' number=\d+ total=\d+", told)) == 4


def test_agent_uses_its_tools_and_sees():
    told = printed("examples/llama_index_agent.py")
    assert "called: multiply({'a': 6, 'b': 7})" in told
    assert "answer: The result is 42." in told
    assert "called: get_weather({'city': 'London'})" in told
    assert "answer: The result is rainy." in told
    assert "answer: blue" in told


@pytest.mark.slow  # `make demo`, whose test is not slow, runs it as well
def test_ten_questions_are_answered_from_the_right_pages_by_a_new_process(tmp_path: Path):
    told = started("examples/llama_index_rag.py", "--db", str(tmp_path))
    assert "36 pages read and indexed" in told
    assert "10 of 10 right, with the page cited" in told and "BAD" not in told
    assert len(set(re.findall(r"invoices\.pdf p\. (\d+)$", told, re.MULTILINE))) == 10

    wrong = (
        "import sys; sys.path.insert(0, 'examples')\n"
        "from pathlib import Path; from dataclasses import replace; import llama_index_rag as rag\n"
        "first, *_ = rag.ask_pages(rag.make_pages())\n"
        "rag.ask_pages = lambda pages: [replace(first, page=first.page + 1)]\n"
        "sys.exit(rag.ask(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", wrong, str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1 and "BAD" in done.stdout


def test_the_documentations_blocks_run_in_their_order(tmp_path: Path):
    blocks = python_blocks("docs/llama-index.md")
    assert len(blocks) >= 4
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    printed(str(script))
