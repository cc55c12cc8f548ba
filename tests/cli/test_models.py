import json
import subprocess
import sys
from pathlib import Path

import pytest

from llavakit.engine import memory
from llavakit.model.catalog import CATALOG, RUNTIME, resolve

SEVEN = "llava-1.5-7b"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Sets what the machine has: 12 GB of 16 GB of RAM and no GPU unless a test says otherwise."""

    def has(ram, gpus=(), whole=16 * 10**9):
        monkeypatch.setattr(memory, "available", lambda: ram)
        monkeypatch.setattr(memory, "total", lambda: whole)
        monkeypatch.setattr(memory, "gpus", lambda: list(gpus))

    has(12 * 10**9)
    return has


def row(printed, name):
    line = next(line for line in printed.splitlines() if f" {name} " in line)
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_the_table_names_every_model(run):
    result = run("models")
    assert result.exit_code == 0
    for entry in CATALOG:
        assert entry.name in result.stdout
    assert "16.3 GB" in result.stdout and "32,768" in result.stdout


def test_json_holds_every_figure(run):
    listed = json.loads(run("models", "--json").stdout)
    assert [one["name"] for one in listed] == [entry.name for entry in CATALOG]
    assert listed[1]["hf_id"] == "llava-hf/llava-1.5-7b-hf"
    assert listed[1]["memory_bytes"]["4bit"] == CATALOG[1].memory(4)
    assert listed[1]["image_tokens"]["photograph"] == 576


def test_the_documented_table_is_the_printed_one(run):
    result = run("models", "--markdown")
    printed = result.stdout.strip()
    assert result.exit_code == 0 and len(printed.splitlines()) >= len(CATALOG) + 2
    documented = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert printed in documented


@pytest.mark.parametrize(
    ("gigabytes", "words"),
    [(100, "16, 8, 4 bit"), (15, "8, 4 bit"), (12, "4 bit"), (2, "too large")],
)
def test_it_says_what_fits_into_the_memory_that_is_free(run, machine, gigabytes, words):
    machine(gigabytes * 10**9)
    printed = run("models").stdout
    assert row(printed, SEVEN)[6] == words
    assert f"{gigabytes}.0 GB of 16.0 GB of RAM" in printed


def test_a_gpu_has_a_column_of_its_own_and_the_largest_one_counts(run, machine):
    machine(12 * 10**9, gpus=[4 * 10**9, 24 * 10**9])
    printed = run("models").stdout
    assert row(printed, SEVEN)[6:8] == ["16, 8, 4 bit", "4 bit"]
    assert "24.0 GB on one GPU" in printed


def test_json_tells_what_fits_and_what_main_memory_takes(run, machine):
    listed = {one["name"]: one for one in json.loads(run("models", "--json").stdout)}
    seven = listed[SEVEN]
    assert seven["fits"] == {"gpu": None, "ram": {"16bit": False, "8bit": False, "4bit": True}}
    assert seven["memory_in_ram_bytes"]["4bit"] + RUNTIME <= 12 * 10**9
    machine(10**9, gpus=[8 * 10**9])
    seven = {one["name"]: one for one in json.loads(run("models", "--json").stdout)}[SEVEN]
    assert seven["fits"]["gpu"] == {"16bit": False, "8bit": False, "4bit": True}
    assert not any(seven["fits"]["ram"].values())


def test_fewer_bits_never_need_more_memory():
    for entry in CATALOG[1:]:
        assert entry.memory(4) < entry.memory(8) < entry.memory(16)
        assert entry.memory_in_ram(4) < entry.memory_in_ram(8)
        assert entry.memory_in_ram(4) >= entry.memory(4)


def test_a_model_fits_exactly_where_its_memory_and_the_runtime_do():
    entry = resolve(SEVEN)
    needed = entry.memory_in_ram(8) + RUNTIME
    assert entry.fits(8, ram=needed) and not entry.fits(8, ram=needed - 1)
    needed = entry.memory(8) + RUNTIME
    assert entry.fits(8, gpu=needed) and not entry.fits(8, gpu=needed - 1)
    assert not entry.fits(8)


def test_gpus_are_read_from_nvidia_smi(monkeypatch, tmp_path):
    monkeypatch.undo()  # the fixture's
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '24000\\n[N/A]\\n8000\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert memory.gpus() == [24000 << 20, 8000 << 20]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert memory.gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    program.write_text("#!/bin/sh\nexit 9\n")
    assert memory.gpus() == []


def test_listing_models_loads_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from llavakit.cli.app import app;"
        "assert CliRunner().invoke(app, ['models']).exit_code == 0;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
