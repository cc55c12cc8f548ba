"""The examples for LlamaIndex run as they stand, and print what is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_examples import ROOT, run


def test_chat_sees_the_picture_in_every_notation():
    printed = run("examples/llama_index_chat.py")
    assert re.search(r"turn 2: +red \(\d+ of \d+ tokens were known\)", printed)
    assert re.search(r"template: +blue", printed)
    assert re.search(r"complete: +green", printed)


def test_query_engine_finds_the_picture_and_looks_at_it():
    printed = run("examples/llama_index_query.py")
    assert "What colour is the heart? red (heart.png)" in printed
    assert "What is the title of the page? INVOICE (invoice.png)" in printed


def test_extraction_reads_the_invoice_and_every_page():
    printed = run("examples/llama_index_extract.py")
    assert "picture: title='INVOICE' number=2284 total=320" in printed
    assert len(re.findall(r"page \d: +title='[A-Z]+' number=\d+ total=\d+", printed)) == 4


def test_agent_uses_its_tools_and_sees():
    printed = run("examples/llama_index_agent.py")
    assert "called: multiply({'a': 6, 'b': 7})" in printed
    assert "answer: The result is 42." in printed
    assert "called: get_weather({'city': 'London'})" in printed
    assert "answer: The result is rainy." in printed
    assert "answer: blue" in printed


@pytest.mark.slow  # `make demo`, whose test is not slow, runs it as well
def test_ten_questions_are_answered_from_the_right_pages_by_a_new_process(tmp_path: Path):
    printed = run("examples/llama_index_rag.py", "--db", str(tmp_path))
    assert "36 pages read and indexed" in printed
    assert "10 of 10 right, with the page cited" in printed and "BAD" not in printed
    assert len(set(re.findall(r"invoices\.pdf p\. (\d+)$", printed, re.MULTILINE))) == 10

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
    text = (ROOT / "docs" / "llama-index.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 4
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    run(str(script))
