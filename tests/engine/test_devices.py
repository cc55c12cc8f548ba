"""Layers on several devices, as far as one CPU can show it.

accelerate keeps one layer on the disk and brings it in by a hook, which is what it does with
layers of other GPUs: what must not happen is that the engine goes round the hooks.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llavakit.engine.arena import KVArena
from llavakit.engine.attention import Row, SegmentAttention
from llavakit.engine.config import EngineConfig
from llavakit.engine.engine import Engine
from llavakit.model.decoder import device_of
from llavakit.model.llava import Llava
from llavakit.model.loader import load_reader
from tests.engine.asking import PICTURES, WORDS, ask
from tests.tiny import TinyModel

PARTS = ("embed_tokens", "rotary_emb", "norm", "layers.0", "layers.1")


@pytest.fixture(scope="module")
def spread(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model with its second layer on the disk."""
    from transformers import AutoModelForImageTextToText

    places: dict[str, str] = {f"model.language_model.{part}": "cpu" for part in PARTS}
    places |= {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    places["model.language_model.layers.1"] = "disk"
    folder = tmp_path_factory.mktemp("offload")
    return AutoModelForImageTextToText.from_pretrained(
        tiny.path, dtype=torch.float32, device_map=places, offload_folder=folder
    )


def test_spread_model_is_not_fused_and_computes_where_its_hooks_say(spread: Any) -> None:
    layer = spread.model.language_model.layers[1]
    assert next(layer.parameters()).device.type == "meta"
    assert device_of(layer) == torch.device("cpu")
    llava = Llava(spread)
    assert llava.fused is None
    assert llava.layer_devices == [torch.device("cpu")] * 2


@pytest.mark.parametrize("static", [False, True])
def test_spread_model_answers_as_generate_does(tiny: TinyModel, spread: Any, static: bool) -> None:
    config = EngineConfig(str(tiny.path), static_decode=static)
    engine = Engine(load_reader(tiny.path), config, Llava(spread))
    drawn = ask(engine, WORDS[:3], PICTURES, 12)
    stats = engine.stats()
    engine.close()
    for text, picture, tokens in zip(WORDS[:3], PICTURES, drawn, strict=True):
        assert tokens == tiny.generate([("user", [picture, text])], 12)
    assert stats["eager_steps"] == stats["steps"]
    assert stats["halved_steps"] == 0


def test_arena_of_a_layer_lies_on_that_layers_device() -> None:
    meta, cpu = torch.device("meta"), torch.device("cpu")
    arena = KVArena([cpu, meta], 10, 2, 8, dtype=torch.float32)
    assert [slots.device for slots in arena.keys] == [cpu, meta]
    rows = [Row((), 0, 0, 3), Row((), 5, 2, 1)]
    attend = SegmentAttention(arena, rows)
    for layer, device in enumerate((cpu, meta)):
        query, key, value = (torch.ones(4, heads, 8, device=device) for heads in (4, 2, 2))
        assert attend(layer, query, key, value, 0.3).device == device
