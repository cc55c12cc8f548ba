"""``llavakit web`` on the command line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from llavakit.web import WebSettings

pytest.importorskip("typer")

COMMAND = [sys.executable, "-c", "from llavakit.cli import main; main()", "web"]


def refused(*arguments: str) -> str:
    ended = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2, ended.stderr
    return ended.stderr


def test_what_cannot_be_honoured_is_told_before_anything_starts(tmp_path: Path) -> None:
    accounts = tmp_path / "accounts"
    accounts.write_text("nobody\n")
    assert "is no account" in refused("--auth-file", str(accounts))
    assert "--load-4bit" in refused("--base-url", "http://127.0.0.1:1", "--load-4bit")
    assert "no function" in refused("--moderation", "nothing")


def test_settings_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="seats"):
        WebSettings(seats=0)


def test_importing_the_page_loads_neither_gradio_nor_torch() -> None:
    code = (
        "import sys, llavakit.web, llavakit.cli.web, llavakit.web.controller, llavakit.web.guard; "
        "assert not {'gradio', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _hear_ctrl_c() -> None:
    # A test run in the background ignores SIGINT, and hands that down.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
@pytest.mark.enable_socket
def test_the_command_serves_warns_and_ends_cleanly(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        [*COMMAND, "--host", "0.0.0.0", "--port", str(port)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=_hear_ctrl_c,
    ) as process:
        try:
            assert process.stderr is not None
            assert "anybody who reaches 0.0.0.0" in process.stderr.readline()
            assert "in a browser" in process.stderr.readline()
            page = httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)
            assert page.is_success and "llavakit" in page.text
            assert list(tmp_path.glob("llavakit-web-*"))
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()
    # Nothing of the visitors stays.
    assert list(tmp_path.glob("llavakit-web-*")) == []
    assert [file for file in tmp_path.glob("gradio/**/*") if file.is_file()] == []
