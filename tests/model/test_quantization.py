"""Weights in 4 and 8 bits on a CPU, with a random model whose layers bitsandbytes can split."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from torch import nn

import llavakit
from llavakit import Image, Message, SamplingParams
from llavakit.errors import CheckpointError, MissingDependencyError
from llavakit.local import LocalBackend
from llavakit.model.loader import load_reader, load_weights
from llavakit.model.quantization import (
    KEPT,
    check_quantized,
    quantization_config,
    weight_bytes,
)
from tests.tiny import TinyModel, tiny_llava

bnb = pytest.importorskip("bitsandbytes")

LAYERS = {"4bit": bnb.nn.Linear4bit, "8bit": bnb.nn.Linear8bitLt}
GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A random LLaVA of 128 channels: every layer is made of whole blocks of 64 weights."""
    return tiny_llava(tmp_path_factory.mktemp("wide-llava"), hidden=128)


@pytest.fixture(scope="module", params=["4bit", "8bit"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def quantised(wide: TinyModel, kind: str) -> TinyModel:
    """The same weights as plain transformers quantises them."""
    from transformers import AutoModelForImageTextToText

    reference = TinyModel(wide.path)
    reference.__dict__["model"] = AutoModelForImageTextToText.from_pretrained(
        wide.path,
        dtype=torch.float32,
        quantization_config=quantization_config(kind, torch.float32),
        device_map={"": "cpu"},
    ).eval()
    return reference


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


def test_layers_of_the_language_model_are_quantised_and_no_others(backend: LocalBackend, kind: str):
    for name, layer in hf_model(backend).named_modules():
        if isinstance(layer, nn.Linear):
            expected = nn.Linear if name.startswith(KEPT) else LAYERS[kind]
            assert type(layer) is expected, name


def test_language_layers_take_an_eighth_or_a_quarter_of_the_bytes_of_fp32(
    wide: TinyModel, backend: LocalBackend, kind: str
):
    def layers(model: Any) -> int:
        return sum(
            weight_bytes(layer)
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear) and not name.startswith(KEPT)
        )

    shrunk = layers(wide.model) / layers(hf_model(backend))
    # Scales and tables weigh more in so small a model than in a real one (7.8 and 4.0 there).
    low, high = (5.5, 8.0) if kind == "4bit" else (3.85, 4.0)
    assert low < shrunk < high


def test_greedy_answers_equal_those_of_the_quantised_transformers_model(
    backend: LocalBackend, quantised: TinyModel
):
    tokenizer = quantised.processor.tokenizer
    for number in range(4):
        expected = quantised.generate([("user", conversation(number))], 12)
        completion = backend.generate([message(number)], GREEDY)
        assert completion.usage.completion_tokens == len(expected)
        text = tokenizer.decode(expected, skip_special_tokens=True)
        assert completion.text == text.lstrip()


@pytest.mark.parametrize("kind", ["8bit"], indirect=True)
def test_8_bit_answers_do_not_depend_on_what_runs_beside_them(backend: LocalBackend):
    alone = [backend.generate([message(number)], GREEDY).text for number in range(6)]
    backend._get_engine()._loop.scheduler.forget()
    streams = [backend.stream([message(number)], GREEDY) for number in range(6)]
    together = ["".join(chunk.text for chunk in stream) for stream in streams]
    assert together == alone


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
