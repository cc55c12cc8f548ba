"""Videos on the server: blocks of vLLM's and Hugging Face's notation, and their fences."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import llavakit
from llavakit import Message, SamplingParams, Video
from llavakit.serving import ServerSettings, create_app
from tests.families import tiny_family
from tests.videos import video

DATA = video(1, 8, 16, 16)
TEXT = base64.b64encode(DATA).decode()
URI = f"data:video/mp4;base64,{TEXT}"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory):
    path: Path = tiny_family(tmp_path_factory.mktemp("onevision"), "onevision").path
    backend = llavakit.load(path)
    backend.generate([Message("user", "hi")], SamplingParams(max_tokens=1))  # loads it
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def client(backend: llavakit.Backend):
    settings = ServerSettings(model_name="m", warm_up=False, max_images=2)
    with TestClient(create_app(backend, settings)) as client:
        yield client


def body(*blocks: dict[str, object], **more: object) -> dict[str, object]:
    content = [*blocks, {"type": "text", "text": "What?"}]
    return {
        "model": "m",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 8,
        **more,
    }


def ask(client: TestClient, *blocks: dict[str, object]):
    return client.post("/v1/chat/completions", json=body(*blocks))


@pytest.mark.parametrize(
    "block",
    [
        {"type": "video_url", "video_url": {"url": URI}},
        {"type": "video_url", "video_url": URI},
        {"type": "video", "video": URI},
        {"type": "video", "base64": TEXT, "mime_type": "video/mp4"},
        {"type": "video", "url": URI},
    ],
)
def test_a_video_is_answered_as_by_the_backend(block, client, backend):
    answered = ask(client, block)
    assert answered.status_code == 200, answered.text
    expected = backend.ask(Video(DATA), "What?", max_tokens=8)
    assert answered.json()["choices"][0]["message"]["content"] == expected


def test_frames_may_be_asked_for(client, backend):
    few = ask(client, {"type": "video_url", "video_url": URI, "num_frames": 2}).json()["usage"]
    all_of_them = ask(client, {"type": "video_url", "video_url": URI}).json()["usage"]
    assert all_of_them["prompt_tokens"] - few["prompt_tokens"] == 6


def test_tokens_are_counted(client):
    block = {"type": "video_url", "video_url": URI}
    answer = ask(client, block).json()
    asked = {"model": "m", "messages": body(block)["messages"]}
    counted = client.post("/tokenize", json=asked).json()
    assert counted["count"] == answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("block", "status", "code"),
    [
        ({"type": "video_url", "video_url": "data:;base64,AAAA"}, 400, "invalid_video"),
        ({"type": "video_url", "video_url": "/etc/passwd"}, 400, "source_not_allowed"),
        ({"type": "video_url", "video_url": "http://127.0.0.1/a.mp4"}, 400, "source_not_allowed"),
        ({"type": "video_url", "video_url": {}}, 400, None),
        ({"type": "video", "video": URI, "url": URI}, 400, "invalid_value"),
        ({"type": "video_url", "video_url": URI, "fps": 1, "num_frames": 2}, 400, "invalid_value"),
        ({"type": "video_url", "video_url": URI, "nframes": 2}, 400, None),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_place(block, status, code, client):
    answered = ask(client, block)
    assert answered.status_code == status, answered.text
    error = answered.json()["error"]
    assert code is None or error["code"] == code
    assert error["param"].startswith("messages")


def test_videos_count_as_images_do(client):
    block = {"type": "video_url", "video_url": URI}
    assert ask(client, block, block, block).json()["error"]["code"] == "too_many_images"


def test_a_model_that_takes_no_videos_says_so():
    settings = ServerSettings(model_name="m", warm_up=False)
    with TestClient(create_app(llavakit.load("demo"), settings)) as client:
        while ask(client).status_code == 503:  # it is loading
            time.sleep(0.05)
        error = ask(client, {"type": "video_url", "video_url": URI}).json()["error"]
    assert error["code"] == "unsupported_content"
    assert "no videos" in error["message"]


def test_a_client_of_llavakit_sends_videos_by_value():
    from llavakit.remote.pictures import data_uri
    from llavakit.sources import SourcePolicy

    assert data_uri(Video(DATA), SourcePolicy()).endswith(TEXT)
    with pytest.raises(llavakit.errors.UnsupportedContentError, match="leave num_frames"):
        data_uri(Video(DATA, num_frames=2), SourcePolicy())
