"""Exported checkpoints are read by transformers, and by llavakit as what they were before."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from safetensors import safe_open
from typer.testing import CliRunner

import llavakit
from llavakit import Image, Message, SamplingParams
from llavakit.backend import to_request
from llavakit.cli.app import app
from llavakit.errors import CheckpointError, ParameterError
from llavakit.images import open_picture
from llavakit.model import export as module
from llavakit.model.export import export
from llavakit.model.jinja import chat_template
from llavakit.model.loader import load_reader
from llavakit.prompts.conversation import to_turns
from llavakit.prompts.templates import TEMPLATES
from tests.original import FIXTURES, SETTINGS, random_state, write
from tests.tiny import TinyModel

GREEDY = SamplingParams(temperature=0, max_tokens=12, logprobs=0)
IMAGES = FIXTURES / "images"
CONVERSATIONS = [
    [Message("user", "Hello there, who are you?")],
    [Message("user", [Image(IMAGES / "land.png"), "What is shown?"])],
    [Message("user", ["Qué es 这个 🐱?\n", Image(IMAGES / "port.png")])],
    [
        Message("system", "Be brief."),
        Message(
            "user", [Image(IMAGES / "land.png"), Image(IMAGES / "port.png"), "\nCompare  them."]
        ),
        Message("assistant", "One is wide."),
        Message("user", ["And", Image(IMAGES / "tiny_wide.png"), "this?"]),
    ],
]
V15, V16 = (FIXTURES / "models" / f"llava-{name}-tiny" for name in ("v1.5", "v1.6-vicuna"))


def loaded(path: Path, **options: Any) -> llavakit.Backend:
    return llavakit.load(path, device="cpu", dtype="float32", kv_cache_bytes=4 << 20, **options)


def assert_same(one: Path, other: Path, **options: Any) -> None:
    """Same tokens, same pixels, same answers."""
    first, second = loaded(one, **options), loaded(other)
    readers = [backend._get_reader() for backend in (first, second)]  # type: ignore[attr-defined]
    for messages in CONVERSATIONS:
        turns = to_turns(to_request(messages))
        ids = [reader.tokenizer.encode(turns) for reader in readers]
        assert ids[0] == ids[1]
        for message in messages:
            for image in message.images:
                picture = open_picture(image.source)
                assert readers[0].layout.tokens(picture.size) == readers[1].layout.tokens(
                    picture.size
                )
                pixels = [r.preprocess(picture).inputs()["pixel_values"] for r in readers]
                assert torch.equal(*pixels)
        answers = [backend.generate(messages, GREEDY) for backend in (first, second)]
        assert answers[0].usage == answers[1].usage
        # Texts of random models are pieces of characters, which tokenizers spell in their own
        # ways; how likely each token was tells more, and tells all of them.
        chances = [[token.logprob for token in answer.logprobs] for answer in answers]
        assert len(chances[0]) == GREEDY.max_tokens
        assert chances[0] == pytest.approx(chances[1], abs=1e-4)
    assert readers[0].special.stops == readers[1].special.stops
    first.close()
    second.close()


@pytest.mark.parametrize("path", [V15, V16], ids=["v1.5", "v1.6"])
def test_export_is_the_same_model(path: Path, tmp_path: Path):
    out = export(path, tmp_path / "llava")
    assert_same(path, out)


def test_projector_is_merged_into_its_base(tmp_path: Path):
    base = FIXTURES / "models" / "vicuna-tiny"
    path = FIXTURES / "models" / "llava-v1.5-tiny-pretrain"
    out = export(path, tmp_path / "llava", model_base=base)
    assert_same(path, out, model_base=base)


@pytest.mark.parametrize(
    ("change", "rows", "legacy"),
    [
        ({"mm_projector_type": "linear"}, 1000, True),
        ({"mm_use_im_start_end": True, "mm_use_im_patch_token": True}, 1003, False),
        ({"mm_vision_select_feature": "cls_patch", "image_aspect_ratio": "square"}, 1000, False),
    ],
)
def test_export_of_unusual_models(tmp_path: Path, change: dict, rows: int, legacy: bool):
    settings = {**SETTINGS, **change}
    path = write(
        tmp_path / "llava-v1.5-x",
        settings,
        random_state(settings, rows),
        tokenizer=FIXTURES / f"tok-legacy-{legacy}",
    )
    assert_same(path, export(path, tmp_path / "out"))


@pytest.mark.parametrize("path", [V15, V16], ids=["v1.5", "v1.6"])
def test_transformers_reads_it(path: Path, tmp_path: Path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    out = export(path, tmp_path / "llava")
    model, report = AutoModelForImageTextToText.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values())
    processor = AutoProcessor.from_pretrained(out, backend="pil")
    picture = PILImage.open(IMAGES / "land.png").convert("RGB")
    content = [{"type": "image"}, {"type": "text", "text": "What is shown in this image?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(images=[picture], text=text, return_tensors="pt")
    backend = loaded(path)
    messages = [Message("user", [Image(picture), "What is shown in this image?"])]
    assert inputs["input_ids"].shape[1] == backend.count_tokens(messages)
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    seen = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    reader = backend._get_reader()  # type: ignore[attr-defined]
    expected = backend.generate(messages, SamplingParams(temperature=0, max_tokens=8)).text
    assert (
        reader.tokenizer.tokenizer.decode(seen, skip_special_tokens=True).strip()
        == expected.strip()
    )
    backend.close()


def test_names_in_the_file_are_those_that_vllm_reads(tmp_path: Path):
    with safe_open(export(V16, tmp_path / "out") / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.get_tensor("lm_head.weight").dtype == torch.float16
        assert file.get_tensor("lm_head.weight").shape == (1024, 48)
    assert "model.image_newline" in names
    assert "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight" in names
    assert "model.multi_modal_projector.linear_2.bias" in names
    assert "model.language_model.layers.2.mlp.down_proj.weight" in names
    prefixes = {".".join(name.split(".")[:2]) for name in names}
    assert prefixes == {
        *("lm_head.weight", "model.image_newline", "model.language_model"),
        *("model.multi_modal_projector", "model.vision_tower"),
    }


def test_class_names_are_those_that_older_programs_know(tmp_path: Path):
    out = export(V15, tmp_path / "out")
    pictures = json.loads((out / "preprocessor_config.json").read_text())
    assert pictures["image_processor_type"] == "LlavaImageProcessor"
    assert pictures["do_pad"] is True
    tokenizer = json.loads((out / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]


def test_shards_and_another_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 200_000)
    out = export(V15, tmp_path / "out", dtype="bfloat16")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2 and {file.name for file in out.glob("*.safetensors")} == files
    with safe_open(out / min(files), "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert loaded(out).generate("hi", GREEDY).usage.completion_tokens > 0


@pytest.mark.parametrize("name", [name for name, one in TEMPLATES.items() if not one.tagged])
@pytest.mark.parametrize("legacy", [True, False])
def test_every_template_in_jinja_gives_the_same_ids(tmp_path: Path, name: str, legacy: bool):
    settings = {**SETTINGS, "mm_use_im_start_end": True}
    path = write(
        tmp_path / "llava-v1.5",
        settings,
        random_state(settings, 1002),
        tokenizer=FIXTURES / f"tok-legacy-{legacy}",
    )
    reader = load_reader(path, conv_mode=name)
    out = export(path, tmp_path / "out", conv_mode=name)
    other = load_reader(out)
    for messages in CONVERSATIONS:
        turns = to_turns(to_request(messages))
        assert reader.tokenizer.encode(turns) == other.tokenizer.encode(turns)
    needed = [stop for stop in reader.tokenizer.stop_strings if stop not in ("<s>", "</s>")]
    assert other.tokenizer.stop_strings == tuple(needed)
    assert reader.special.stops == other.special.stops


def test_tagged_template_is_refused():
    with pytest.raises(CheckpointError, match="name another one"):
        chat_template(TEMPLATES["v1_mmtag"], "<image>", spaced=False)


def test_what_transformers_has_no_class_for_is_refused(tmp_path: Path):
    settings = {**SETTINGS, "mm_projector_type": "mlp3x_gelu"}
    path = write(tmp_path / "deep", settings, random_state(settings))
    with pytest.raises(CheckpointError, match="transformers has no class"):
        export(path, tmp_path / "out")


def test_hf_format_is_refused(tiny: TinyModel, tmp_path: Path):
    with pytest.raises(CheckpointError, match="in HF format already"):
        export(tiny.path, tmp_path / "out")


def test_directory_that_holds_something_is_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ParameterError, match="not empty"):
        export(V15, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("at", ["_write_tensors", "describe", "check_same_prompts"])
def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch, at: str):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, at, full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        export(V15, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_empty_directory_is_filled(tmp_path: Path):
    (tmp_path / "out").mkdir()
    assert (export(V15, tmp_path / "out") / "config.json").is_file()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_command(tmp_path: Path):
    done = CliRunner().invoke(
        app, ["export", str(V15), str(tmp_path / "out"), "--dtype", "float32"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    again = CliRunner().invoke(app, ["export", str(V15), str(tmp_path / "out")])
    assert again.exit_code == 2 and "not empty" in again.output
