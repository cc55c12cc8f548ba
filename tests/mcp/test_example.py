"""The example runs as it stands and prints what is true; the page names options there are."""

import re
from pathlib import Path

import pytest

from tests.programs import started

PAGE = Path("docs/mcp.md")


@pytest.mark.slow  # a process of its own, which test_transports has too
def test_the_example_asks_reads_and_extracts():
    told = started("examples/mcp_client.py")
    assert "tools: ask_image, compare_images, read_page, extract, list_images" in told
    assert "images: shapes, scan (4 pages)" in told and 'asked: "blue"' in told
    assert "1 of 2: scan#page=1" in told and "2 of 2: scan#page=2" in told
    assert "extracted: {'title': 'INVOICE', 'total': 11} from scan#page=2" in told
    assert "refused: True There is no image '/etc/passwd'." in told


def test_the_page_names_options_that_there_are():
    from typer.main import get_command

    from llavakit.cli.app import app

    command = get_command(app).commands["mcp"]
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE.read_text()))
    assert named - known <= {"--extra-index-url"}
    assert {"--image", "--root", "--allow-urls", "--http", "--api-key-file", "--base-url"} <= named
