"""Keys of a training record that change its meaning are honoured or refused, never dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llavakit.errors import InputError
from llavakit.training.data import FaultyRecord, conversation_of
from llavakit.training.data_files import open_records

SAID = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Red."}]
CHAT = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Red."}]
FORMS: dict[str, dict[str, Any]] = {
    "conversations": {"conversations": SAID},
    "messages": {"messages": CHAT},
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_text_beside_the_conversation_comes_first(form: str, key: str):
    made = conversation_of({**FORMS[form], key: "Answer in French."})
    assert made.turns[0].role == "system" and made.turns[0].text == "Answer in French."
    assert made.turns[1:] == conversation_of(FORMS[form]).turns


def test_two_system_texts_are_refused():
    said = [{"from": "system", "value": "Be brief."}, *SAID]
    for record in ({"conversations": said}, {"conversations": SAID, "system_prompt": "Be brief."}):
        with pytest.raises(FaultyRecord, match="system text"):
            conversation_of({**record, "system": "Answer in French."})
    with pytest.raises(FaultyRecord, match="no text"):
        conversation_of({"conversations": SAID, "system": ["Answer in French."]})


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize(
    "key",
    [
        *("video", "videos", "video_path", "audio", "audios", "audio_file", "sound", "speech"),
        *("frames", "image_path", "image_paths", "img", "image_url", "image_file", "picture"),
        *("tools", "functions"),
    ],
)
def test_what_else_there_is_to_see_hear_or_call_is_refused_by_its_key(form: str, key: str):
    with pytest.raises(FaultyRecord, match=f'"{key}"') as refused:
        conversation_of({**FORMS[form], key: "a.bin"})
    assert refused.value.kind == "unsupported"
    for nothing in (None, "", []):
        assert conversation_of({**FORMS[form], key: nothing}) == conversation_of(FORMS[form])


@pytest.mark.parametrize(
    "note",
    [
        {"source": "coco"},
        {"image_id": 7, "image_size": [3, 4], "video_id": "x", "image_source": "coco"},
        {"width": 3, "height": 4, "model": "", "has_image": True, "data_type": "vqa"},
    ],
)
def test_notes_about_a_record_change_nothing(note: dict[str, Any]):
    assert conversation_of({"conversations": SAID, **note}) == conversation_of(
        {"conversations": SAID}
    )


def test_images_under_two_keys_are_refused_unless_they_are_the_same(tmp_path: Path):
    said = [{"from": "human", "value": "<image>\nWhat?"}, SAID[1]]
    with pytest.raises(FaultyRecord, match='"image" and "images"'):
        conversation_of({"image": "a.png", "images": ["b.png"], "conversations": said})
    same = conversation_of({"image": "a.png", "images": ["a.png"], "conversations": said})
    assert len(same.pictures) == 1
    none = conversation_of({"image": "a.png", "images": [], "conversations": said})
    assert len(none.pictures) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"weight": 0},
        {"train": False},
        {"loss": False},
        {"tool_calls": [{"name": "f"}]},
        {"video": "a.mp4"},
        {"image": "a.png"},
    ],
)
def test_keys_of_a_turn_that_say_what_is_learnt_or_seen_are_refused(more: dict[str, Any]):
    with pytest.raises(FaultyRecord, match="turn 2") as refused:
        conversation_of({"conversations": [SAID[0], {**SAID[1], **more}]})
    assert refused.value.kind == "unsupported"


@pytest.mark.parametrize("more", [{"weight": 1}, {"train": True}, {"tool_calls": []}, {"id": 3}])
def test_keys_of_a_turn_that_say_what_is_done_anyway_are_taken(more: dict[str, Any]):
    made = conversation_of({"conversations": [SAID[0], {**SAID[1], **more}]})
    assert made == conversation_of({"conversations": SAID})


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "whole", [{"data": [{"conversations": SAID}]}, {"version": 1, "records": []}, {"a": {"b": 1}}]
)
def test_a_file_that_is_one_object_is_said_to_be_one(tmp_path: Path, whole: Any, indent: Any):
    file = tmp_path / "d.json"
    file.write_text(json.dumps(whole, indent=indent))
    with pytest.raises(InputError, match="one JSON object") as refused:
        open_records(file)
    assert ("'data'" in str(refused.value)) == ("data" in whole)


def test_a_record_alone_is_a_line_or_said_to_be_an_object(tmp_path: Path):
    file = tmp_path / "d.json"
    file.write_text(json.dumps({"conversations": SAID}) + "\n")
    assert len(open_records(file)) == 1
    file.write_text(json.dumps({"conversations": SAID}, indent=1))
    with pytest.raises(InputError, match="one JSON object"):
        open_records(file)


def test_an_empty_list_holds_nothing_to_train_on(tmp_path: Path):
    file = tmp_path / "d.json"
    for written in ("[]", " [\n]\n"):
        file.write_text(written)
        with pytest.raises(InputError, match="empty list"):
            open_records(file)
    with pytest.raises(InputError, match="no records"):
        open_records([])
