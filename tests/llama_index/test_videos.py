"""Videos in LlamaIndex's messages."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.base.llms.types import ChatMessage, TextBlock, VideoBlock

from llavakit import Video, load
from llavakit.errors import UnsupportedContentError
from llavakit.llama_index import LLaVA
from tests.families import tiny_family
from tests.videos import video

DATA = video(1, 8, 16, 16)


def asked(block: VideoBlock) -> list[ChatMessage]:
    return [ChatMessage(role="user", blocks=[block, TextBlock(text="What?")])]


def test_a_video_block_is_a_video(tmp_path: Path, llm, fake):
    file = tmp_path / "a.mkv"
    file.write_bytes(DATA)
    with file.open("rb") as opened:
        for block in (
            VideoBlock(video=DATA),
            VideoBlock(path=file),
            VideoBlock(video=opened),
            VideoBlock(url="https://example.org/a.mp4"),
            VideoBlock(video=DATA, fps=2),
        ):
            llm.chat(asked(block))
    assert [one.messages[0].videos[0] for one in fake.requests] == [
        Video(DATA),
        Video(file),
        Video(DATA),
        Video("https://example.org/a.mp4", from_url_field=True),
        Video(DATA, fps=2),
    ]


async def test_a_model_that_takes_videos_sees_them(tmp_path: Path):
    path = tiny_family(tmp_path, "onevision").path
    llm = LLaVA(model=str(path), temperature=0, max_tokens=8)
    message = asked(VideoBlock(video=DATA))
    direct = load(path).ask(Video(DATA), "What?", max_tokens=8)
    assert llm.chat(message).message.content == direct
    assert (await llm.achat(message)).message.content == direct
    assert [*llm.stream_chat(message)][-1].message.content == direct
    assert llm.chat(asked(VideoBlock(video=video(2, 8, 16, 16)))).message.content != direct


def test_a_model_that_takes_none_refuses_a_video_by_name():
    with pytest.raises(UnsupportedContentError, match="no videos"):
        LLaVA(model="demo").chat(asked(VideoBlock(video=DATA)))
