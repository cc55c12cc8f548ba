"""Templates by name, in front of a real tokenizer and a random model."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as PILImage

import llavakit
from llavakit import Image, Message, SamplingParams
from llavakit.errors import CheckpointError, ParameterError
from llavakit.model.loader import load_reader
from llavakit.model.tokens import special_tokens
from llavakit.prompts.conversation import Turn
from llavakit.prompts.templates import template
from llavakit.values import Completion, Text
from tests.tiny import TEMPLATE, TinyModel

TURNS = [
    Turn("user", (Image("picture.png"), Text("Is it red?"))),
    Turn("assistant", (Text("Yes."),)),
    Turn("user", (Text("And now </s> <image>?"),)),
]
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the human's questions."
)


def named(tiny: TinyModel, parent: Path, name: str, old: str | None = None) -> Path:
    """The tiny checkpoint under another name; with its template in the old file, or without."""
    path = parent / name
    shutil.copytree(tiny.path, path)
    (path / "chat_template.jinja").unlink()
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    if old is not None:
        (path / "chat_template.json").write_text(json.dumps({"chat_template": old}))
    return path


def test_conv_mode_writes_the_prompt(tiny: TinyModel, caplog: pytest.LogCaptureFixture):
    prompts = load_reader(tiny.path, conv_mode="llava_v0").tokenizer
    ids = prompts.encode(TURNS)
    assert ids.count(prompts.image_id) == 1
    assert ids.count(1) == 1 and ids[0] == 1
    assert ids.count(2) == 0  # what a user typed is no end of a turn
    assert prompts.tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False) == (
        f"{HUMAN}###Human: <image>\nIs it red?###Assistant: Yes."
        "###Human: And now </s> <image>?###Assistant:"
    )
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "conv_mode='llava_v0' writes prompts differently" in record.message


def test_the_checkpoint_s_own_template_is_the_default(tiny: TinyModel, caplog):
    prompts = load_reader(tiny.path).tokenizer
    assert prompts.stop_strings == ()
    assert prompts.render(TURNS[:1]) == "USER: <image>\nIs it red? ASSISTANT:"
    assert not caplog.records


def test_no_warning_where_both_write_the_same(tiny: TinyModel, tmp_path: Path, caplog):
    agreeing = (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '[INST] ' if m['role'] == 'user' else ' ' }}"
        "{% for c in m['content'] %}"
        "{{ '<image>\n' if c['type'] == 'image' else c['text'] }}{% endfor %}"
        "{{ ' [/INST]' if m['role'] == 'user' else ' </s>' }}{% endfor %}"
    )
    path = named(tiny, tmp_path, "mistral", agreeing)
    by_name = load_reader(path, conv_mode="mistral_instruct").tokenizer
    assert by_name.encode(TURNS) == load_reader(path).tokenizer.encode(TURNS)
    assert not caplog.records


def test_a_template_in_the_processor_s_old_file(tiny: TinyModel, tmp_path: Path):
    path = named(tiny, tmp_path, "some-model", TEMPLATE)
    own = load_reader(tiny.path).tokenizer
    assert load_reader(path).tokenizer.encode(TURNS) == own.encode(TURNS)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("llava-v1.5-7b-mine", None, "llava_v1"),
        ("llava-v1.6-mistral-7b-lora/checkpoint-500", None, "mistral_instruct"),
        ("any", "llava-hf/llava-1.5-7b-hf", "llava_v1"),
    ],
)
def test_without_a_template_the_name_tells_it(tiny, tmp_path, caplog, name, given, expected):
    path = named(tiny, tmp_path, name)
    prompts = load_reader(path, name=given).tokenizer
    asked = load_reader(path, conv_mode=expected).tokenizer
    assert prompts.encode(TURNS) == asked.encode(TURNS)
    (record,) = caplog.records
    assert f"conv_mode={expected!r}, which is taken" in record.message


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("any", "llava-hf/llava-1.5-7b-hf"),
        ("any", "llava-1.5-7b"),
        ("llava-v1.6-vicuna-7b-hf", None),
        ("models--llava-hf--llava-1.5-13b-hf/snapshots/abc", None),
    ],
)
def test_converted_models_of_the_original_keep_its_system_text(
    tiny: TinyModel, tmp_path: Path, directory: str, name: str | None
):
    path = named(tiny, tmp_path, directory, TEMPLATE)
    assert load_reader(path, name=name).tokenizer.template is template("llava_v1")
    own = load_reader(path, name=name, conv_mode="chat_template").tokenizer
    assert own.encode(TURNS) == load_reader(tiny.path).tokenizer.encode(TURNS)


@pytest.mark.parametrize("directory", ["llava", "llava-1.5-7b", "llama3-llava-next-8b-hf"])
def test_other_directories_keep_their_own_template(tiny: TinyModel, tmp_path: Path, directory):
    path = named(tiny, tmp_path, directory, TEMPLATE)
    assert load_reader(path).tokenizer.template is None


def test_a_successor_without_a_template_gets_that_of_its_authors(tiny: TinyModel, tmp_path: Path):
    path = named(tiny, tmp_path, "llava-onevision-qwen2-7b-ov-hf")
    assert load_reader(path).tokenizer.template is template("qwen_1_5")


def test_without_a_template_or_a_telling_name(tiny: TinyModel, tmp_path: Path):
    path = named(tiny, tmp_path, "my-finetune")
    with pytest.raises(CheckpointError, match="conv_mode="):
        load_reader(path)
    assert load_reader(path, conv_mode="plain").tokenizer.stop_strings == ("\n",)


def test_a_stop_string_that_is_a_special_token_ends_by_its_id(tiny: TinyModel):
    reader = load_reader(tiny.path)
    tokenizer = reader.tokenizer.tokenizer
    assert special_tokens(tokenizer, reader.config, None, ["###"]).stops == {2}
    assert special_tokens(tokenizer, reader.config, None, ["<s>"]).stops == {1, 2}


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
):
    question = Message("user", [Image(PILImage.new("RGB", (40, 40), "red")), "?"])
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=1)

    def answer(slots: int) -> Completion:
        # Another number of slots is another engine, which reads the template anew.
        backend = llavakit.load(tiny.path, conv_mode="llava_v0", max_concurrency=slots)
        try:
            return backend.generate([question], params)
        finally:
            backend.close()

    whole = answer(2).text
    stop = whole[6:9]
    # What ends the assistant's words is in no prompt of a single question.
    stopping = replace(template("llava_v0"), assistant_end=stop)
    monkeypatch.setattr("llavakit.model.chat_template.template", lambda name: stopping)
    stopped = answer(3)
    assert len(stop) == 3
    assert stopped.text == whole.partition(stop)[0]
    assert stopped.finish_reason == "stop"


def test_an_unknown_conv_mode_is_refused_before_anything_is_loaded(tiny: TinyModel):
    with pytest.raises(ParameterError, match="did you mean 'vicuna_v1'"):
        llavakit.load(tiny.path, conv_mode="vicuna-v1")
