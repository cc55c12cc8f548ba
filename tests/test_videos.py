"""Videos from bytes: which frames, under which fences, and what is refused."""

from __future__ import annotations

import io
import json
import struct
import sys
from base64 import b64decode, b64encode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from llavakit import Image, Message, SourcePolicy, Text, Video
from llavakit.errors import (
    ImageTooLargeError,
    MissingDependencyError,
    ParameterError,
    SourceNotAllowedError,
    UnsupportedContentError,
    UnsupportedImageError,
    VideoError,
    VideoTooLargeError,
)
from llavakit.images import open_picture
from llavakit.videos import FrameSampling, Length, length_of, open_clip
from tests.videos import encoded, noise, video

FORMATS = [
    ("matroska", "ffv1", "bgr0"),
    ("mp4", "mpeg4", "yuv420p"),
    ("mov", "mpeg4", "yuv420p"),
    ("webm", "libvpx", "yuv420p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("avi", "mpeg4", "yuv420p"),
    ("mpegts", "mpeg2video", "yuv420p"),
    ("mpeg", "mpeg2video", "yuv420p"),
    ("flv", "flv", "yuv420p"),
    ("asf", "wmv2", "yuv420p"),
    ("gif", "gif", "rgb8"),
]


@given(total=st.integers(1, 5000), frames=st.integers(1, 64))
def test_frames_are_those_that_transformers_samples(total: int, frames: int):
    ours = FrameSampling(frames=frames).indices(Length(total, 30.0))
    theirs = default_sample_indices_fn(
        VideoMetadata(total_num_frames=total, fps=30.0), num_frames=min(frames, total)
    )
    assert ours == theirs.tolist()


@given(
    total=st.integers(1, 5000),
    rate=st.sampled_from([10.0, 24000 / 1001, 25.0, 30.0]),
    fps=st.sampled_from([0.5, 1, 2, 7.5]),
)
def test_frames_by_the_second_are_those_that_transformers_samples(
    total: int, rate: float, fps: float
):
    theirs = default_sample_indices_fn(VideoMetadata(total_num_frames=total, fps=rate), fps=fps)
    expected = theirs.tolist() or [0]  # before 5.23 it sampled nothing of a very short clip
    assert FrameSampling(fps=fps).indices(Length(total, rate)) == expected


GOLDEN = json.loads((Path(__file__).parent / "data" / "videos.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["num_frames"])
def test_golden_frames_of_transformers_video_processors(case: str):
    total, frames = map(int, case.split(":"))
    found = FrameSampling(frames=frames).indices(Length(total, 30.0))
    assert found == GOLDEN["num_frames"][case]


@pytest.mark.parametrize("case", GOLDEN["fps"])
def test_golden_frames_by_the_second(case: str):
    total, rate, fps = map(float, case.split(":"))
    found = FrameSampling(fps=fps).indices(Length(int(total), rate))
    assert found == GOLDEN["fps"][case]


@pytest.mark.parametrize("kind", GOLDEN["processors"])
def test_golden_pixels_are_met_within_a_grey_level(kind: str, tmp_path: Path):
    """torchvision, which transformers uses for videos, rounds a resized frame otherwise."""
    from llavakit.model.videos import VideoPixels, VideoProcessor

    golden = GOLDEN["processors"][kind]
    settings, shape = golden["settings"], golden["shape"]
    pixels = np.random.default_rng(5).integers(0, 256, (20, 32, 48, 3), dtype=np.uint8)
    clip = open_clip(encoded(pixels, "matroska"))
    indices = FrameSampling(frames=settings["num_frames"]).indices(clip.length)
    assert indices == golden["frames"]
    processor = VideoProcessor(tmp_path, settings, (shape[2] // 8, shape[3] // 8), 8)
    made = VideoPixels("x", clip, indices, processor).inputs()["pixel_values_videos"].numpy()
    mean, std = (np.array(settings[n])[:, None, None] for n in ("image_mean", "image_std"))
    expected = np.frombuffer(b64decode(golden["levels"]), np.uint8).reshape(shape).astype(float)
    apart = np.abs((made * std + mean) * 255 - expected)
    assert apart.max() < 1.1 and (apart > 0.5).mean() < 0.02


def test_without_a_wish_all_frames_are_looked_at_and_of_a_short_video_all():
    assert FrameSampling().indices(Length(3, None)) == [0, 1, 2]
    assert FrameSampling(frames=8).indices(Length(3, None)) == [0, 1, 2]


def test_frames_by_the_second_of_a_file_without_a_rate_are_refused():
    with pytest.raises(VideoError, match="num_frames instead of fps"):
        FrameSampling(fps=1).indices(Length(3, None))


@pytest.mark.parametrize("wrong", [{"num_frames": 0}, {"num_frames": 1.5}, {"fps": 0}])
def test_wrong_numbers_of_frames_are_refused_where_they_are_given(wrong: dict[str, float]):
    with pytest.raises(ParameterError):
        Video("x.mp4", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="not both"):
        Video("x.mp4", num_frames=3, fps=2)


def test_decoded_frames_are_those_of_the_indices_pixel_for_pixel():
    pixels = noise(1, 20)
    frames = list(open_clip(encoded(pixels, "matroska")).frames([0, 7, 8, 19]))
    assert all(
        np.array_equal(np.asarray(one), pixels[at])
        for one, at in zip(frames, [0, 7, 8, 19], strict=True)
    )


@pytest.mark.parametrize(("container", "codec", "pix_fmt"), FORMATS)
def test_containers_that_people_have_are_counted_and_decoded(
    container: str, codec: str, pix_fmt: str
):
    clip = open_clip(encoded(noise(1, 12), container, codec, pix_fmt=pix_fmt, rate=25))
    assert clip.length == Length(12, 25.0)
    assert len(list(clip.frames(range(12)))) == 12


def test_a_turned_video_is_upright():
    pixels = np.zeros((2, 32, 48, 3), np.uint8)
    pixels[:, :, :24, 0] = 255  # its left half is red
    data = encoded(pixels, "mp4", "mpeg4", pix_fmt="yuv420p")
    plain = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    clockwise = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    at = data.index(plain, data.index(b"tkhd"))
    frame = next(open_clip(data[:at] + clockwise + data[at + len(plain) :]).frames([0]))
    assert frame.size == (32, 48)
    seen = np.asarray(frame).astype(int)
    assert seen[:16, :, 0].mean() > 200 > 50 > seen[32:, :, 0].mean()  # left became top


def test_sources_are_those_of_images(tmp_path: Path):
    data = video()
    file = tmp_path / "a.mkv"
    file.write_bytes(data)
    text = b64encode(data).decode()
    for source in (data, file, str(file), file.as_uri(), text, f"data:video/webm;base64,{text}"):
        assert length_of(source).frames == 20
    with file.open("rb") as opened:
        assert Video(opened).source == data
    assert Video(bytearray(data)) == Video(data) == Video(memoryview(data))
    with pytest.raises(SourceNotAllowedError):
        open_clip(str(file), from_url_field=True)
    with pytest.raises(SourceNotAllowedError):
        open_clip(file, SourcePolicy(allow_files=False))
    with pytest.raises(SourceNotAllowedError):
        open_clip("http://example.com/a.mp4", SourcePolicy(allow_urls=False))


@pytest.mark.parametrize(
    ("caps", "says"),
    [
        ({"max_video_seconds": 1.5}, "longer than 1.5 seconds"),
        ({"max_video_frames": 19}, "more than 19 frames"),
        ({"max_pixels": 100}, "A frame is too large"),
        ({"max_side": 40}, "A frame is too large"),
    ],
)
def test_caps_hold_before_anything_is_decoded(caps: dict[str, float], says: str):
    with pytest.raises(VideoTooLargeError, match=says):
        open_clip(video(), SourcePolicy(**caps))  # type: ignore[arg-type]


def test_the_cap_on_bytes_is_that_of_every_source():
    with pytest.raises(ImageTooLargeError, match="max_bytes"):
        open_clip(video(), SourcePolicy(max_bytes=1000))


def test_decoding_ends_in_time():
    data, hurried = video(frames=200), SourcePolicy(max_video_decode_seconds=1e-9)
    with pytest.raises(VideoTooLargeError, match="max_video_decode_seconds"):
        open_clip(data, hurried)
    with pytest.raises(VideoTooLargeError, match="max_video_decode_seconds"):
        list(replace(open_clip(data), policy=hurried).frames([199]))


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.7])
@pytest.mark.parametrize(("container", "codec", "pix_fmt"), FORMATS)
def test_truncated_files_end_in_one_sentence_or_in_frames(
    container: str, codec: str, pix_fmt: str, keep: float
):
    data = encoded(noise(1, 12), container, codec, pix_fmt=pix_fmt)
    try:
        clip = open_clip(data[: int(len(data) * keep)])
        assert list(clip.frames(range(clip.length.frames)))
    except VideoError as error:
        assert str(error).endswith(".")


@given(st.data())
def test_damaged_files_end_in_one_sentence_or_in_frames(data: st.DataObject):
    whole = bytearray(_SMALL)
    for _ in range(data.draw(st.integers(1, 20))):
        whole[data.draw(st.integers(8, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        clip = open_clip(bytes(whole))
        list(clip.frames(range(min(3, clip.length.frames))))
    except VideoError as error:
        assert str(error).endswith(".")


_SMALL = encoded(noise(2, 3), "mp4", "mpeg4", pix_fmt="yuv420p")


@pytest.mark.parametrize(
    "playlist",
    [
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b'<?xml version="1.0"?><MPD><BaseURL>http://127.0.0.1/</BaseURL></MPD>',
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    ],
)
def test_playlists_are_never_opened(playlist: bytes):
    with pytest.raises(VideoError, match="no known container"):
        open_clip(playlist)


def test_what_is_no_video_is_named():
    png = io.BytesIO()
    PILImage.new("RGB", (4, 4)).save(png, "PNG")
    for data, says in [
        (png.getvalue(), "an image"),
        (b"", "empty"),
        (b"%PDF-1.7", "a PDF"),
        (b"<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"ID3 music", "sound"),
    ]:
        with pytest.raises(VideoError, match=says):
            open_clip(data)
    with pytest.raises(UnsupportedImageError, match="wrap it in"):
        open_picture(video())


def test_what_no_video_can_be_made_from_is_refused_at_once():
    with pytest.raises(UnsupportedContentError, match="send frames that you have already"):
        Video([PILImage.new("RGB", (4, 4))])


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"llavakit\[video\]"):
        open_clip(video())


def test_messages_hold_videos_in_their_order():
    message = Message("user", ["a", Video("1.mp4"), Image("2.png"), Video("3.mp4")])
    assert message.videos == (Video("1.mp4"), Video("3.mp4"))
    assert message.images == (Image("2.png"),)
    assert message.content[0] == Text("a")
    assert Video("1.mp4") != Video("1.mp4", num_frames=3)
