"""Videos in LangChain's messages, in every dialect's notation."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage, messages_from_dict, messages_to_dict

from llavakit import Video, load
from llavakit.errors import ParameterError, UnsupportedContentError
from llavakit.langchain import ChatLLaVA, plain_messages
from llavakit.testing import FakeBackend
from tests.families import tiny_family
from tests.videos import video

DATA, OTHER = video(1, 8, 16, 16), video(2, 8, 16, 16)
TEXT = b64encode(DATA).decode()
URL = "https://example.org/a.mp4"
ADDRESS = Video(URL, from_url_field=True)


@pytest.fixture
def fake() -> FakeBackend:
    return FakeBackend(["ok"])


@pytest.fixture
def model(fake: FakeBackend) -> ChatLLaVA:
    return ChatLLaVA(backend=fake)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"type": "video", "base64": TEXT, "mime_type": "video/webm"}, Video(DATA)),
        ({"type": "video", "url": URL}, ADDRESS),
        ({"type": "video_url", "video_url": {"url": URL}}, ADDRESS),
        ({"type": "video_url", "video_url": URL}, ADDRESS),
        ({"type": "video", "video": URL, "fps": 2}, Video(URL, fps=2, from_url_field=True)),
        (
            {"type": "video_url", "video_url": {"url": URL, "num_frames": 3}},
            Video(URL, num_frames=3, from_url_field=True),
        ),
        ({"type": "video", "source_type": "base64", "data": TEXT}, Video(DATA)),
        ({"type": "media", "mime_type": "video/webm", "data": TEXT}, Video(DATA)),
        ({"type": "file", "base64": TEXT, "mime_type": "video/webm"}, Video(DATA)),
        ({"type": "video", "source": {"type": "base64", "data": TEXT}}, Video(DATA)),
        ({"type": "video", "url": f"data:video/webm;base64,{TEXT}"}, Video(DATA)),
        ({"type": "non_standard", "value": {"type": "video", "url": URL}}, ADDRESS),
    ],
)
def test_a_video_block_of_any_dialect_is_a_video(block, expected, model, fake):
    model.invoke([HumanMessage(["look", block])])
    seen = fake.requests[0].messages[0].videos
    assert seen == (expected,)


def test_paths_bytes_and_open_files_are_videos(tmp_path: Path, model, fake):
    file = tmp_path / "a.mkv"
    file.write_bytes(DATA)
    with file.open("rb") as opened:
        for source in ({"path": str(file)}, {"path": file}, {"data": DATA}, {"video": opened}):
            model.invoke([HumanMessage([{"type": "video", **source}, "What?"])])
    assert [one.messages[0].videos for one in fake.requests] == [(Video(DATA),)] * 4


def test_both_ways_to_say_which_frames_are_refused(model):
    with pytest.raises(ParameterError, match="not both"):
        model.invoke([HumanMessage([{"type": "video", "url": URL, "fps": 1, "num_frames": 2}])])


def test_a_cached_answer_is_that_of_the_files_content(tmp_path: Path, model, fake):
    file = tmp_path / "a.mkv"
    model = model.model_copy(update={"cache": InMemoryCache()})
    for data in (DATA, OTHER, DATA):
        file.write_bytes(data)
        model.invoke([HumanMessage([{"type": "video", "path": str(file)}, "What?"])])
    assert len(fake.requests) == 2
    model.invoke([HumanMessage([{"type": "video", "path": str(file), "num_frames": 2}, "What?"])])
    assert len(fake.requests) == 3


def test_a_video_in_plain_data_can_be_stored_and_sent_again(model, fake):
    message = HumanMessage([{"type": "video", "data": DATA, "fps": 2}, "What?"])
    stored = json.dumps(messages_to_dict(plain_messages([message])))
    model.invoke(messages_from_dict(json.loads(stored)))
    assert fake.requests[0].messages[0].videos == (Video(DATA, fps=2),)


@pytest.fixture(scope="module")
def onevision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("onevision"), "onevision").path


def test_a_model_that_takes_videos_says_so_and_sees_them(onevision: Path):
    llm = ChatLLaVA(model=str(onevision), temperature=0, max_tokens=8)
    assert llm.profile["video_inputs"] is True
    ask = [HumanMessage([{"type": "video", "base64": TEXT}, {"type": "text", "text": "What?"}])]
    other = [HumanMessage([{"type": "video", "data": OTHER}, "What?"])]
    answer = llm.invoke(ask)
    direct = load(onevision).ask(Video(DATA), "What?", max_tokens=8)
    assert answer.content == direct
    assert "".join(chunk.content for chunk in llm.stream(ask)) == direct
    assert llm.invoke(other).content != direct
    assert llm.get_num_tokens_from_messages(ask) == answer.usage_metadata["input_tokens"]


def test_a_model_that_takes_none_refuses_a_video_by_name():
    llm = ChatLLaVA(model="demo")
    assert llm.profile["video_inputs"] is False
    with pytest.raises(UnsupportedContentError, match="no videos"):
        llm.invoke([HumanMessage([{"type": "video", "base64": TEXT}, "What?"])])
