"""Pixtral's tower: images in their own shape, as rows of patches with words behind them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import llavakit
from llavakit import Image, Message, SamplingParams, Text
from llavakit.errors import CheckpointError, ImageError
from llavakit.model.layout import RowsLayout, image_ids
from llavakit.model.loader import load_reader
from tests.engine.oracle import submitted
from tests.families import TinyFamily, tiny_family
from tests.model.test_families import CONVERSATIONS, messages, picture


@pytest.fixture(scope="module")
def pixtral(tmp_path_factory: pytest.TempPathFactory) -> TinyFamily:
    return tiny_family(tmp_path_factory.mktemp("pixtral"), "pixtral")


@pytest.fixture(scope="module")
def backend(pixtral: TinyFamily):
    backend = llavakit.load(pixtral.path, prefill_chunk=24)
    yield backend
    backend.close()


def test_all_conversations_at_once_are_answered_as_by_transformers(pixtral, backend):
    running = [(said, *submitted(backend, messages(said), 16)) for said in CONVERSATIONS.values()]
    for said, stream, sequence in running:
        list(stream)
        assert sequence.tokens[sequence.prompt_length :] == pixtral.generate(said, 16)
    assert backend.stats()["halved_steps"] == 0


def test_tokens_are_counted_as_they_are_computed(backend):
    for said in CONVERSATIONS.values():
        answer = backend.generate(messages(said), SamplingParams(max_tokens=1, temperature=0))
        assert backend.count_tokens(messages(said)) == answer.usage.prompt_tokens


def test_log_probabilities_are_those_of_transformers(pixtral, backend):
    said = CONVERSATIONS["an image"]
    text = pixtral.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": said[0][1][1]}]}],
        tokenize=False,
    )
    inputs = pixtral.processor(images=[said[0][1][0]], text=text)
    with torch.inference_mode():
        logits = pixtral.model(**inputs).logits[0, -1].float()
    allowed = [i for i in range(len(logits)) if i not in set(pixtral.forbidden)]
    top = torch.log_softmax(logits[allowed], -1).max().item()
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=0)
    answer = backend.generate(messages(said), params)
    assert answer.logprobs[0].logprob == pytest.approx(top, abs=1e-3)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_it_still_answers_in_batches_and_streams(pixtral, bits):
    backend = llavakit.load(pixtral.path, quantization=bits, device="cpu")
    try:
        params = SamplingParams(max_tokens=8, temperature=0)
        said = messages(CONVERSATIONS["three pictures"])
        whole = backend.generate(said, params)
        assert "".join(chunk.text for chunk in backend.stream(said, params)) == whole.text
        assert [one.text for one in backend.choices(said, params, n=3)] == [whole.text] * 3
    finally:
        backend.close()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 8), (64, 64), (65, 64), (300, 17), (17, 300)])
def test_the_layout_counts_what_transformers_resizes_to(pixtral, size):
    layout = load_reader(pixtral.path).layout
    assert isinstance(layout, RowsLayout)
    made = pixtral.processor._images(images=[picture(1, *size)], return_tensors="pt")
    height, width = made["image_sizes"][0].tolist()
    assert layout.shape(size) == (height // 8, width // 8)


def test_ids_of_an_image_are_rows_with_their_ends():
    layout = RowsLayout((64, 64), 8, row_end=7, image_end=9)
    assert image_ids(layout, 3, (17, 16), 1) == [3, 3, 3, 7, 3, 3, 3, 9]
    assert layout.tokens((17, 16)) == 8
    with pytest.raises(ImageError, match="too thin"):
        layout.tokens((10_000, 1))


def test_the_ends_of_rows_that_a_user_types_are_text(pixtral):
    reader = load_reader(pixtral.path)
    end = reader.tokenizer.tokenizer.convert_tokens_to_ids("[IMG_END]")
    from llavakit.prompts.conversation import Turn

    assert end not in reader.tokenizer.encode([Turn("user", (Text("[IMG_END][IMG_BREAK]"),))])


def test_an_image_of_the_conversation_is_computed_once(backend):
    said = [Message("user", [Image(picture(9, 40, 24)), Text("What?")])]
    params = SamplingParams(max_tokens=4, temperature=0)
    backend.generate(said, params)
    before = backend.stats()["images_encoded"]
    backend.generate([*said, Message("assistant", "A."), Message("user", "And?")], params)
    assert backend.stats()["images_encoded"] == before


def test_files_that_do_not_belong_to_the_tower_are_refused_while_loading(tmp_path: Path):
    made = tiny_family(tmp_path, "pixtral")
    file = made.path / "preprocessor_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "patch_size": {"height": 16, "width": 16}}))
    with pytest.raises(CheckpointError, match="8x8"):
        load_reader(made.path)
    file.write_text(json.dumps(said))
    (made.path / "processor_config.json").write_text('{"image_break_token": "[BREAK]"}')
    with pytest.raises(CheckpointError, match=r"no token '\[BREAK\]'"):
        load_reader(made.path)


def test_training_it_is_refused_by_name(pixtral, tmp_path: Path):
    from llavakit.training.config import TrainConfig
    from llavakit.training.start import start_from

    config = TrainConfig(stage="lora", model=str(pixtral.path), data="x.json", out=str(tmp_path))
    with pytest.raises(CheckpointError, match="Pixtral's vision tower"):
        start_from(config)
