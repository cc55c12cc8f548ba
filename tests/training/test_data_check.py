"""Training data: both forms are read, and each planted fault is named by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from llavakit.errors import DataError, InputError, ParameterError
from llavakit.model.loader import load_reader
from llavakit.training.data import FaultyRecord, conversation_of
from llavakit.training.data_check import Report, check
from llavakit.training.data_files import open_records
from llavakit.training.examples import Encoder
from llavakit.values import Image, Text
from tests.tiny import TinyModel


def record(name: str, question: str = "<image>\nWhat is it?", answer: str = "A cat.", **more: Any):
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": "good.png", "conversations": said, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    PILImage.new("RGB", (40, 30), "red").save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) - 30])
    return tmp_path


def write_lines(path: Path, records: list[Any]) -> Path:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def faulty(folder: Path) -> Path:
    """Ten faults on the even lines from 2 to 20, and good records on the odd ones."""
    planted: list[Any] = [
        record("a", image="nowhere.png"),
        record("b", image="broken.png"),
        record("c", image=["good.png", "good.png"]),
        record("d", answer="  \n"),
        record("e") | {"conversations": list(reversed(record("e")["conversations"]))},
        record("f") | {"conversations": [{"from": "bot", "value": "Hello."}]},
        record("good-3"),
        record("g", answer="word " * 400),
        record("h") | {"conversations": record("h")["conversations"][:1]},
        '{"id": "i", "conversations": [',
    ]
    records: list[Any] = []
    for number, one in enumerate(planted):
        records += [record(f"good-{number}"), one]
    return write_lines(folder / "train.jsonl", records)


def looked(path: Path, tiny: TinyModel, **options: Any) -> Report:
    reader = load_reader(tiny.path, conv_mode="v1")
    return check(open_records(path), encoder=Encoder(reader, 300), **options)


EXPECTED = [
    ("line 2", "missing-image"),
    ("line 4", "unreadable-image"),
    ("line 6", "image-count"),
    ("line 8", "empty-answer"),
    ("line 10", "role-order"),
    ("line 12", "unknown-role"),
    ("line 14", "duplicate-id"),
    ("line 16", "over-length"),
    ("line 18", "no-answer"),
    ("line 20", "malformed"),
]


def test_ten_planted_faults_are_refused_with_ten_named_lines(faulty: Path, tiny: TinyModel):
    report = looked(faulty, tiny)
    assert [(str(fault.place), fault.kind) for fault in report.faults] == EXPECTED
    assert report.records == 20 and len(report.good) == 10
    with pytest.raises(DataError) as refused:
        report.refuse_faults()
    for place, kind in EXPECTED:
        assert f"{place}: {kind}: " in str(refused.value)


def test_faults_that_are_accepted_are_counted_and_no_others_are(faulty: Path, tiny: TinyModel):
    report = looked(faulty, tiny, accept=("duplicate-id", "over-length"))
    assert report.accepted == {"duplicate-id": 1, "over-length": 1}
    assert len(report.faults) == 8 and len(report.good) == 12
    assert max(report.lengths) == 300
    assert "Accepted: 1 duplicate-id" in "\n".join(report.lines())
    with pytest.raises(ParameterError, match="missing-image"):
        looked(faulty, tiny, accept=("missing-image",))


def test_a_picture_is_never_cut(folder: Path, tiny: TinyModel):
    late = record("late")
    late["conversations"] = [
        {"from": "human", "value": "Hello"},
        {"from": "gpt", "value": "Hi " * 100},
        *record("x")["conversations"],
    ]
    report = looked(write_lines(folder / "late.jsonl", [late]), tiny, accept=("over-length",))
    assert [fault.kind for fault in report.faults] == ["uncuttable"]
    assert "an image would be cut" in report.faults[0].text


def test_records_of_a_json_list_are_named_by_their_lines(folder: Path, tiny: TinyModel):
    file = folder / "train.json"
    file.write_text(json.dumps([record("a"), record("b", image="no.png")], indent=2))
    report = looked(file, tiny)
    line = file.read_text().split("\n").index("  {", 2) + 1
    assert [str(fault.place) for fault in report.faults] == [f"line {line}"]


def test_records_that_share_a_line_are_named_by_their_numbers_too(folder: Path, tiny: TinyModel):
    file = folder / "train.json"
    file.write_text(json.dumps([record("a"), record("b", image="no.png"), record("c")]))
    assert [str(fault.place) for fault in looked(file, tiny).faults] == ["line 1 (record 2)"]


@pytest.mark.parametrize("end", ["", ",", "{}", " [1"])
def test_a_json_list_that_is_cut_off_says_where(folder: Path, end: str):
    file = folder / "train.json"
    file.write_text("[\n" + json.dumps(record("a")) + end)
    report = check(open_records(file))
    assert [(f.kind, f.place.line) for f in report.faults] == [("malformed", 2)]
    assert len(report.good) == 1


def test_files_without_records_are_refused(folder: Path):
    (folder / "empty.json").write_text(" \n")
    (folder / "latin.json").write_bytes(b'[\n{"id": "\xe4"}]')
    with pytest.raises(InputError, match="is empty"):
        open_records(folder / "empty.json")
    with pytest.raises(InputError, match="not UTF-8 on line 2"):
        open_records(folder / "latin.json")
    with pytest.raises(InputError, match="no file"):
        open_records(folder / "nowhere.json")


def test_lengths_are_those_of_the_examples(folder: Path, tiny: TinyModel):
    reader = load_reader(tiny.path, conv_mode="v1")
    records = [record("a"), record("b", question="No picture?", image=None)]
    file = write_lines(folder / "train.jsonl", records)
    report = looked(file, tiny)
    encode = Encoder(reader, 2048)
    for written, length in zip(records, report.lengths, strict=True):
        example = encode(conversation_of(written, folder))
        assert abs(length) == len(example.ids)
        assert (length > 0) == bool(example.pixels)
    assert example.ids.count(reader.special.image) == 0


@pytest.mark.parametrize("decode", [True, False])
def test_turned_photographs_are_measured_upright(folder: Path, decode: bool):
    from llavakit.training.examples import picture_size

    exif = PILImage.Exif()
    exif[0x0112] = 6
    PILImage.new("RGB", (40, 30)).save(folder / "turned.jpg", exif=exif)
    assert picture_size(Image(folder / "turned.jpg"), decode=decode) == (30, 40)


def chat(*content: Any, images: Any = ()) -> dict[str, Any]:
    asked = {"role": "user", "content": content[0] if len(content) == 1 else list(content)}
    return {"images": list(images), "messages": [asked, {"role": "assistant", "content": "Yes."}]}


IMAGE_PART, TEXT_PART = {"type": "image"}, {"type": "text", "text": "Is it red?"}


@pytest.mark.parametrize(
    "written",
    [
        chat("<image>\nIs it red?", images=["good.png"]),
        chat(IMAGE_PART, TEXT_PART, images=["good.png"]),
        chat({"type": "image", "path": "good.png"}, TEXT_PART),
        chat({"type": "image_url", "image_url": {"url": "good.png"}}, TEXT_PART),
        record("x", "Is it <image> red?".replace(" <image>", ""), image=None)
        | {"conversations": [{"from": "human", "value": "Is it red?\n<image>"},
                             {"from": "gpt", "value": "Yes."}], "image": "good.png"},
    ],
)  # fmt: skip
def test_both_forms_say_the_same(folder: Path, written: dict[str, Any]):
    conversation = conversation_of(written, folder)
    assert conversation.turns[0].parts == (Image(folder / "good.png"), Text("Is it red?"))


def test_several_pictures_of_a_turn_stay_where_they_stand(folder: Path):
    written = record("x", "<image> or <image>?", image=["good.png", "other.png"])
    parts = conversation_of(written, folder).turns[0].parts
    assert parts == (
        Image(folder / "good.png"), Text(" or "), Image(folder / "other.png"), Text("?"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ([], "malformed"),
        ({}, "malformed"),
        ({"conversations": "hello"}, "malformed"),
        ({"messages": [{"role": "user"}]}, "malformed"),
        (chat({"type": "audio"}, TEXT_PART), "malformed"),
        (chat("Hi", images=["good.png"]), "image-count"),
        (chat("<image><image>Hi", images=["good.png"]), "image-count"),
        (record("x", answer="Look: <image>"), "image-count"),
        (record("x", image="http://example.com/a.png"), "missing-image"),
        (record("x", image=[None]), "missing-image"),
        (record("x", question=" ", image=None), "empty-question"),
    ],
)
def test_what_makes_no_conversation_has_a_name(written: Any, kind: str):
    with pytest.raises(FaultyRecord) as fault:
        conversation_of(written)
    assert fault.value.kind == kind


def test_an_assistant_that_begins_is_a_fault_that_may_be_accepted(folder: Path, tiny: TinyModel):
    said = [{"from": "gpt", "value": "Welcome."}, *record("x")["conversations"]]
    file = write_lines(folder / "train.jsonl", [record("x") | {"conversations": said}])
    assert [f.kind for f in looked(file, tiny).faults] == ["assistant-first"]
    report = looked(file, tiny, accept=("assistant-first",))
    assert not report.faults and report.accepted == {"assistant-first": 1}


def test_a_last_question_without_answer_is_a_fault_of_order():
    written = chat("Hi")
    written["messages"].append({"role": "user", "content": "And?"})
    with pytest.raises(FaultyRecord, match="no answer"):
        conversation_of(written)


def test_data_sets_of_hugging_face_are_read_from_disk(folder: Path, tiny: TinyModel):
    import datasets

    datasets.disable_progress_bars()
    picture = PILImage.new("RGB", (40, 30), "red")
    messages = chat(IMAGE_PART, TEXT_PART)["messages"]
    messages[1]["content"] = [{"type": "text", "text": "Yes."}]
    rows = {"messages": [messages, messages], "images": [[picture], []]}
    features = datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"),
                          "content": [{"type": datasets.Value("string"),
                                       "text": datasets.Value("string")}]}],
            "images": [datasets.Image()],
        }
    )  # fmt: skip
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(folder / "set")
    for source in (saved, folder / "set"):
        report = check(
            open_records(source), encoder=Encoder(load_reader(tiny.path, conv_mode="v1"), 300)
        )
        assert [(str(f.place), f.kind) for f in report.faults] == [("record 2", "image-count")]
        assert report.pictures == 1
