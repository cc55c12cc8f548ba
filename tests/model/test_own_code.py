"""Code that lies in a checkpoint's directory is never run, whatever a terminal would answer."""

import json
import shutil

import pytest

import llavakit
from llavakit.errors import CheckpointError

EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
Path({marker!r}).touch()
from transformers import LlavaConfig as Evil
"""


@pytest.fixture
def agreeable(monkeypatch):
    """A person who says yes to everything that transformers asks."""
    monkeypatch.setattr("builtins.input", lambda *args: "y")


def with_code(demo_dir, folder, name, **changes):
    shutil.copytree(demo_dir, folder)
    marker = folder.parent / "ran"
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    path = folder / name
    settings = json.loads(path.read_text())
    settings.get("image_processor", settings).update(changes)  # where transformers looks for it
    path.write_text(json.dumps(settings))
    return marker


@pytest.mark.usefixtures("agreeable")
def test_a_checkpoint_that_needs_its_own_code_is_refused(demo_dir, tmp_path):
    marker = with_code(
        demo_dir,
        tmp_path / "evil",
        "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"},
    )
    with pytest.raises(CheckpointError):
        llavakit.load(tmp_path / "evil").ask(None, "Hello?")
    assert not marker.exists()


@pytest.mark.usefixtures("agreeable")
@pytest.mark.parametrize(
    ("name", "auto_map"),
    [
        ("config.json", {"AutoModelForImageTextToText": "evil.Evil", "AutoConfig": "evil.Evil"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
        ("processor_config.json", {"AutoImageProcessor": "evil.Evil"}),
    ],
)
def test_a_known_checkpoint_that_brings_code_answers_without_it(name, auto_map, demo_dir, tmp_path):
    marker = with_code(demo_dir, tmp_path / "evil", name, auto_map=auto_map)
    backend = llavakit.load(tmp_path / "evil")
    assert backend.ask("examples/data/shapes.png", "How many shapes are there?") == "3"
    backend.close()
    assert not marker.exists()
