"""The comparison with other engines: it runs with what is there, and skips what is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers.checkpoint import SHAPES, words_of
from benchmarks.peers.engines import find
from benchmarks.peers.rounds import Contender, Table, run_rounds
from benchmarks.peers.table import figures_of, lines_of
from benchmarks.peers.work import TEMPLATE, Request, make_work

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_peers(monkeypatch, tmp_path):
    """Neither peer is found, whatever this machine has."""
    monkeypatch.delenv("LLAMA_CPP_BIN", raising=False)
    monkeypatch.delenv("VLLM_PYTHON", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.slow  # what else is tested of it runs on invented contenders
def test_a_tiny_comparison_of_llavakit_and_generate(tmp_path):
    out = tmp_path / "figures.json"
    options = "--tiny --rounds 1 --threads 1 --only llavakit generate"
    options += " --workloads single chat together"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", *options.split(), "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    saved = json.loads(out.read_text())
    (figures,) = saved["figures"].values()
    assert set(figures) == {"generate fp32", "llavakit fp32"}
    for measured in figures.values():
        assert measured["together, tokens per second"] > 0
        assert measured["chat, later turns seconds"] > 0
        assert measured["peak memory MiB"] > 50
        assert measured["same answers"] == measured["answers"] == 16 + 1 + 6
    assert "llavakit fp32" in done.stdout


def test_an_absent_peer_is_one_line_and_no_failure():
    engines, skipped = find(["generate", "llama.cpp", "vLLM"])
    assert [engine.name for engine in engines] == ["generate"]
    assert set(skipped) == {"llama.cpp", "vLLM"}
    for reason in skipped.values():
        assert "\n" not in reason and "PATH" in reason


@pytest.mark.slow  # a process with torch
def test_a_vllm_that_cannot_be_imported_is_skipped_with_what_it_said(monkeypatch, tmp_path):
    (tmp_path / "vllm.py").write_text("raise ImportError('no kernels for this machine')")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncd {tmp_path}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("VLLM_PYTHON", str(python))
    engines, skipped = find(["vLLM"])
    assert not engines
    assert "no kernels for this machine" in skipped["vLLM"]


@pytest.mark.slow  # processes with torch
def test_a_contender_that_fails_is_left_out_with_its_last_line(tmp_path, capsys):
    (engine,), _ = find(["generate"])
    table = Table("nothing there", tmp_path, [Contender(engine, "fp32")], ["single"], 1)
    results, failed = run_rounds(table, rounds=2, threads=1)
    assert results == {}
    assert "work.json" in failed["generate fp32"]
    assert capsys.readouterr().out.count("generate fp32 failed") == 1
    assert len(lines_of(figures_of(results))) == 1


def test_the_prompt_is_what_the_chat_template_renders():
    from jinja2 import Template

    request = Request(0, ["first one", "second"], 4, answers=["an answer"])
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "first one"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "an answer"}]},
        {"role": "user", "content": [{"type": "text", "text": "second"}]},
    ]
    assert request.prompt("<image>") == Template(TEMPLATE).render(messages=messages)


def test_a_turn_of_a_chat_goes_on_from_the_last_prompt_and_its_answer():
    first = Request(0, ["first one"], 4).prompt("<image>")
    second = Request(0, ["first one", "second"], 4, answers=["an answer"]).prompt("<image>")
    assert second.startswith(f"{first} an answer</s>")


def test_the_work_is_the_same_each_time():
    words = words_of(SHAPES["small"])
    assert make_work(words) == make_work(words)
    assert len(words) == len(set(words)) == 8000 - 100
