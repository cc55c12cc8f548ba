import json

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
