"""Original-format checkpoints of every kind, against LLaVA put together by hand."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

import llavakit
from llavakit import Image, Message, SamplingParams
from llavakit.backend import to_request
from llavakit.images import open_picture
from llavakit.local import LocalBackend
from llavakit.model.loader import load_reader
from llavakit.model.original.anyres import AnyresFeatures
from llavakit.prompts.conversation import to_turns
from tests.original import (
    FIXTURES,
    SETTINGS,
    Reference,
    State,
    random_projector,
    random_state,
    write,
)

GREEDY = SamplingParams(temperature=0, max_tokens=12)
GRIDS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
ANYRES = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": GRIDS}


def picture(width: int = 40, height: int = 40, shade: int = 3) -> PILImage.Image:
    made = PILImage.linear_gradient("L").resize((width, height)).point(lambda x: x ^ shade)
    return PILImage.merge("RGB", (made, made.rotate(180), made))


ASKED = [Message("user", [Image(picture(70, 40)), "What is it?"])]
TWICE = [
    Message("user", [Image(picture(40, 90)), "What is it?"]),
    Message("assistant", "An image."),
    Message("user", ["And this", Image(picture(31, 30, 99)), "here?"]),
]


@pytest.fixture
def opened() -> Iterator[list[LocalBackend]]:
    backends: list[LocalBackend] = []
    yield backends
    for backend in backends:
        backend.close()


def answers(
    path: Path,
    reference: Reference,
    opened: list[LocalBackend],
    messages: list[Message],
    **options: Any,
) -> None:
    """Assert that llavakit's greedy answer is the reference's."""
    backend = llavakit.load(path, conv_mode="v1", device="cpu", kv_cache_bytes=4 << 20, **options)
    assert isinstance(backend, LocalBackend)
    opened.append(backend)
    reader = backend._get_reader()
    ids = reader.tokenizer.encode(to_turns(to_request(messages)))
    parts = [part for message in messages for part in message.content if isinstance(part, Image)]
    features = []
    for part in parts:
        opened_picture = open_picture(part.source)
        pixels = reader.preprocess(opened_picture).inputs()["pixel_values"]
        merged = merge(reference, reference.features(pixels), opened_picture.size)
        assert len(merged) == reader.layout.tokens(opened_picture.size)
        features.append(merged)
    expected = reference.greedy(ids, reader.special.image, features, GREEDY.max_tokens)
    completion = backend.generate(messages, GREEDY)
    text = reader.tokenizer.tokenizer.decode(expected, skip_special_tokens=True)
    assert completion.text.strip() == text.strip()
    assert completion.usage.completion_tokens == len(expected)


def merge(reference: Reference, views: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Features of one image, as the original lays them out (the two simple ways of it)."""
    if len(views) == 1:
        return views[0]
    kind = reference.settings.get("mm_patch_merge_type", "flat")
    if kind == "flat":
        return views.flatten(0, 1)
    assert kind == "spatial"
    area = size[0] * size[1]
    scales = [min(width / size[0], height / size[1]) for width, height in GRIDS]
    kept = [min(int(size[0] * scale) * int(size[1] * scale), area) for scale in scales]
    best = max(range(len(GRIDS)), key=lambda at: (kept[at], -GRIDS[at][0] * GRIDS[at][1]))
    width, height = GRIDS[best]
    tiles = views[1:].view(height // 56, width // 56, 4, 4, -1)
    return torch.cat((views[0], tiles.permute(0, 2, 1, 3, 4).flatten(0, 3)))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"mm_projector_type": "linear"},
        {"mm_projector_type": "mlp1x_gelu"},
        {"mm_projector_type": "mlp3x_gelu"},
        {"mm_projector_type": "identity", "hidden_size": 32, "intermediate_size": 64},
        {"mm_vision_select_layer": -1},
        {"mm_vision_select_layer": 1},
        {"mm_vision_select_feature": "cls_patch"},
        {"image_aspect_ratio": "square"},
        {"num_key_value_heads": 2},
        ANYRES,
        {**ANYRES, "mm_patch_merge_type": "spatial"},
        {**ANYRES, "mm_vision_select_feature": "cls_patch", "mm_projector_type": "mlp3x_gelu"},
    ],
    ids=lambda change: "-".join(map(str, change.values()))[:60] or "plain",
)
def test_whole_checkpoint_answers_like_its_parts(tmp_path: Path, opened, change):
    settings = {**SETTINGS, **change}
    state = random_state(settings)
    answers(write(tmp_path, settings, state), Reference(settings, state), opened, TWICE)


@pytest.mark.parametrize(("kind", "text_class"), [("llava", "Llama"), ("llava_mistral", "Mistral")])
def test_the_model_type_of_2023_and_mistral(tmp_path: Path, opened, kind: str, text_class: str):
    settings = {**SETTINGS, "model_type": kind, "sliding_window": None}
    state = random_state(settings)
    path = write(tmp_path, settings, state, shards=3, pickled=kind == "llava")
    answers(path, Reference(settings, state, text_class), opened, ASKED)


def test_settings_that_files_of_early_2023_leave_out(tmp_path: Path, opened):
    settings = {
        k: v for k, v in SETTINGS.items() if k not in ("image_aspect_ratio", "num_key_value_heads")
    }
    for key in ("mm_projector_type", "mm_vision_select_feature", "mm_use_im_patch_token"):
        del settings[key]
    settings |= {"model_type": "llava", "mm_use_im_start_end": True}
    state = random_state({**SETTINGS, "mm_projector_type": "linear"}, rows=1003)
    reference = Reference({**settings, "num_key_value_heads": 4}, state)
    path = write(tmp_path, settings, state)
    answers(path, reference, opened, TWICE)
    reader = load_reader(path, conv_mode="v1")
    turns = to_turns(to_request(TWICE))
    assert reader.tokenizer.render(turns).count("<im_start><image><im_end>\n") == 2
    ids = reader.tokenizer.encode(turns)
    names = reader.tokenizer.tokenizer.convert_ids_to_tokens([1000, 1001, 1002, 1003])
    assert names == ["<im_patch>", "<im_start>", "<im_end>", "<image>"]
    at = ids.index(1003)
    assert (ids[at - 1], ids[at + 1]) == (1001, 1002)
    assert 1000 not in ids


def test_legacy_false_puts_a_space_before_what_ends_a_picture(tmp_path: Path):
    settings = {**SETTINGS, "mm_use_im_start_end": True}
    path = write(
        tmp_path, settings, random_state(settings, 1002), tokenizer=FIXTURES / "tok-legacy-False"
    )
    prompts = load_reader(path, conv_mode="v1").tokenizer
    ids = prompts.encode(to_turns(to_request(ASKED)))
    tokens = prompts.tokenizer.convert_ids_to_tokens(ids)
    at = tokens.index("<image>")
    assert tokens[at - 1 : at + 3] == ["<im_start>", "<image>", "▁", "<im_end>"]


def lora(
    path: Path, state: State, settings: dict[str, Any], *, pickled: bool, **config: Any
) -> State:
    """Write an adapter beside ``config.json``; gives the merged weights."""
    write(path, settings, None, tokenizer=None)
    rank, alpha = 4, 8
    generator = torch.Generator().manual_seed(7)
    adapter, merged = {}, dict(state)
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    for name, weight in state.items():
        if "_proj" not in name or "mm_" in name:
            continue
        layer = name.removesuffix(".weight")
        down = torch.randn(rank, weight.shape[1], generator=generator) * 0.1
        up = torch.randn(weight.shape[0], rank, generator=generator) * 0.1
        adapter[f"base_model.model.{layer}.lora_A.weight"] = down
        adapter[f"base_model.model.{layer}.lora_B.weight"] = up
        merged[name] = weight + scale * up @ down
    projector = random_projector(settings, seed=5)
    extras = {f"base_model.model.{name}": one for name, one in projector.items()}
    from safetensors.torch import save_file

    if pickled:
        torch.save(adapter, path / "adapter_model.bin")
    else:
        save_file(adapter, path / "adapter_model.safetensors")
    torch.save(extras, path / "non_lora_trainables.bin")
    description = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, **config}
    (path / "adapter_config.json").write_text(json.dumps(description))
    return merged | projector


@pytest.mark.parametrize(("pickled", "config"), [(True, {}), (False, {"use_rslora": True})])
def test_lora_on_its_base(tmp_path: Path, opened, pickled: bool, config: dict):
    state = random_state(SETTINGS)
    language = {name: one for name, one in state.items() if "mm_" not in name}
    base = write(
        tmp_path / "vicuna", {**SETTINGS, "model_type": "llama"}, language, shards=2, pickled=True
    )
    merged = lora(tmp_path / "llava-lora", state, SETTINGS, pickled=pickled, **config)
    reference = Reference(SETTINGS, merged)
    answers(tmp_path / "llava-lora", reference, opened, ASKED, model_base=base)


def test_lora_on_a_whole_llava(tmp_path: Path, opened):
    state = random_state(SETTINGS)
    base = write(tmp_path / "llava-v1.5", SETTINGS, state)
    merged = lora(tmp_path / "task", state, SETTINGS, pickled=False)
    answers(tmp_path / "task", Reference(SETTINGS, merged), opened, ASKED, model_base=base)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_lora_is_merged_in_the_type_of_the_base_as_by_peft(tmp_path: Path, kind: torch.dtype):
    peft = pytest.importorskip("peft")
    from safetensors.torch import load_file

    from llavakit.model.original.lora import merge_lora
    from llavakit.model.original.tensors import Stored

    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(48, 40, bias=False, dtype=kind)})
    model["q_proj"].weight.data.normal_()
    weight = model["q_proj"].weight.detach().clone()
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors")
    theirs = adapted.merge_and_unload()["q_proj"].weight
    tensors = {"q_proj.weight": Stored(tuple(weight.shape), lambda: weight)}
    ours = merge_lora(tensors, tmp_path)["q_proj.weight"].read()
    assert ours.dtype == kind
    assert torch.equal(ours != weight, theirs != weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-6 if kind == torch.float32 else 0, atol=0)


def test_projector_alone_on_its_base(tmp_path: Path, opened):
    state = random_state(SETTINGS)
    language = {name: one for name, one in state.items() if "mm_" not in name}
    base = write(tmp_path / "vicuna", {"model_type": "llama", "hidden_size": 48}, language)
    settings = {**SETTINGS, "mm_projector_type": "linear"}
    projector = random_projector(settings, seed=3)
    path = write(tmp_path / "pretrain", settings, None, tokenizer=None)
    torch.save(projector, path / "mm_projector.bin")
    answers(path, Reference(settings, language | projector), opened, ASKED, model_base=base)


def test_anyres_counts_rows_as_the_original_does():
    features = AnyresFeatures(tuple(map(tuple, GRIDS)), 56, 4, "spatial_unpad")
    # transformers rounds 2.9999999999999996 up to 3, and has one column less.
    assert features.margins((47, 188)) == (0, 1)
    assert features.tokens((47, 188)) == 16 + 12 * (2 + 1)
    assert features.tokens((40, 40)) == 16 + 4 * (4 + 1)


def test_context_is_the_real_one_and_rows_are_blocks(tmp_path: Path):
    reader = load_reader(write(tmp_path, SETTINGS, random_state(SETTINGS)), conv_mode="v1")
    assert reader.context_length == 4096
    assert reader.config.text_config.vocab_size == 1024
    assert reader.special.image == 1000
    assert reader.special.forbidden == tuple(range(1000, 1024))


def test_revision_changes_with_the_base(tmp_path: Path):
    state = random_state(SETTINGS)
    language = {name: one for name, one in state.items() if "mm_" not in name}
    base = write(tmp_path / "vicuna", {"model_type": "llama"}, language)
    path = write(tmp_path / "pretrain", SETTINGS, None, tokenizer=None)
    torch.save(random_projector(SETTINGS), path / "mm_projector.bin")
    first = load_reader(path, conv_mode="v1", model_base=base).revision
    write(base, {"model_type": "llama"}, {**language, "extra": torch.zeros(1)})
    assert load_reader(path, conv_mode="v1", model_base=base).revision != first


def test_special_tokens_typed_by_a_user_are_plain_text(tmp_path: Path):
    prompts = load_reader(
        write(tmp_path, SETTINGS, random_state(SETTINGS)), conv_mode="v1"
    ).tokenizer
    ids = prompts.encode(to_turns(to_request("say </s> or <image> now")))
    assert ids.count(2) == 0 and ids.count(1000) == 0
    text = prompts.tokenizer.decode(ids, skip_special_tokens=True)
    assert "say </s> or <image> now" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("llava-v1.6-34b/checkpoint-20", "chatml_direct"),
        ("models--liuhaotian--llava-v1.5-7b/snapshots/4481d270cc", "llava_v1"),
    ],
)
def test_the_name_tells_the_template(tmp_path: Path, caplog, name: str, expected: str):
    path = write(tmp_path / name, SETTINGS, random_state(SETTINGS))
    by_name, asked = load_reader(path), load_reader(path, conv_mode=expected)
    assert by_name.tokenizer.template == asked.tokenizer.template
    assert not caplog.records


def test_conv_mode_overrides_the_name_with_a_warning(tmp_path: Path, caplog):
    path = write(tmp_path / "llava-v1.5-7b", SETTINGS, random_state(SETTINGS))
    load_reader(path, conv_mode="plain")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "implies conv_mode='llava_v1', but conv_mode='plain' is taken" in record.message


def test_a_name_that_tells_nothing_follows_the_original_with_a_warning(tmp_path: Path, caplog):
    path = write(tmp_path / "my-finetune", SETTINGS, random_state(SETTINGS))
    assert load_reader(path).tokenizer.stop_strings == ("###",)
    assert "my-finetune implies no conversation template" in caplog.records[0].message


@pytest.mark.parametrize("place", ["beside", "above", "absolute"])
def test_where_the_vision_tower_is_looked_for(tmp_path: Path, place: str):
    from shutil import copytree

    from tests.original import CLIP

    names = {"beside": "tower", "above": "towers/clip", "absolute": str(tmp_path / "elsewhere")}
    places = {"beside": "a/b/llava/tower", "above": "a/towers/clip", "absolute": "elsewhere"}
    copytree(CLIP, tmp_path / places[place])
    settings = {**SETTINGS, "mm_vision_tower": names[place]}
    path = write(tmp_path / "a/b/llava", settings, random_state(settings))
    assert load_reader(path, conv_mode="v1").config.vision_config.image_size == 56


def test_a_checkpoint_that_holds_its_tower_needs_no_other_file(tmp_path: Path):
    settings = {**SETTINGS, "mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    inside = {"model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias": torch.zeros(1024)}
    path = write(tmp_path, settings, random_state(settings) | inside)
    reader = load_reader(path, conv_mode="v1")  # no network in tests
    picture_of = reader.preprocess(open_picture(picture(50, 30))).inputs()["pixel_values"]
    assert picture_of.shape == (1, 3, 336, 336)
    assert reader.layout.tokens((50, 30)) == 576


def test_device_map_of_accelerate(tmp_path: Path, opened):
    state = random_state(SETTINGS)
    path = write(tmp_path, SETTINGS, state)
    answers(path, Reference(SETTINGS, state), opened, ASKED, device_map="auto")


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_quantised_while_it_is_read(tmp_path: Path, opened, kind: str):
    pytest.importorskip("bitsandbytes")
    settings = {**SETTINGS, "hidden_size": 64, "intermediate_size": 128}
    path = write(tmp_path, settings, random_state(settings), shards=2, pickled=True)
    backend = llavakit.load(
        path, conv_mode="v1", device="cpu", quantization=kind, kv_cache_bytes=4 << 20
    )
    opened.append(backend)
    assert backend.generate(ASKED, GREEDY).usage.completion_tokens > 0  # checked in load_weights
