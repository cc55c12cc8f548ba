"""Checkpoints that are packed in their files: the same bits and answers as packed at load.

And what is damaged, or asked for as something else, is refused with one sentence.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
)
from typer.testing import CliRunner

import llavakit
from llavakit import Image, Message, SamplingParams
from llavakit.cli.app import app
from llavakit.demo import checkpoint_path
from llavakit.errors import CheckpointError, ParameterError
from llavakit.kernels.packing import pack
from llavakit.model import export as module
from llavakit.model.export import export
from llavakit.model.loader import load_reader, load_weights
from llavakit.model.packed import METHOD, finish, packed_layers
from llavakit.model.packed_checkpoint import DATA, SCALES, save_aligned
from llavakit.model.quantization import packed_config
from tests.families import FAMILIES, tiny_family
from tests.original import FIXTURES, SETTINGS, random_state, write
from tests.tiny import TinyModel, tiny_llava

GREEDY = SamplingParams(temperature=0, max_tokens=12, logprobs=0)
MODELS = FIXTURES / "models"
V15, V16 = MODELS / "llava-v1.5-tiny", MODELS / "llava-v1.6-vicuna-tiny"
LAYER = "model.language_model.layers.0.mlp.down_proj"
KINDS = ["4bit", "8bit"]


def picture(shade: int = 5) -> PILImage.Image:
    return PILImage.linear_gradient("L").resize((40, 30)).point(lambda x: x ^ shade).convert("RGB")


def built(path: Path, kind: Any, **options: Any) -> Any:
    """The HF model with packed layers, before a decoder merges them."""
    config = packed_config(kind)
    model = load_reader(path, **options).build(
        {"dtype": torch.float32, "quantization_config": config}
    )
    finish(model)
    return model


def assert_same_weights(found: Any, right: Any) -> None:
    """Bit for bit: packed layers, and all that is not packed."""
    one, other = packed_layers(found), packed_layers(right)
    assert list(one) == list(other) and one
    for name, layer in one.items():
        a, b = layer.packed, other[name].packed
        assert (a.rows, a.columns, a.bits) == (b.rows, b.columns, b.bits)
        assert torch.equal(a.data, b.data) and torch.equal(a.scales, b.scales), name
    mine, theirs = found.state_dict(), right.state_dict()
    assert set(mine) == set(theirs)
    for name, tensor in mine.items():
        if name.removesuffix(".weight") not in one:
            assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def answers(path: Path, **options: Any) -> list[tuple[str, list[float]]]:
    backend = llavakit.load(path, device="cpu", kv_cache_bytes=4 << 20, **options)
    asked = [
        [Message("user", "Hello, who are you?")],
        [Message("user", [Image(picture()), "What is shown?"])],
        [Message("user", [Image(picture(77)), "And here, in many more words than before?"])],
    ]
    found = [backend.generate(messages, GREEDY) for messages in asked]
    backend.close()
    return [(one.text, [token.logprob for token in one.logprobs]) for one in found]


def families() -> list[Any]:
    """Every family in one width, the next one in the other; those that are alone also in both."""
    return [
        pytest.param(family, kind, marks=[] if usual else pytest.mark.slow)
        for number, family in enumerate(FAMILIES)
        for kind in KINDS
        for usual in (kind == KINDS[number % 2] or family in ALONE,)
    ]


ALONE = ("interleave", "onevision")
"""No other family has tied embeddings, or this class of transformers."""


@pytest.mark.parametrize(("family", "kind"), families())
def test_every_family_is_the_model_that_is_packed_at_load(family: str, kind: Any, tmp_path: Path):
    path = tiny_family(tmp_path / "source", family).path
    out = export(path, tmp_path / "out", quantize=kind)
    assert_same_weights(built(out, kind), built(path, kind))
    assert answers(out) == answers(path, quantization=kind)


@pytest.mark.parametrize("path", [V15, V16], ids=["v1.5", "v1.6"])
def test_the_originals_format_is_packed_as_it_is_at_load(path: Path, tmp_path: Path):
    out = export(path, tmp_path / "out", quantize="4bit")
    assert_same_weights(built(out, "4bit"), built(path, "4bit"))
    # The words of random models differ between tokenizers; how likely each is tells them apart.
    right = [chances for _, chances in answers(path, quantization="4bit")]
    assert [chances for _, chances in answers(out)] == [pytest.approx(c, abs=1e-4) for c in right]


def test_a_projector_of_the_originals_is_put_on_its_base(tmp_path: Path):
    base, path = MODELS / "vicuna-tiny", MODELS / "llava-v1.5-tiny-pretrain"
    out = export(path, tmp_path / "out", model_base=base, quantize="8bit")
    assert_same_weights(built(out, "8bit"), built(path, "8bit", model_base=base))


def test_the_demo_model_answers_as_packed_at_load(tmp_path: Path):
    path = checkpoint_path()
    out = export("demo", tmp_path / "out", quantize="4bit")
    assert_same_weights(built(out, "4bit"), built(path, "4bit"))
    assert answers(out) == answers(path, quantization="4bit")
    # Its numbers have 16 bits, and keep them in the file.
    with safe_open(out / "model.safetensors", "pt") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert torch.float32 not in kinds


def test_another_type_for_what_is_not_packed(tiny: TinyModel, tmp_path: Path):
    out = export(tiny.path, tmp_path / "out", quantize="4bit", dtype="bfloat16")
    tensors = load_file(out / "model.safetensors")
    assert {one.dtype for one in tensors.values()} == {torch.uint8, torch.float16, torch.bfloat16}
    found, right = packed_layers(built(out, "4bit")), packed_layers(built(tiny.path, "4bit"))
    assert all(torch.equal(one.packed.data, right[name].packed.data) for name, one in found.items())


@pytest.fixture(scope="module")
def adapter(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by PEFT: halves of random numbers, another projector and other embeddings."""
    from peft import LoraConfig, get_peft_model

    path = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    config = LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=r".*language_model.*\.(q_proj|down_proj)",
        modules_to_save=["multi_modal_projector"],
    )
    model = get_peft_model(load_reader(tiny.path).build({"dtype": torch.float32}), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    return path


ADAPTED = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@ADAPTED
def test_an_adapter_is_merged_before_its_base_is_packed(
    adapter: Path, tiny: TinyModel, tmp_path: Path
):
    out = export(adapter, tmp_path / "out", model_base=tiny.path, quantize="4bit")
    whole = export(adapter, tmp_path / "whole", model_base=tiny.path, dtype="float32")
    assert_same_weights(built(out, "4bit"), built(whole, "4bit"))
    assert answers(out) == answers(whole, quantization="4bit")


@ADAPTED
def test_an_adapter_that_does_not_fit_is_refused(adapter: Path, tmp_path: Path):
    wide = tiny_llava(tmp_path / "wide", hidden=64)
    with pytest.raises(CheckpointError, match="does not fit its base model"):
        export(adapter, tmp_path / "out", model_base=wide.path, quantize="4bit")
    assert [one.name for one in tmp_path.iterdir()] == ["wide"]


@ADAPTED
def test_an_adapter_lies_beside_a_packed_base(adapter: Path, tiny: TinyModel, tmp_path: Path):
    out = export(tiny.path, tmp_path / "out", quantize="8bit")
    found = answers(adapter, model_base=out)
    assert found == answers(adapter, model_base=tiny.path, quantization="8bit")
    with pytest.raises(CheckpointError, match="cannot be trained, merged or packed again"):
        export(adapter, tmp_path / "merged", model_base=out)
    with pytest.raises(CheckpointError, match="is packed already"):
        export(adapter, tmp_path / "again", model_base=out, quantize="8bit")


def test_shards_are_read_as_one_file(tiny: TinyModel, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 20_000)
    out = export(tiny.path, tmp_path / "out", quantize="4bit")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2 and {file.name for file in out.glob("*.safetensors")} == files
    assert_same_weights(built(out, "4bit"), built(tiny.path, "4bit"))
    (out / max(files)).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        loaded(out)


def loaded(path: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {"device": "cpu", "dtype": "auto", **options}
    return load_weights(load_reader(path), **settings)


def mapped_file(tensor: torch.Tensor) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return line.split(maxsplit=5)[-1]
    raise AssertionError("no mapping holds the tensor")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings are read from Linux")
def test_weights_are_used_where_they_lie_in_the_file(packed: Path):
    """At cache lines; what is merged into larger matrices lets go of its pages of the file."""
    layers = packed_layers(built(packed, "4bit"))
    for layer in layers.values():
        assert layer.packed.data.data_ptr() % 64 == 0
        assert mapped_file(layer.packed.data) == str(packed / "model.safetensors")
    right = layers[LAYER].packed.data.clone()
    layers[LAYER].give_up()
    assert layers[LAYER].empty
    assert torch.equal(built(packed, "4bit").get_submodule(LAYER).packed.data, right)


def test_the_writers_files_are_those_that_safetensors_reads(tmp_path: Path):
    tensors = {
        "a.weight": torch.randn(3, 5),
        "b.weight": torch.randn(7).bfloat16(),
        "c.ids": torch.arange(3),
        "scalar": torch.tensor(2.0),
        f"d.{DATA}": torch.arange(64, dtype=torch.uint8).view(2, 32),
        f"d.{SCALES}": torch.randn(16).half(),
        "none": torch.empty(0, 4),
    }
    save_aligned(tensors, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


@pytest.fixture(scope="module")
def packed(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny.path, tmp_path_factory.mktemp("packed") / "out", quantize="4bit")


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copied"))


def test_it_stands_alone_and_says_what_it_is(packed: Path):
    said = json.loads((packed / "config.json").read_text())["quantization_config"]
    assert said == {
        "quant_method": "llavakit",
        "format_version": 1,
        "bits": 4,
        "head_bits": 8,
        "group_size": 32,
        "panel_rows": 16,
    }
    assert loaded(packed).hf.lm_head.bits == 8
    assert loaded(packed, quantization="4bit").dtype == torch.float32
    assert loaded(packed, dtype="bfloat16").dtype == torch.bfloat16
    assert loaded(packed, device="auto", dtype="float16").dtype == torch.float16


def test_transformers_alone_refuses_it(packed: Path, monkeypatch: pytest.MonkeyPatch):
    """As in a process that does not know llavakit."""
    for register in (AUTO_QUANTIZER_MAPPING, AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(register, METHOD)
    with pytest.raises(RuntimeError, match="mismatched_sizes"):
        AutoModelForImageTextToText.from_pretrained(packed)


def test_loading_says_nothing(packed: Path, caplog, capfd):
    with caplog.at_level(logging.WARNING):
        loaded(packed)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantization": "8bit"}, r"is packed \(4bit\) and cannot be loaded in .*'8bit'"),
        ({"device": "cuda"}, r"for a processor and cannot be loaded with device='cuda'"),
        ({"device_map": "auto"}, r"cannot be loaded with device_map='auto'"),
    ],
)
def test_what_it_cannot_be_loaded_as(packed: Path, options: dict, words: str):
    with pytest.raises(ParameterError, match=words):
        loaded(packed, **options)


def test_it_is_neither_packed_again_nor_trained(packed: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="packed already"):
        export(packed, tmp_path / "out", quantize="4bit")
    with pytest.raises(CheckpointError, match="in HF format already"):
        export(packed, tmp_path / "out")
    with pytest.raises(CheckpointError, match="cannot be trained"):
        load_reader(packed).build({"dtype": torch.float32})
    assert not (tmp_path / "out").exists()


def described(**change: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        file = path / "config.json"
        settings = json.loads(file.read_text())
        settings["quantization_config"] |= change
        file.write_text(json.dumps(settings))

    return damage


def rewritten(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        file = path / "model.safetensors"
        tensors = {name: one.clone() for name, one in load_file(file).items()}
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return damage


def cut(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def put(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def unsaid(path: Path) -> None:
    file = path / "config.json"
    settings = json.loads(file.read_text())
    del settings["quantization_config"]
    file.write_text(json.dumps(settings))


EMBEDDINGS = "model.language_model.embed_tokens.weight"
OTHER = pack(torch.ones(32, 32), 4)
DAMAGES = {
    "cut off": (cut, "damaged or cut off"),
    "no file": (lambda path: (path / "model.safetensors").unlink(), "holds no weights"),
    "other bits": (described(bits=8), r"in 8 bits needs .*do not belong together"),
    "odd bits": (described(bits=3), "layers of 3 bits"),
    "no bits": (described(bits=None), "layers of None bits"),
    "a later format": (described(format_version=2), "format_version 2 .*update llavakit"),
    "other groups": (described(group_size=64), "group_size 64"),
    "data gone": (rewritten(drop(f"{LAYER}.{DATA}")), f"lacks .*{LAYER}"),
    "scales gone": (rewritten(drop(f"{LAYER}.{SCALES}")), f"lacks {LAYER}.{SCALES}"),
    "embeddings gone": (rewritten(drop(EMBEDDINGS)), "lacks 1 tensors, among them .*embed_tokens"),
    "data of another shape": (
        rewritten(put(f"{LAYER}.{DATA}", OTHER.data)),
        r"a layer of 32 x 48 in 4 bits needs \[2, 2, 256\]",
    ),
    "scales of another type": (
        rewritten(put(f"{LAYER}.{SCALES}", torch.ones(2, 2, 16))),
        "in torch.float32",
    ),
    "scales that are not finite": (
        rewritten(put(f"{LAYER}.{SCALES}", torch.full((2, 2, 16), torch.inf).half())),
        "not finite",
    ),
    "embeddings of another shape": (
        rewritten(put(EMBEDDINGS, torch.ones(5, 32))),
        r"embed_tokens.weight as \[5, 32\], and its config.json asks for \[264, 32\]",
    ),
    "a tensor too many": (rewritten(put("extra.weight", torch.ones(3))), "no place for.*extra"),
    "a layer too many": (
        rewritten(lambda tensors: tensors.update({f"extra.{DATA}": OTHER.data.clone()})),
        "no place for, among them .*extra",
    ),
    "scales too many": (
        rewritten(lambda tensors: tensors.update({f"extra.{SCALES}": OTHER.scales.clone()})),
        "no place for, among them extra",
    ),
    "embeddings twice": (
        rewritten(
            put(
                EMBEDDINGS.replace("model.language_model", "language_model.model"),
                torch.ones(264, 32),
            )
        ),
        "under two names",
    ),
    "a layer that is not packed": (
        rewritten(put(f"{LAYER}.weight", torch.ones(32, 48))),
        r"as \[32, 48\] in torch.float32",
    ),
    "a layer that never was": (
        rewritten(
            lambda tensors: (
                put(f"{LAYER}.weight", torch.ones(32, 48))(tensors),
                drop(f"{LAYER}.{SCALES}")(tensors),
            )
        ),
        "not those of one checkpoint",
    ),
    "not said to be packed": (unsaid, "config.json asks for"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damaged_checkpoints_are_refused_in_a_sentence(copied: Path, damage: str, caplog):
    change, words = DAMAGES[damage]
    change(copied)
    with pytest.raises(CheckpointError, match=words) as refused:
        loaded(copied)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    if damage != "not said to be packed":
        assert not caplog.records


def test_numbers_that_fp16_cannot_hold(copied: Path, tmp_path: Path, tiny: TinyModel):
    rewritten(lambda tensors: tensors[EMBEDDINGS].fill_(1e6))(copied)
    with pytest.raises(CheckpointError, match=r"embed_tokens.* float16 cannot"):
        loaded(copied, dtype="float16")
    source = tmp_path / "source"
    shutil.copytree(tiny.path, source)
    old = EMBEDDINGS.replace("model.language_model", "language_model.model")
    rewritten(lambda tensors: tensors[old].fill_(1e6))(source)
    with pytest.raises(CheckpointError, match=r"embed_tokens.* float16 cannot"):
        export(source, tmp_path / "out", quantize="4bit", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_what_transformers_has_no_class_for_is_refused(tmp_path: Path):
    settings = {**SETTINGS, "mm_projector_type": "mlp3x_gelu"}
    path = write(tmp_path / "deep", settings, random_state(settings))
    with pytest.raises(CheckpointError, match="transformers has no class"):
        export(path, tmp_path / "out", quantize="4bit")


def test_other_bits_are_refused(tiny: TinyModel, tmp_path: Path):
    with pytest.raises(ParameterError, match="use 4bit or 8bit"):
        export(tiny.path, tmp_path / "out", quantize="3bit")  # type: ignore[arg-type]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    from llavakit.model import packed_checkpoint

    monkeypatch.setattr(packed_checkpoint, "save_aligned", no_space)
    yield


def test_full_disk_leaves_nothing_behind(tiny: TinyModel, tmp_path: Path, full: None):
    with pytest.raises(CheckpointError, match="No space left on device"):
        export(tiny.path, tmp_path / "out", quantize="4bit")
    assert list(tmp_path.iterdir()) == []


def test_command(tiny: TinyModel, tmp_path: Path):
    out = tmp_path / "out"
    asked = ["export", str(tiny.path), str(out), "--quantize", "8bit"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert json.loads((out / "config.json").read_text())["quantization_config"]["bits"] == 8
    again = CliRunner().invoke(app, asked)
    assert again.exit_code == 2 and "not empty" in again.output
    odd = CliRunner().invoke(app, [*asked[:-1], "3bit"])
    assert odd.exit_code == 2 and "3bit" in odd.output
