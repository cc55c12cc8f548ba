"""Conversations about the same images, learnt together, are learnt as if each were alone."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from llavakit.errors import ParameterError
from llavakit.images import open_picture
from llavakit.model.loader import load_reader
from llavakit.training.data import conversation_of
from llavakit.training.data_check import check
from llavakit.training.data_files import open_records
from llavakit.training.examples import Collator, Encoder
from llavakit.training.labels import IGNORED
from llavakit.training.run import train
from llavakit.training.sharing import ALONE, Beginning, SharingCollator, beginning, groups
from llavakit.training.trainable import check_shareable
from tests.families import FAMILIES, tiny_family
from tests.tiny import TinyModel
from tests.training.lessons import TONES, settings
from tests.training.test_families import MODES

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

lengths_and_beginnings = st.lists(
    st.tuples(st.integers(0, 3), st.integers(2, 6), st.integers(1, 9)), min_size=1, max_size=30
)


@given(lengths_and_beginnings, st.integers(5, 40))
def test_every_conversation_is_in_one_circle_of_its_like(
    drawn: list[tuple[int, int, int]], most: int
):
    begins, lengths = [], []
    for key, tokens, more in drawn:
        tokens = 2 + key if key else 0  # what begins alike has as many tokens in common
        begins.append(Beginning(str(key), tokens) if key else ALONE)
        lengths.append((tokens + more) if key else -(1 + more))
    members, sizes = groups(lengths, begins, most)
    assert sorted(at for circle in members for at in circle) == list(range(len(drawn)))
    for circle, size in zip(members, sizes, strict=True):
        assert len({begins[at].key for at in circle}) == 1
        if len(circle) == 1:
            assert size == lengths[circle[0]]
            continue
        trunk = begins[circle[0]].tokens
        assert size == trunk + sum(lengths[at] - trunk for at in circle) <= most


def records(folder: Path, questions: int = 4) -> list[dict[str, Any]]:
    """Several questions about each of several images, and some about none."""
    made: list[dict[str, Any]] = []
    for name, tone in TONES.items():
        PILImage.new("RGB", (40, 30), tone).save(folder / f"{name}.png")
    for number in range(questions):
        for name in TONES:
            asked = f"<image>\nWhat colour is it, {number}?"
            said = [{"from": "human", "value": asked}, {"from": "gpt", "value": name}]
            if number % 2:
                said += [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
            made.append({"image": f"{name}.png", "conversations": said})
    said = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day."}]
    two = ["red.png", "blue.png"]
    both = [{"from": "human", "value": "<image> <image>?"}, {"from": "gpt", "value": "both"}]
    return [*made, {"conversations": said}, {"image": two, "conversations": both}]


@pytest.mark.parametrize("key", FAMILIES)
def test_loss_and_gradients_are_those_of_the_conversations_one_by_one(key: str, tmp_path: Path):
    family = tiny_family(tmp_path / "model", key)
    reader = load_reader(family.path, conv_mode=MODES[FAMILIES[key].vocabulary])
    file = tmp_path / "train.json"
    file.write_text(json.dumps(records(tmp_path)))
    encode = Encoder(reader, 20_000)
    report = check(open_records(str(file)), encoder=encode)
    examples = [encode(conversation_of(one, tmp_path)) for one in records(tmp_path)]
    members, sizes = groups(report.lengths, report.beginnings, 20_000)
    assert len(members) == len(TONES) + 2
    alone = Collator(0, reader.config.model_type)
    together = SharingCollator(alone)([[examples[at] for at in circle] for circle in members])
    assert together["input_ids"].numel() < sum(map(abs, report.lengths))
    assert max(map(abs, sizes)) >= together["input_ids"].size(1)  # first words are shared, too
    model = reader.build({"dtype": torch.float32})
    found = []
    for batch in (alone(examples), together):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        named = model.named_parameters()
        found.append((loss.item(), {n: p.grad.clone() for n, p in named if p.grad is not None}))
    (expected, one_by_one), (loss, shared) = found
    assert loss == pytest.approx(expected, rel=1e-5)
    assert one_by_one.keys() == shared.keys()
    for name, gradient in one_by_one.items():
        torch.testing.assert_close(shared[name], gradient, atol=2e-5, rtol=2e-3)


def test_conversations_share_up_to_behind_the_last_picture(tiny: TinyModel, tmp_path: Path):
    encode = Encoder(load_reader(tiny.path, conv_mode="v1"), 2048)
    image = encode.reader.tokenizer.image_id
    PILImage.new("RGB", (40, 30)).save(tmp_path / "a.png")
    PILImage.new("RGB", (40, 30)).save(tmp_path / "b.png")

    def begins(question: str, *names: str, before: str = "") -> Beginning:
        said = [{"from": "human", "value": question}, {"from": "gpt", "value": "Yes."}]
        if before:
            said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": before}, *said]
        one = conversation_of({"image": list(names), "conversations": said}, tmp_path)
        made = encode.tokens(one, [(40, 30)] * len(names))
        found = beginning(made, image, one.pictures)
        learnt = next(at for at, label in enumerate(made.labels) if label != IGNORED)
        assert found.tokens < learnt or found == ALONE
        return found

    first = begins("<image>\nWhat?", "a.png")
    assert begins("<image>\nWhere is it?", "a.png") == first
    assert begins("<image>\nWhat?", "b.png") != first
    assert begins("<image> <image>\nWhat?", "a.png", "b.png") != first
    assert begins("Is it <image> <image>?", "a.png", "b.png").key
    # What was learnt before a picture is learnt once for each conversation.
    late = begins("<image>\nWhat?", "a.png", before="A good day to you.")
    assert late.tokens < first.tokens


def test_pictures_are_told_apart_however_they_are_given(tiny: TinyModel):
    encode = Encoder(load_reader(tiny.path, conv_mode="v1"), 2048)

    def key(source: Any) -> str:
        said = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A"}]
        one = conversation_of({"images": [source], "messages": said})
        made = encode.tokens(one, [(40, 30)])
        return beginning(made, encode.reader.tokenizer.image_id, one.pictures).key

    def forms(tone: str) -> list[Any]:
        drawn, file = PILImage.new("RGB", (40, 30), tone), BytesIO()
        drawn.save(file, "PNG")
        return [file.getvalue(), drawn, open_picture(drawn)]

    for red, blue in zip(forms("red"), forms("blue"), strict=True):
        assert key(red) == key(red) != key(blue)


def test_a_run_reads_pictures_once_and_learns(tiny: TinyModel, tmp_path: Path):
    file = tmp_path / "train.json"
    file.write_text(json.dumps(records(tmp_path)[:-1]))
    said: list[str] = []
    config = settings(
        "instruct", tiny.path, file, tmp_path / "out", share_images=True,
        batch_size=2, epochs=4, learning_rate=0.01,
    )  # fmt: skip
    done = train(config, said.append)
    assert any("17 conversations are learnt as 5" in line for line in said)
    assert done.steps == 3 * 4
    assert sum(done.losses[-2:]) < 0.8 * sum(done.losses[:2])


def test_the_check_of_data_tells_what_could_be_shared(tiny: TinyModel, tmp_path: Path):
    encode = Encoder(load_reader(tiny.path, conv_mode="v1"), 2048)
    file = tmp_path / "train.json"
    told = []
    for questions in (4, 1):
        file.write_text(json.dumps(records(tmp_path, questions)))
        report = check(open_records(str(file)), encoder=encode)
        told.append([line for line in report.lines() if "share_images" in line])
        _, sizes = groups(report.lengths, report.beginnings, 10**6)
        total = sum(map(abs, report.lengths))
        assert total - report.shareable == sum(map(abs, sizes))
    (line,), nothing = told
    assert not nothing and "tokens" in line


def test_only_attention_with_masks_of_its_own_can_share(tiny: TinyModel):
    model = load_reader(tiny.path).build({"dtype": torch.float32, "attn_implementation": "eager"})
    with pytest.raises(ParameterError, match="share_images"):
        check_shareable(model)
