"""``llavakit data check`` and ``llavakit train``, as users type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llavakit.cli.app import app
from tests.tiny import TinyModel
from tests.training.lessons import write_lessons

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    return done.exit_code, done.output


def test_data_without_faults_passes(tmp_path: Path):
    code, said = run("data", "check", write_lessons(tmp_path), "--model", "demo")
    assert code == 0
    assert "12 records, 12 of them usable, with 8 images and 16 answers" in said
    assert "in the longest" in said


def test_faults_are_named_by_their_lines_and_end_with_1(tmp_path: Path):
    file = write_lessons(tmp_path)
    (tmp_path / "red.png").unlink()
    code, said = run("data", "check", file, "--shown", 1)
    assert code == 1
    assert "2 missing-image" in said and "line 2: missing-image:" in said
    assert "and 1 more" in said
    code, said = run("data", "check", file, "--accept", "missing-image")
    assert code == 2 and "cannot be accepted" in said


@pytest.mark.parametrize("option", ["--max-length", "--conv-mode", "--model-base"])
def test_options_of_a_model_need_one(option: str, tmp_path: Path):
    value = "70" if option == "--max-length" else "v1"
    code, said = run("data", "check", write_lessons(tmp_path), option, value)
    assert code == 2 and f"{option} goes with --model" in said


def test_settings_of_a_file_are_replaced_by_those_of_the_command_line(
    tiny: TinyModel, tmp_path: Path
):
    data = write_lessons(tmp_path)
    (tmp_path / "train.yaml").write_text(
        f"model: {tiny.path}\ndata: {data}\nout: nowhere\nconv_mode: v1\ndevice: cpu\n"
        "batch_size: 4\nlearning_rate: 1e-2\nlora_rank: 2\nepochs: 9\n"
    )
    out = tmp_path / "out"
    code, said = run(
        *("train", "lora", "--config", tmp_path / "train.yaml", "--out", out),
        *("--max-steps", 2, "--set", "lora_alpha=6"),
    )
    assert code == 0, said
    assert "Training" in said and f"Wrote {out}" in " ".join(said.split())
    written = json.loads((out / "llavakit_training.json").read_text())
    assert (written["lora_rank"], written["lora_alpha"], written["max_steps"]) == (2, 6, 2)
    assert json.loads((out / "adapter_config.json").read_text())["lora_alpha"] == 6
    code, said = run("train", "lora", "--config", tmp_path / "train.yaml", "--out", out)
    assert code == 2 and "--resume" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["lora"], "model is missing"),
        (["lora", "--set", "rank"], "NAME=VALUE"),
        (["lora", "--set", "rank=4"], "no setting 'rank'"),
        (["sideways"], "sideways"),
    ],
)
def test_misuse_is_told_in_one_line(arguments: list[str], told: str):
    code, said = run("train", *arguments)
    assert code == 2 and told in " ".join(said.split())
