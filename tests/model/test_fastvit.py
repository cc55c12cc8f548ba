"""FastVLM's vision tower, FastViT-HD: the features are timm's, and other towers are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

import llavakit
from llavakit.errors import CheckpointError
from llavakit.model.fastvit import FastViT, FastViTConfig, FastViTSizes, own_tower
from llavakit.model.layout import FixedLayout
from llavakit.model.loader import load_reader
from tests.families import FASTVIT, FASTVIT_SIDE, TinyFamily, shake, tiny_family
from tests.model.test_families import picture

SMALL: dict[str, Any] = FASTVIT["model_args"]

# Every 61st feature that timm 1.0.31 computes with the weights and pixels of waves():
# timm.create_model("fastvit_mci3", num_classes=0, **SMALL).forward_features(pixels)
OF_TIMM = [0.0018215, 1.3313113, -0.0101122, -0.1694443, 0.0927697, -0.0059440, -0.0699962]


def small_tower() -> FastViT:
    return FastViT(FastViTConfig(architecture="fastvit_mci3", model_args=SMALL)).eval()


def waves(shape: tuple[int, ...], number: int) -> torch.Tensor:
    """Numbers between -1 and 1 that are the same everywhere."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.37 * steps + number).reshape(shape).float()


def fill(tower: torch.nn.Module) -> None:
    """Give weights and statistics values that depend on their names' order alone."""
    state = tower.state_dict()
    for number, name in enumerate(sorted(state)):
        old = state[name]
        if not old.is_floating_point():
            continue
        new = waves(tuple(old.shape), number)
        if name.endswith("running_var"):
            new = 1 + 0.5 * new
        elif old.dim() < 2 or name.endswith("gamma"):
            new = 0.5 * new
        else:
            new = new * (2 / old[0].numel()) ** 0.5
        old.copy_(new)


def pixels() -> torch.Tensor:
    return (waves((1, 3, 128, 192), 0) + 1) / 2


def test_features_are_those_that_timm_computed():
    tower = small_tower()
    fill(tower.timm_model)
    with torch.inference_mode():
        found = tower(pixels()).last_hidden_state
    assert found.shape == (1, 64, 2, 3)
    assert found.flatten()[::61].tolist() == pytest.approx(OF_TIMM, abs=2e-5)


def test_features_are_those_of_timm_where_it_is_installed():
    try:
        import timm
    except Exception as error:  # its torchvision fails as it likes beside another torch
        pytest.skip(f"timm cannot be imported: {error}")
    peer = timm.create_model("fastvit_mci3", num_classes=0, **SMALL).eval()
    shake(peer)
    tower = small_tower()
    tower.timm_model.load_state_dict(peer.state_dict())
    with torch.inference_mode():
        expected = peer.forward_features(pixels())
        torch.testing.assert_close(tower(pixels()).last_hidden_state, expected)


def test_the_published_size_has_the_published_weights():
    with torch.device("meta"):
        tower = FastViT(
            FastViTConfig(architecture="fastvit_mci3", model_args={"inference_mode": True})
        )
    weights = tower.state_dict()
    assert len(weights) == 628
    assert sum(one.numel() for one in tower.parameters()) == 122_714_208
    shapes = {name.removeprefix("timm_model."): tuple(one.shape) for name, one in weights.items()}
    assert shapes["stages.3.blocks.0.token_mixer.qkv.weight"] == (2304, 768)
    assert shapes["stages.1.downsample.proj.0.reparam_conv.weight"] == (192, 1, 7, 7)
    assert shapes["final_conv.se.fc1.weight"] == (192, 3072, 1, 1)


def test_training_the_rest_of_a_model_leaves_the_towers_statistics_alone():
    tower = small_tower()
    shake(tower)
    with torch.inference_mode():
        before = tower(pixels()).last_hidden_state
        after = tower.train()(pixels()).last_hidden_state
    assert torch.equal(before, after)
    assert torch.equal(before, tower.eval()(pixels()).last_hidden_state)


def test_hidden_states_are_what_the_projector_reads():
    tower = small_tower()
    with torch.inference_mode():
        out = tower(pixels(), output_hidden_states=True)
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state.flatten(2).transpose(1, 2))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinyFamily:
    return tiny_family(tmp_path_factory.mktemp("fastvlm"), "fastvlm")


@pytest.fixture
def copied(made: TinyFamily, tmp_path: Path) -> Path:
    """The small files of the checkpoint; what is wrong with them shows before the weights."""
    for file in made.path.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def declare(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    said = json.loads(file.read_text())
    said["vision_config"] |= changes
    file.write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "vit_base_patch16_224"}, "vit_base_patch16_224"),
        ({"architecture": "fastvit_mci4"}, "fastvit_mci4"),
        ({"model_args": {}}, "form for training"),
        ({"model_args": None}, "form for training"),
        ({"model_args": {**SMALL, "inference_mode": False}}, "form for training"),
        ({"model_args": {**SMALL, "token_mixers": ["attention"] * 5}}, "token_mixers"),
        ({"model_args": {**SMALL, "layers": [1, 2, 3]}}, "layers"),
        ({"model_args": {**SMALL, "embed_dims": 96}}, "embed_dims"),
        ({"model_type": "clip_vision_model"}, "clip_vision_model"),
    ],
)
def test_another_tower_of_timm_is_refused_before_any_weight_is_read(
    changes: dict[str, Any], reason: str, copied: Path
):
    declare(copied, **changes)
    with pytest.raises(CheckpointError, match=reason):
        load_reader(copied)


def prepare(path: Path, **changes: Any) -> None:
    file = path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"crop_size": {"height": 96, "width": 96}}, "multiples of 64"),
        ({"crop_size": {"height": 128, "width": 192}}, "192x128"),
        ({"do_center_crop": False}, "256x128"),
    ],
)
def test_an_image_processor_that_makes_other_views_is_refused(
    changes: dict[str, Any], reason: str, copied: Path
):
    prepare(copied, **changes)
    with pytest.raises(CheckpointError, match=reason):
        load_reader(copied)


@pytest.mark.parametrize("named", ["CLIPImageProcessor", "CLIPImageProcessorFast"])
def test_tokens_are_counted_from_the_views_of_the_processor(named: str, copied: Path):
    prepare(copied, image_processor_type=named)
    assert load_reader(copied).layout == FixedLayout(4)
    prepare(copied, crop_size={"height": 192, "width": 192}, size={"shortest_edge": 192})
    assert load_reader(copied).layout == FixedLayout(9)


def test_the_published_name_of_the_tower_with_its_weights_name_is_known(copied: Path):
    declare(copied, architecture="fastvit_mci3.apple_mclip2_dfndr2b")
    config = load_reader(copied).config
    assert FastViTSizes.of(copied, config.vision_config).stride == 64
    assert config.vision_config.image_size == FASTVIT_SIDE


def test_what_is_left_of_the_configuration_is_as_it_was(copied: Path):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(copied)
    before = config.to_dict()["vision_config"]
    own_tower(copied, config, FASTVIT_SIDE)
    after = config.to_dict()["vision_config"]
    kept = set(FASTVIT) - {"pretrained_cfg"}  # where transformers drops a second num_classes
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}


def test_the_answer_depends_on_the_image(made: TinyFamily):
    backend = llavakit.load(made.path)
    try:
        params = llavakit.SamplingParams(max_tokens=1, temperature=0, logprobs=0)
        asked = [
            [llavakit.Message("user", [llavakit.Image(one), llavakit.Text("?")])]
            for one in (picture(1, 64, 64), PILImage.new("RGB", (64, 64), "red"))
        ]
        first, second = (backend.generate(one, params).logprobs[0].logprob for one in asked)
        assert abs(first - second) > 1e-3
    finally:
        backend.close()
