"""What cannot be run is refused by its name while it is loaded, before any weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import llavakit
from llavakit.errors import CheckpointError, ParameterError
from llavakit.model import base_model
from llavakit.model.families import TOWERS, check_family
from llavakit.model.loader import load_reader, load_weights
from tests.tiny import TinyModel, tiny_llava

pytestmark = pytest.mark.filterwarnings(
    # peft speaks of what it will change.
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
)


@pytest.fixture
def copied(tiny: TinyModel, tmp_path: Path) -> Path:
    shutil.copytree(tiny.path, tmp_path / "copied")
    return tmp_path / "copied"


def rewrite(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("kind", "instead"),
    [
        ("llava_onevision1_5", "llava-onevision-qwen2-7b"),
        ("llava_mpt", "Llama, Vicuna, Mistral or Qwen2"),
        ("mpt", "llava-1.5-7b"),
        ("video_llava", "llava-onevision"),
        ("llava_qwen2", "fastvlm-0.5b"),
        ("qwen2_5_vl", "llava-v1.6-mistral-7b"),
        ("idefics3", "llava-v1.6-mistral-7b"),
        (None, "llava-v1.6-mistral-7b"),
    ],
)
def test_other_model_types_are_refused_with_the_nearest_that_works(
    kind: str | None, instead: str, copied: Path
):
    if kind == "llava_mpt":
        (copied / "config.json").write_text(json.dumps({"model_type": kind, "mm_hidden_size": 8}))
    else:
        rewrite(copied, model_type=kind)
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=repr(kind)) as refused:
        load_reader(copied)
    assert instead in str(refused.value)


def test_code_that_a_checkpoint_brings_is_never_run(copied: Path):
    (copied / "modeling.py").write_text("raise SystemExit('it was run')")
    rewrite(copied, model_type="llavaonevision1_5", auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(CheckpointError, match="code of its own"):
        load_reader(copied)


@pytest.mark.parametrize(
    "tower", ["dinov2", "siglip2_vision_model", "timm_wrapper", "rice_vit", "pixtral"]
)
@pytest.mark.parametrize("kind", list(TOWERS))
def test_towers_that_the_layout_does_not_know_are_refused(kind: str, tower: str):
    if tower in TOWERS[kind]:
        pytest.skip("known")
    with pytest.raises(CheckpointError, match=f"{tower}.*{kind}"):
        check_family(Path("m"), {"model_type": kind, "vision_config": {"model_type": tower}})
    check_family(Path("m"), {"model_type": kind, "vision_config": {}})


def test_pixels_that_are_not_the_towers_are_refused_while_loading(copied: Path):
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = copied / name
        if not file.is_file():
            continue
        said = json.loads(file.read_text())
        inner = said.get("image_processor", said)
        if "crop_size" in inner:
            inner["crop_size"] = {"height": 48, "width": 48}
            file.write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=r"48x48.*takes 32x32"):
        load_reader(copied)


def test_a_weight_of_another_shape_is_named_with_both(copied: Path):
    file = copied / "model.safetensors"
    weights = load_file(file)
    changed = sorted(one for one in weights if one.endswith(("embed_tokens.weight", "q_proj.bias")))
    for key in changed:
        weights[key] = weights[key][:-3].clone()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"embed_tokens|q_proj") as refused:
        load_weights(load_reader(copied), device="cpu", dtype="float32")
    assert "[" in str(refused.value) and "others differ too" in str(refused.value)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_recognised(name: str, copied: Path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132735\n"
    (copied / name).write_text(pointer)
    with pytest.raises(CheckpointError, match=rf"{name} is a pointer of git-lfs.*git lfs pull"):
        load_reader(copied)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("load_4bit", "load_in_4bit"), ("load_8bit", "load_in_8bit"), ("torch_dtype", "dtype")],
)
def test_settings_of_the_original_are_told_by_their_names_here(name: str, meant: str):
    with pytest.raises(ParameterError, match=meant):
        llavakit.load("demo", **{name: True})


@pytest.fixture
def adapter(tiny: TinyModel, tmp_path: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    model = load_reader(tiny.path).build({"dtype": torch.float32})
    made = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*(q|v)_proj"))
    made.peft_config["default"].base_model_name_or_path = str(tiny.path)
    made.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_lora_over_a_base_that_is_known_to_be_another_is_refused_unless_forced(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = tiny_llava(tmp_path / "other", seed=5).path
    with pytest.raises(CheckpointError, match=base_model.FORCE):
        load_reader(adapter, model_base=other)
    monkeypatch.setenv(base_model.FORCE, "1")
    assert load_reader(adapter, model_base=other).context_length > 0


def test_a_copy_of_the_base_under_another_name_is_the_base(
    adapter: Path, copied: Path, caplog: pytest.LogCaptureFixture
):
    load_reader(adapter, model_base=copied)
    assert "trained on" not in caplog.text


@pytest.mark.parametrize(
    ("named", "given", "refused"),
    [
        ("liuhaotian/llava-v1.5-7b", "models--llava-hf--llava-1.5-7b-hf/snapshots/ab", False),
        ("liuhaotian/llava-v1.5-7b", "models--llava-hf--llava-1.5-13b-hf/snapshots/ab", True),
        ("someone/one", "models--someone--other/snapshots/ab", True),
        ("/home/a/llava-tuned", "my-copy", False),
        ("", "my-copy", False),
        (None, "my-copy", False),
    ],
)
def test_bases_are_compared_by_what_their_names_stand_for(
    named: str | None, given: str, refused: bool, tmp_path: Path
):
    path = tmp_path / given
    path.mkdir(parents=True)
    if refused:
        with pytest.raises(CheckpointError, match="another model"):
            base_model.check_base(tmp_path, named, path)
    else:
        base_model.check_base(tmp_path, named, path)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.parametrize("fault", ["names", "shapes", "old names", "extra"])
def test_a_lora_that_fits_no_layer_is_refused_beside_packed_weights_too(
    fault: str, quantization: str, adapter: Path, tiny: TinyModel
):
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    if fault == "extra":
        weights["base_model.model.model.nowhere.weight"] = torch.ones(3)
    for name, one in list(weights.items()):
        if fault == "names":
            weights[name.replace("model.model.language_model.", "model.model.")] = weights.pop(name)
        elif fault == "old names":
            other = name.replace("model.model.language_model.", "model.language_model.model.")
            weights[other] = weights.pop(name)
        elif fault == "shapes" and "lora_A" in name:
            weights[name] = torch.ones(one.shape[0], one.shape[1] + 8)
    save_file(weights, file)
    words = "older transformers" if fault == "old names" else "does not fit its base model"
    with pytest.raises(CheckpointError, match=words):
        load_weights(
            load_reader(adapter, model_base=tiny.path),
            device="cpu",
            dtype="float32",
            quantization=quantization,
        )
