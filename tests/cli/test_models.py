import json
from pathlib import Path

from llavakit.model.catalog import CATALOG


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
