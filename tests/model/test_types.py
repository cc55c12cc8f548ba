"""bf16 on a processor: how far off it is, and when it is taken unasked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from llavakit.engine.arena import KVArena
from llavakit.engine.attention import Row, attention_of
from llavakit.kernels import products
from llavakit.model.loader import _type_on_processor, load_reader, load_weights
from tests.tiny import TinyModel, tiny_llava


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return tiny_llava(tmp_path_factory.mktemp("wide-llava"), hidden=128)


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.float() - right).norm() / right.norm())


def test_bf16_logits_are_as_near_to_fp32_as_transformers_own_in_bf16(wide: TinyModel):
    """Teacher-forced over a prefill and single tokens; HF's error in bf16 is the yardstick."""
    from transformers import AutoModelForImageTextToText

    ids = torch.arange(5, 65)
    peer = AutoModelForImageTextToText.from_pretrained(wide.path, dtype=torch.bfloat16).eval()
    llava = load_weights(load_reader(wide.path), device="cpu", dtype="bfloat16")
    arena = KVArena(llava.layer_devices, 80, llava.kv_heads, llava.head_dim, dtype=llava.dtype)
    assert arena.keys[0].dtype == torch.bfloat16
    found = []
    with torch.inference_mode():
        right = wide.model(input_ids=ids[None]).logits[0].float()
        theirs = error(peer(input_ids=ids[None]).logits[0], right)
        start = 0
        for count in (40, *[1] * 20):
            places = torch.arange(start, start + count)
            attend = attention_of(arena, [Row((), 0, start, count)])
            hidden = llava.decode(llava.embed(ids[places]), places, attend)
            found.append(llava.logits(hidden))
            start += count
    assert 0 < error(torch.cat(found), right) < 1.1 * theirs


SEVEN_B = SimpleNamespace(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32064
)
GIB = 1 << 30


@pytest.mark.parametrize(
    ("room", "own", "expected"),
    [
        (64 * GIB, False, "float32"),
        (64 * GIB, True, "bfloat16"),
        (32 * GIB, False, "bfloat16"),
        (None, False, "float32"),
    ],
)
def test_bf16_is_taken_where_fp32_does_not_fit_or_the_processor_computes_it(
    room, own, expected, monkeypatch
):
    monkeypatch.setattr(products, "computes_bf16", lambda: own)
    assert _type_on_processor(SEVEN_B, room) == expected


def test_small_models_stay_fp32_whatever_the_processor_computes(tiny: TinyModel, monkeypatch):
    monkeypatch.setattr(products, "computes_bf16", lambda: True)
    text = load_reader(tiny.path).config.text_config
    assert _type_on_processor(text, 8 * GIB) == "float32"
