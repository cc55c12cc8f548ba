"""FastVLM as Apple published it: its names, its prompt, and its images, padded in black."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

import llavakit
from llavakit import Image, Message, SamplingParams, Text
from llavakit.errors import CheckpointError
from llavakit.model.loader import load_reader
from llavakit.model.original import fastvit
from llavakit.prompts.conversation import Turn
from tests.families import FASTVIT, FASTVIT_SIDE, TinyFamily, tiny_family
from tests.model.test_families import picture

TOWER = f"mobileclip_l_{FASTVIT_SIDE}"

# What Apple's FastViT (mci.py) calls the modules of a tower with SMALL's blocks, in its order:
# FastViT(layers=[1, 2, 1, 1, 2], ..., inference_mode=True).state_dict()
_BLOCKS = {0: 1, 2: 2, 4: 1, 7: 1, 10: 2}
_BOTH = ("weight", "bias")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def apple_names() -> Iterator[str]:
    """Yield the names that Apple's code gave to the weights of such a tower."""
    for number in range(3):
        yield from (f"patch_embed.{number}.reparam_conv.{kind}" for kind in _BOTH)
    for number in range(11):
        at = f"network.{number}"
        if number in _BLOCKS:
            for block in range(_BLOCKS[number]):
                yield from _block(f"{at}.{block}", attends=number > 6)
        elif number in (6, 9):
            yield from (f"{at}.reparam_conv.{kind}" for kind in _BOTH)
        else:
            for part in ("proj.0.lkb_reparam", "proj.1.reparam_conv"):
                yield from (f"{at}.{part}.{kind}" for kind in _BOTH)
    for part in ("se.reduce", "se.expand", "reparam_conv"):
        yield from (f"conv_exp.{part}.{kind}" for kind in _BOTH)


def _block(at: str, *, attends: bool) -> Iterator[str]:
    if attends:
        yield from (f"{at}.layer_scale_1", f"{at}.layer_scale_2", f"{at}.token_mixer.qkv.weight")
        yield from (
            f"{at}.{part}.{kind}" for part in ("norm", "token_mixer.proj") for kind in _BOTH
        )
    else:
        yield f"{at}.layer_scale"
        yield from (f"{at}.token_mixer.reparam_conv.{kind}" for kind in _BOTH)
    yield f"{at}.convffn.conv.conv.weight"
    yield from (f"{at}.convffn.conv.bn.{kind}" for kind in (*_BOTH, *_STATISTICS))
    yield from (f"{at}.convffn.{part}.{kind}" for part in ("fc1", "fc2") for kind in _BOTH)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tower of a ``mobileclip_l`` be a small one: all of Apple's have one size."""
    monkeypatch.setattr(fastvit, "MODEL_ARGS", FASTVIT["model_args"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinyFamily:
    return tiny_family(tmp_path_factory.mktemp("fastvlm"), "fastvlm")


def published(path: Path, made: TinyFamily, **changes: Any) -> Path:
    """Write the same model in Apple's layout, with settings as in its config.json."""
    weights = load_file(made.path / "model.safetensors")
    ours = {fastvit.renamed(fastvit.INSIDE + name): name for name in apple_names()}
    tower, projector = "model.vision_tower.", "model.multi_modal_projector."
    state = {f"{fastvit.INSIDE}head.proj": torch.zeros(64, 8)}
    for name, one in weights.items():
        if name.startswith(tower):
            name = fastvit.INSIDE + ours.pop(name.removeprefix(tower))
        elif name.startswith(projector):
            layer, _, kind = name.removeprefix(projector).partition(".")
            name = f"model.mm_projector.{ {'linear_1': 0, 'linear_2': 2}[layer] }.{kind}"
        state[name.replace("model.language_model.", "model.")] = one.clone()
    assert not ours, "Apple's names that no weight has"
    text = json.loads((made.path / "config.json").read_text())["text_config"]
    settings = {
        **text,
        "model_type": "llava_qwen2",
        "architectures": ["LlavaQwen2ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "llava_qwen.LlavaQwen2ForCausalLM"},
        "image_aspect_ratio": "pad",
        "mm_hidden_size": FASTVIT["hidden_size"],
        "mm_patch_merge_type": "flat",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": TOWER,
        "unfreeze_mm_vision_tower": True,
        **changes,
    }
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings))
    (path / "llava_qwen.py").write_text("raise SystemExit('it was run')")
    for file in made.path.glob("tokenizer*"):
        shutil.copy(file, path)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_each_of_apples_names_is_one_weight_of_the_tower(made: TinyFamily):
    names = list(apple_names())
    assert len(names) == len(set(names)) == 135
    found = {fastvit.renamed(fastvit.INSIDE + name) for name in names}
    inside = "model.vision_tower."
    ours = {one for one in load_file(made.path / "model.safetensors") if one.startswith(inside)}
    assert found == {one.removeprefix(inside) for one in ours}
    assert fastvit.renamed(f"{fastvit.INSIDE}head.proj") is None
    assert fastvit.renamed(f"{fastvit.INSIDE}network.11.0.layer_scale") is None


def test_answers_are_those_of_the_same_weights_in_hf_format(
    made: TinyFamily, small: None, tmp_path: Path
):
    path = published(tmp_path / "FastVLM-0.5B", made)
    square = picture(1, 90, 90)
    backend = llavakit.load(path)
    try:
        said = [Message("user", [Image(square), Text("What is it?")])]
        params = SamplingParams(max_tokens=12, temperature=0)
        completion = backend.generate(said, params)
        expected = made.generate([("user", [square, "What is it?"])], 12)
        text = made.processor.tokenizer.decode(expected, skip_special_tokens=True)
        assert completion.text.strip() == text.strip()
        assert completion.usage.prompt_tokens == backend.count_tokens(said)
    finally:
        backend.close()


def test_prompt_and_pixels_are_those_it_was_trained_with(
    made: TinyFamily, small: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    reader = load_reader(published(tmp_path / "any-v1-name", made, vision_config={}))
    assert reader.tokenizer.render([Turn("user", (Image("1.png"), Text("What?")))]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "template" not in caplog.text
    white = PILImage.new("RGB", (256, 128), "white")
    pixels = reader.preprocess.processor(images=[white], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 128, 128)
    assert float(pixels[..., :24, :].max()) == 0 and float(pixels[..., 40:88, :].min()) == 1
    assert reader.layout.tokens((256, 128)) == 4


def test_an_export_is_read_as_the_original_is(made: TinyFamily, small: None, tmp_path: Path):
    from llavakit.model.export import export

    path = published(tmp_path / "FastVLM-0.5B", made)
    out = export(str(path), tmp_path / "out")
    asked = [Message("user", [Image(picture(2, 120, 60)), Text("What is it?")])]
    params = SamplingParams(max_tokens=8, temperature=0)
    found = []
    for one in (path, out):
        backend = llavakit.load(one)
        found.append(backend.generate(asked, params).text)
        backend.close()
    assert found[0] == found[1]
    said = json.loads((Path(out) / "config.json").read_text())
    assert said["model_type"] == "fast_vlm"
    assert said["architectures"] == ["FastVlmForConditionalGeneration"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mm_vision_tower": "mobileclip_s_512"}, "mobileclip_s_512"),
        ({"mm_vision_tower": "mobileclip_l_1000"}, "multiples of 64"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[128, 256]]}, "anyres"),
        ({"vision_config": {"hidden_size": 1024}}, "fastvlm-0.5b"),
    ],
)
def test_what_is_not_known_of_it_is_refused_by_name(
    changes: dict[str, Any], reason: str, made: TinyFamily, small: None, tmp_path: Path
):
    path = published(tmp_path / "m", made, **changes)
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=reason):
        load_reader(path)


def test_weights_without_the_tower_are_refused_by_what_they_lack(
    made: TinyFamily, small: None, tmp_path: Path
):
    path = published(tmp_path / "m", made)
    state = load_file(path / "model.safetensors")
    kept = {name: one for name, one in state.items() if not name.startswith(fastvit.INSIDE)}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack.*vision_tower\.timm_model"):
        load_reader(path).build({"dtype": torch.float32})
