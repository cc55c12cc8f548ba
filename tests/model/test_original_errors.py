"""What is wrong with an original checkpoint is said in one sentence that names file and fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

import llavakit
from llavakit.errors import CheckpointError
from llavakit.model.loader import load_reader, load_weights
from tests.original import SETTINGS, random_projector, random_state, write
from tests.tiny import TinyModel


def load(path: Path, base: Path | None = None) -> None:
    reader = load_reader(path, conv_mode="v1", model_base=base)
    load_weights(reader, device="cpu", dtype="float32")


def refused(path: Path, base: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path, base)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 600
    return sentence


def whole(path: Path, **options: Any) -> Path:
    return write(path, SETTINGS, random_state(SETTINGS), **options)


def vicuna(path: Path, **changes: Any) -> Path:
    settings = {**SETTINGS, **changes, "model_type": "llama"}
    state = random_state(settings)
    return write(path, settings, {k: v for k, v in state.items() if "mm_" not in k})


def projector(path: Path) -> Path:
    write(path, SETTINGS, None, tokenizer=None)
    torch.save(random_projector(SETTINGS), path / "mm_projector.bin")
    return path


def adapter(path: Path, width: int = 48) -> Path:
    write(path, SETTINGS, None, tokenizer=None)
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8}))
    layer = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    halves = {f"{layer}A.weight": torch.zeros(4, width), f"{layer}B.weight": torch.zeros(width, 4)}
    save_file(halves, path / "adapter_model.safetensors")
    torch.save(random_projector(SETTINGS), path / "non_lora_trainables.bin")
    return path


def test_base_is_missing(tmp_path: Path):
    assert "holds only a projector and needs its base" in refused(projector(tmp_path / "a"))
    assert "holds a LoRA and needs its base" in refused(adapter(tmp_path / "b"))


def test_base_is_given_for_a_whole_checkpoint(tmp_path: Path, tiny: TinyModel):
    base = vicuna(tmp_path / "base")
    assert "leave model_base out" in refused(whole(tmp_path / "whole"), base)
    assert "leave model_base out" in refused(tiny.path, base)
    with pytest.raises(CheckpointError, match="leave model_base out"):
        llavakit.load(tiny.path, model_base=base).generate("hi")


def test_base_is_a_model_in_hf_format(tmp_path: Path, tiny: TinyModel):
    assert "vision-language model in HF format" in refused(projector(tmp_path / "a"), tiny.path)


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"num_hidden_layers": 3}])
def test_base_of_another_shape(tmp_path: Path, changes: dict):
    base = vicuna(tmp_path / "base", **changes)
    deeper = "num_hidden_layers" in changes
    sentence = refused(projector(tmp_path / "a"), base)
    assert ("has more than the 2 layers" if deeper else "does not fit") in sentence
    assert str(base) in sentence and "model_base=" in sentence
    sentence = refused(adapter(tmp_path / "b"), base)
    assert ("has more than" if deeper else "does not fit its base model") in sentence


def test_base_with_too_few_layers(tmp_path: Path):
    base = vicuna(tmp_path / "base", num_hidden_layers=1)
    assert "lack 9 tensors" in refused(projector(tmp_path / "a"), base)


def test_lora_does_not_fit_its_base(tmp_path: Path):
    sentence = refused(adapter(tmp_path / "lora", width=32), vicuna(tmp_path / "base"))
    assert "does not fit its base model" in sentence and "model_base=" in sentence


def test_adapter_without_weights(tmp_path: Path):
    path = adapter(tmp_path / "lora")
    (path / "adapter_model.safetensors").unlink()
    assert "no weights of the adapter" in refused(path, vicuna(tmp_path / "base"))


@pytest.mark.parametrize("change", [{"use_dora": True}, {"peft_type": "IA3"}])
def test_adapter_of_another_kind(tmp_path: Path, change: dict):
    path = adapter(tmp_path / "lora")
    (path / "adapter_config.json").write_text(json.dumps(change))
    assert "only LORA is known" in refused(path, vicuna(tmp_path / "base"))


def test_vision_tower_is_nowhere(tmp_path: Path):
    settings = {**SETTINGS, "mm_vision_tower": "/no/such/clip"}
    path = write(tmp_path, settings, random_state(settings))
    sentence = refused(path)
    assert "no vision tower at /no/such/clip" in sentence and "mm_vision_tower" in sentence


def test_vision_tower_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.model_info", offline)
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    settings = {**SETTINGS, "mm_vision_tower": "nobody/no-such-clip"}
    path = write(tmp_path, settings, random_state(settings))
    assert "The vision tower nobody/no-such-clip cannot be had" in refused(path)


def test_no_vision_tower_is_named(tmp_path: Path):
    settings = {k: v for k, v in SETTINGS.items() if k != "mm_vision_tower"}
    assert "names no vision tower" in refused(write(tmp_path, settings, random_state(SETTINGS)))


def test_vision_tower_of_another_kind(tmp_path: Path):
    tower = tmp_path / "tower"
    tower.mkdir()
    (tower / "config.json").write_text('{"model_type": "siglip_vision_model"}')
    settings = {**SETTINGS, "mm_vision_tower": str(tower)}
    path = write(tmp_path / "llava", settings, random_state(settings))
    assert "only those with CLIP are supported" in refused(path)


@pytest.mark.parametrize("pickled", [True, False])
@pytest.mark.parametrize("left", [0.6, 0.01, 0])
def test_shard_that_was_cut_off(tmp_path: Path, pickled: bool, left: float):
    path = whole(tmp_path, shards=2, pickled=pickled)
    shard = next(path.glob("*-00002-of-*"))
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * left)])
    sentence = refused(path)
    assert str(shard) in sentence and "damaged or cut off; copy or download it again" in sentence


@pytest.mark.parametrize("pickled", [True, False])
def test_shard_that_is_missing(tmp_path: Path, pickled: bool):
    path = whole(tmp_path, shards=2, pickled=pickled)
    shard = next(path.glob("*-00001-of-*"))
    shard.unlink()
    sentence = refused(path)
    assert f"{shard} is missing" in sentence and "index.json names" in sentence


def test_tensor_that_its_shard_lacks(tmp_path: Path):
    path = whole(tmp_path, shards=2)
    shard = next(path.glob("*-00001-of-*"))
    save_file({"other": torch.zeros(1)}, shard)
    assert f"{shard} lacks" in refused(path)


def test_weights_that_lack_a_tensor(tmp_path: Path):
    state = random_state(SETTINGS)
    del state["model.mm_projector.2.bias"]
    assert "lack 1 tensors" in (sentence := refused(write(tmp_path, SETTINGS, state)))
    assert "linear_2.bias" in sentence


def test_no_weights_at_all(tmp_path: Path):
    assert "holds no weights" in refused(write(tmp_path, SETTINGS, None))


def test_pickle_that_runs_code_is_never_run(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    path = write(tmp_path / "llava", SETTINGS, None)
    torch.save({**random_state(SETTINGS), "x": Evil()}, path / "pytorch_model.bin")
    assert "holds more than tensors" in refused(path)
    assert not (tmp_path / "ran").exists()


def test_configuration_of_other_weights(tmp_path: Path):
    sentence = refused(
        write(tmp_path, {**SETTINGS, "intermediate_size": 64}, random_state(SETTINGS))
    )
    assert "do not fit its configuration" in sentence and "config.json" in sentence


def test_tokenizer_is_missing(tmp_path: Path):
    path = whole(tmp_path, tokenizer=None)
    assert f"{path} has no tokenizer" in refused(path)


def test_tokenizer_is_damaged(tmp_path: Path):
    path = whole(tmp_path)
    data = (path / "tokenizer.model").read_bytes()
    (path / "tokenizer.model").write_bytes(data[:5000])
    assert "cannot be read as a SentencePiece model" in refused(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llava_mpt"}, "'llava_mpt' are not supported"),
        ({"model_type": "llava_rwkv"}, "model_type='llava_rwkv'"),
        ({"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio='anyres_max_9'"),
        ({"mm_projector_type": "ldpnet"}, "mm_projector_type='ldpnet'"),
        ({"mm_vision_select_feature": "slice"}, "mm_vision_select_feature='slice'"),
        ({"mm_patch_merge_type": "maxpool2x2"}, "mm_patch_merge_type='maxpool2x2'"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": "(1x1),...,(6x6)"}, "pinpoints"),
        ({"mm_projector_type": "identity"}, "has no projector"),
        (
            {
                "image_aspect_ratio": "anyres",
                "image_grid_pinpoints": [[56, 112]],
                "mm_patch_merge_type": "spatial",
                "mm_vision_select_feature": "cls_patch",
            },
            "cls_patch",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_setting_that_is_not_known(tmp_path: Path, change: dict, said: str):
    path = write(tmp_path, {**SETTINGS, **change}, random_state(SETTINGS))
    sentence = refused(path)
    assert said in sentence and "config.json" in sentence


def test_configuration_that_is_no_json(tmp_path: Path):
    path = whole(tmp_path)
    (path / "config.json").write_text("{")
    assert "config.json cannot be read" in refused(path)
