"""Adapters as PEFT writes them, over bases in both formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

import llavakit
from llavakit.backend import Backend
from llavakit.errors import CheckpointError
from llavakit.model.export import export
from llavakit.model.loader import load_reader
from tests.original import FIXTURES
from tests.tiny import TinyModel, tiny_llava

V15 = FIXTURES / "models" / "llava-v1.5-tiny"
LAYER = "model.language_model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def adapter(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by PEFT itself, with random halves and another projector."""
    from peft import LoraConfig, get_peft_model

    path = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    base = load_reader(tiny.path).build({"dtype": torch.float32})
    config = LoraConfig(
        r=3, lora_alpha=7, target_modules=r".*language_model.*\.(q_proj|down_proj)",
        modules_to_save=["multi_modal_projector"],
    )  # fmt: skip
    model = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    settings = json.loads((path / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = None
    (path / "adapter_config.json").write_text(json.dumps(settings))
    return path


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def built(path: Path, base: Path | None) -> Any:
    return load_reader(path, model_base=base).build({"dtype": torch.float32}).eval()


def test_weights_are_those_of_pefts_own_merge(adapter: Path, tiny: TinyModel):
    from peft import PeftModel

    base = load_reader(tiny.path).build({"dtype": torch.float32})
    expected = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    seen = built(adapter, tiny.path).state_dict()
    assert set(seen) == set(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(seen[name], weight, atol=1e-6, rtol=0)
    original = load_reader(tiny.path).build({"dtype": torch.float32}).state_dict()
    assert not torch.equal(seen[f"{LAYER}.weight"], original[f"{LAYER}.weight"])


def test_names_of_older_transformers_are_understood(adapter: Path, tiny: TinyModel, tmp_path: Path):
    shutil.copytree(adapter, tmp_path / "old")
    file = tmp_path / "old" / "adapter_model.safetensors"
    renamed = {
        name.replace("model.model.language_model.", "model.language_model.model.").replace(
            "model.model.multi_modal", "model.multi_modal"
        ): weight
        for name, weight in load_file(file).items()
    }
    assert set(renamed) != set(load_file(file))
    save_file(renamed, file)
    expected, seen = built(adapter, tiny.path), built(tmp_path / "old", tiny.path)
    for name, weight in expected.state_dict().items():
        assert torch.equal(seen.state_dict()[name], weight), name


def test_the_base_that_an_adapter_names_is_taken_if_it_is_here(
    adapter: Path, tiny: TinyModel, tmp_path: Path
):
    shutil.copytree(adapter, tmp_path / "named")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for name, told in {str(tiny.path): None, "someone/else": "was trained on someone/else"}.items():
        settings["base_model_name_or_path"] = name
        (tmp_path / "named" / "adapter_config.json").write_text(json.dumps(settings))
        if told is None:
            assert load_reader(tmp_path / "named").context_length == 2048
        else:
            with pytest.raises(CheckpointError, match=told):
                load_reader(tmp_path / "named")


def test_an_adapter_over_a_base_in_the_originals_format(tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    reader = load_reader(V15)
    model = reader.build({"dtype": torch.float32})
    before = model.state_dict()[f"{LAYER}.weight"].clone()
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj"))
    torch.nn.init.normal_(
        dict(wrapped.named_parameters())[f"base_model.model.{LAYER}.lora_B.default.weight"]
    )
    wrapped.save_pretrained(tmp_path)
    after = built(tmp_path, V15).state_dict()[f"{LAYER}.weight"]
    assert not torch.equal(before, after)
    exported = export(tmp_path, tmp_path / "out", model_base=V15, dtype="float32")
    seen = load_reader(exported).build({"dtype": torch.float32}).state_dict()
    assert torch.equal(seen[f"{LAYER}.weight"], after)


def test_an_exported_adapter_answers_as_the_adapter(adapter: Path, tiny: TinyModel, tmp_path: Path):
    out = export(adapter, tmp_path / "whole", model_base=tiny.path, dtype="float32")
    noise = np.random.default_rng(0).integers(0, 256, (8, 30, 40, 3), np.uint8)

    def told(backend: Backend) -> list[str]:
        return [backend.ask(picture, "What is it?", max_tokens=12) for picture in noise]

    whole, apart = llavakit.load(str(out)), llavakit.load(str(adapter), model_base=str(tiny.path))
    assert told(apart) == told(whole)
    plain = llavakit.load(str(tiny.path))
    assert told(apart) != told(plain)
    for backend in (whole, apart, plain):
        backend.close()


def test_pictures_of_an_adapter_and_its_base_have_keys_of_their_own(adapter: Path, tiny: TinyModel):
    picture = llavakit.images.open_picture(PILImage.new("RGB", (8, 8)))
    mine = load_reader(adapter, model_base=tiny.path)
    theirs = load_reader(tiny.path)
    assert mine.revision != theirs.revision
    assert mine.preprocess(picture).key != theirs.preprocess(picture).key


def test_dora_is_refused(adapter: Path, tiny: TinyModel, tmp_path: Path):
    shutil.copytree(adapter, tmp_path / "dora")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "dora" / "adapter_config.json").write_text(
        json.dumps({**settings, "use_dora": True})
    )
    with pytest.raises(CheckpointError, match="DORA"):
        load_reader(tmp_path / "dora", model_base=tiny.path)


def test_a_base_that_does_not_fit_is_refused(adapter: Path, tmp_path: Path):
    wide = tiny_llava(tmp_path / "wide", hidden=64)
    with pytest.raises(CheckpointError, match="does not fit its base model"):
        built(adapter, wide.path)


def test_an_adapter_without_weights_or_upon_another_is_refused(
    adapter: Path, tiny: TinyModel, tmp_path: Path
):
    with pytest.raises(CheckpointError, match="adapter itself"):
        load_reader(adapter, model_base=adapter)
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    with pytest.raises(CheckpointError, match="no weights of the adapter"):
        load_reader(tmp_path, model_base=tiny.path)
    with pytest.raises(CheckpointError, match="model_base="):
        load_reader(adapter)
