"""Weights in 4 and 8 bits on a processor, with a random model whose layers bitsandbytes can split.

What bitsandbytes itself does is for CUDA and for training; its checks are tested here, too.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from torch import nn

import llavakit
from llavakit import Image, Message, SamplingParams
from llavakit.engine.arena import KVArena
from llavakit.engine.attention import Row, attention_of
from llavakit.errors import CheckpointError, MissingDependencyError
from llavakit.kernels.native import SWITCH, kernels
from llavakit.local import LocalBackend
from llavakit.model.loader import load_reader, load_weights
from llavakit.model.packed import PackedLinear
from llavakit.model.quantization import (
    KEPT,
    check_quantized,
    packed_config,
    quantization_config,
)
from tests.tiny import TinyModel, tiny_llava

bnb = pytest.importorskip("bitsandbytes")

GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A random LLaVA of 128 channels: every layer is made of whole blocks of 64 weights."""
    return tiny_llava(tmp_path_factory.mktemp("wide-llava"), hidden=128)


@pytest.fixture(scope="module", params=["4bit", "8bit"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def backend(wide: TinyModel, kind: str) -> Iterator[LocalBackend]:
    backend = llavakit.load(wide.path, quantization=kind, device="cpu", max_concurrency=4)
    assert isinstance(backend, LocalBackend)
    yield backend
    backend.close()


def picture(shade: int) -> PILImage.Image:
    return PILImage.linear_gradient("L").resize((40, 40)).point(lambda x: x ^ shade).convert("RGB")


QUESTIONS = ["What is it?", "hi", "Where?", "And now a longer question than the others."]


def conversation(number: int) -> list[str | PILImage.Image]:
    question = QUESTIONS[number % len(QUESTIONS)]
    return [question] if number % 3 == 2 else [picture(37 * number), question]


def message(number: int) -> Message:
    return Message("user", [p if isinstance(p, str) else Image(p) for p in conversation(number)])


def hf_model(backend: LocalBackend) -> Any:
    return backend._get_engine()._loop.runner.model.hf


def packed_layers(model: Any) -> dict[str, PackedLinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, PackedLinear)}


def test_layers_of_the_language_model_are_packed_and_the_vision_tower_is_not(
    wide: TinyModel, kind: str
):
    model = load_weights(
        load_reader(wide.path), device="cpu", dtype="float32", quantization=kind
    ).hf
    packed = packed_layers(model)
    assert packed.pop("lm_head").bits == 8
    assert {layer.bits for layer in packed.values()} == {int(kind[0])}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            assert (type(layer) is nn.Linear) == name.startswith(KEPT[:2]), name


def logits(model: Any, wide: TinyModel) -> torch.Tensor:
    """Teacher-forced: of every token of a prompt with an image, by the HF modules."""
    inputs = wide.processor(
        images=picture(3),
        text="USER: <image>\nWhat is it? And where? ASSISTANT:",
        return_tensors="pt",
    )
    with torch.inference_mode():
        return model(**inputs).logits[0, 1:].float()


def plain_logits(wide: TinyModel) -> torch.Tensor:
    return logits(wide.model, wide)


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found - right).norm() / right.norm())


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")  # of bitsandbytes before 0.50, about itself
def test_logits_are_as_near_to_fp32_as_those_of_bitsandbytes_in_the_same_bits(
    wide: TinyModel, kind: str
):
    """The yardstick is what transformers gives a user who asks for the same bits."""
    from transformers import AutoModelForImageTextToText

    peer = AutoModelForImageTextToText.from_pretrained(
        wide.path,
        dtype=torch.float32,
        quantization_config=quantization_config(kind, torch.float32),
        device_map={"": "cpu"},
    ).eval()
    for _, layer in peer.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            layer.support_avx512bf16_for_cpu = False
    right = plain_logits(wide)
    # Modules of the HF model and not the engine: merged layers have given up their weights.
    model = AutoModelForImageTextToText.from_pretrained(
        wide.path, dtype=torch.float32, quantization_config=packed_config(kind)
    ).eval()
    ours, theirs = error(logits(model, wide), right), error(logits(peer, wide), right)
    assert 0 < ours < 1.25 * theirs, (ours, theirs)


def test_the_engine_computes_what_the_packed_weights_say(wide: TinyModel, kind: str):
    """Prefill and decode beside HF's modules on the same packed weights."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        wide.path, dtype=torch.float32, quantization_config=packed_config(kind)
    ).eval()
    llava = load_weights(load_reader(wide.path), device="cpu", dtype="float32", quantization=kind)
    assert llava.fused is not None
    ids = torch.arange(5, 45)
    arena = KVArena(llava.layer_devices, 64, llava.kv_heads, llava.head_dim, dtype=torch.float32)
    found = []
    with torch.inference_mode():
        for start, count in ((0, 36), (36, 1), (37, 3)):
            rows = [Row((), 0, start, count)]
            part = ids[start : start + count]
            places = torch.arange(start, start + count)
            hidden = llava.decode(llava.embed(part), places, attention_of(arena, rows))
            found.append(llava.logits(hidden))
        right = model(input_ids=ids[None]).logits[0]
    # Few tokens meet the weights in int8 of their own, many do not: 0.4% a product.
    assert error(torch.cat(found), right) < 0.03


def test_packed_weights_take_the_memory_that_their_bits_say(wide: TinyModel, kind: str):
    model = load_weights(load_reader(wide.path), device="cpu", dtype="float32", quantization=kind)
    assert model.fused is not None
    weights = [
        one
        for layer in model.fused.layers
        for one in (layer.native.qkv, layer.native.out, layer.native.gate_up, layer.native.down)
    ]
    bits = sum(w.data.nbytes for w in weights) * 8 / sum(w.rows * w.columns for w in weights)
    assert bits == {"8bit": 8.5, "4bit": 4.5}[kind]
    # Nothing else holds them: merged layers gave theirs up, and placeholders are empty.
    assert not any(layer.weight.numel() for layer in packed_layers(model.hf).values())


def test_answers_do_not_depend_on_what_runs_beside_them(backend: LocalBackend):
    alone = [backend.generate([message(number)], GREEDY).text for number in range(6)]
    backend._get_engine()._loop.scheduler.forget()
    streams = [backend.stream([message(number)], GREEDY) for number in range(6)]
    together = ["".join(chunk.text for chunk in stream) for stream in streams]
    assert together == alone


def test_without_a_compiler_the_answers_are_nearly_the_same(wide: TinyModel, kind, monkeypatch):
    right = load_weights(load_reader(wide.path), device="cpu", dtype="float32", quantization=kind)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        compiled = right.logits(x)
        monkeypatch.setenv(SWITCH, "0")
        kernels.cache_clear()
        try:
            in_torch = right.logits(x)
        finally:
            monkeypatch.undo()
            kernels.cache_clear()
    assert error(compiled, in_torch) < 0.02


def test_weights_that_are_not_finite_are_no_model(wide: TinyModel, kind: str, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(wide.path, broken)
    file = broken / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("layers.0.mlp.down_proj.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not finite"):
        load_weights(load_reader(broken), device="cpu", dtype="float32", quantization=kind)


def test_processors_need_no_bitsandbytes(wide: TinyModel, kind: str, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    model = load_weights(load_reader(wide.path), device="cpu", dtype="float32", quantization=kind)
    assert packed_layers(model.hf)


def test_unread_vision_layer_is_dropped_and_activations_keep_their_type(backend: LocalBackend):
    model = backend._get_engine()._loop.runner.model
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    assert len(model.hf.model.vision_tower.encoder.layers) == 2


@pytest.mark.parametrize("kind", ["8bit"], indirect=True)
def test_wrongly_quantised_layer_is_named(wide: TinyModel, kind: str):
    model = load_weights(load_reader(wide.path), device="cpu", dtype="float32").hf
    with pytest.raises(CheckpointError, match=r"language_model\.layers\.0.* was not quantised"):
        check_quantized(model, "8bit")
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and not name.startswith(KEPT[1:]):
            model.set_submodule(name, bnb.nn.Linear8bitLt(layer.in_features, layer.out_features))
    with pytest.raises(CheckpointError, match=r"vision_tower.* must not be"):
        check_quantized(model, "8bit")


def test_missing_bitsandbytes_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "llavakit\[quant\]"'):
        quantization_config("4bit", torch.float32)
