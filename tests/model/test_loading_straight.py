"""Weights that go to the device as they are read, as far as it shows without a GPU.

The processor takes the GPU's way here, and the meta device shows what main memory holds of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llavakit.model import loader
from llavakit.model.llava import Llava
from llavakit.model.loader import load_reader, load_weights
from llavakit.model.reader import Reader
from tests.original import FIXTURES
from tests.tiny import TinyModel

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

V15 = FIXTURES / "models" / "llava-v1.5-tiny"


@pytest.fixture(scope="module")
def adapter(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    path = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=3, target_modules=r".*language_model.*\.q_proj")
    model = get_peft_model(load_reader(tiny.path).build({"dtype": torch.float32}), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    return path


@pytest.fixture(params=["hf", "original", "adapter"])
def reader(request: pytest.FixtureRequest, tiny: TinyModel) -> Reader:
    if request.param == "adapter":
        return load_reader(request.getfixturevalue("adapter"), model_base=tiny.path)
    return load_reader(tiny.path if request.param == "hf" else V15, name="llava-v1.5")


def test_only_gpus_are_read_to_straight() -> None:
    kinds = ("cuda", "cuda:1", "cpu", "mps", "meta")
    found = [loader.reads_straight(torch.device(kind)) for kind in kinds]
    assert found == [True, True, False, False, False]


def test_weights_are_the_same_and_no_module_is_wrapped(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = load_weights(reader, device="cpu", dtype="float32").hf.state_dict()
    monkeypatch.setattr(loader, "reads_straight", lambda place: True)
    seen = load_weights(reader, device="cpu", dtype="float32")
    assert seen.fused is not None
    assert not any(hasattr(module, "_hf_hook") for module in seen.hf.modules())
    found = seen.hf.state_dict()
    assert found.keys() == moved.keys()
    assert all(torch.equal(found[name], weight) for name, weight in moved.items())
    buffers = {name: buffer.device.type for name, buffer in seen.hf.named_buffers()}
    assert set(buffers.values()) <= {"cpu"}, "also those that are in no file"


class Unmade:
    """In place of the engine's view of a model, which computes a table where the weights are."""

    def __init__(self, hf: Any) -> None:
        self.hf = hf


@pytest.mark.parametrize("straightly", [True, False])
def test_a_tensor_is_made_on_the_device_and_nowhere_else(
    straightly: bool, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``from_pretrained`` is asked for, and that nothing is moved afterwards."""
    asked: list[dict[str, Any]] = []
    reader = load_reader(tiny.path)
    build = reader.build
    object.__setattr__(reader, "build", lambda options: asked.append(options) or build(options))
    monkeypatch.setattr(loader, "reads_straight", lambda place: straightly)
    monkeypatch.setattr("llavakit.model.llava.Llava", Unmade)
    moved: list[Any] = []
    to = torch.nn.Module.to
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda self, *a, **k: moved.append(a) or to(self, *a, **k)
    )
    model = load_weights(reader, device="meta", dtype="bfloat16")
    weights = [*model.hf.parameters(), *model.hf.buffers()]
    assert {weight.device.type for weight in weights} == {"meta"}
    meta = torch.device("meta")
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    assert asked == [options | ({"device_map": {"": meta}} if straightly else {})]
    assert moved == ([] if straightly else [(meta,)])


def test_hooks_are_taken_away_where_a_version_puts_them(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    reader = load_reader(tiny.path)
    build = reader.build

    def hooked(options: dict[str, Any]) -> Any:
        model = build(options)
        for layer in model.model.language_model.layers:
            add_hook_to_module(layer, AlignDevicesHook(torch.device("cpu")))
        assert Llava(model).fused is None
        return model

    object.__setattr__(reader, "build", hooked)
    monkeypatch.setattr(loader, "reads_straight", lambda place: True)
    assert load_weights(reader, device="cpu", dtype="float32").fused is not None


def test_memory_is_not_taken_in_one_block_while_it_is_read(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import modeling_utils

    taken: list[Any] = []
    monkeypatch.setattr(modeling_utils, "caching_allocator_warmup", lambda *a, **k: taken.append(a))
    before = modeling_utils.caching_allocator_warmup
    monkeypatch.setattr(loader, "reads_straight", lambda place: True)
    load_weights(load_reader(tiny.path), device="cpu", dtype="float32")
    assert taken == [] and modeling_utils.caching_allocator_warmup is before
