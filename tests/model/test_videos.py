"""Models that take videos: tiny random ones answer as transformers does, frame for frame."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

import llavakit
from llavakit import Image, Message, SamplingParams, Text, Video
from llavakit.errors import CheckpointError, ContextLengthError, UnsupportedContentError
from llavakit.model.loader import load_reader
from llavakit.prompts.conversation import Turn
from llavakit.videos import Length
from tests.engine.oracle import submitted
from tests.families import TinyFamily, tiny_family
from tests.videos import Pixels, encoded, noise

FRAMES = 6
"""What the tiny checkpoints' files name."""
SIDE = {"next-video": 16, "onevision": 19}
MEANS = {
    "next-video": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "onevision": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
MARK = "\x01"
Part = str | Pixels | PILImage.Image
Said = tuple[str, list[Part]]


def frames(seed: int, count: int, side: int) -> Pixels:
    return noise(seed, count, 24, 24)[:, :side, :side]


def image(seed: int) -> PILImage.Image:
    return PILImage.fromarray(noise(seed, 1, 40, 16)[0])


@pytest.fixture(scope="module", params=list(SIDE))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyFamily:
    made = tiny_family(tmp_path_factory.mktemp("family"), request.param)
    write_settings(made.path, request.param, num_frames=FRAMES)
    return made


def write_settings(path: Path, key: str, **more: Any) -> None:
    side = SIDE[key]
    mean, std = MEANS[key]
    settings = {
        "size": {"height": side, "width": side},
        "do_center_crop": False,
        "image_mean": mean,
        "image_std": std,
        "do_sample_frames": True,
        **more,
    }
    (path / "video_preprocessor_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def key(family: TinyFamily) -> str:
    return "next-video" if family.family.model == "llava_next_video" else "onevision"


@pytest.fixture(scope="module")
def backend(family: TinyFamily) -> Iterator[llavakit.Backend]:
    backend = llavakit.load(family.path, prefill_chunk=24)
    yield backend
    backend.close()


def conversations(side: int) -> dict[str, list[Said]]:
    one, two, short = frames(1, 20, side), frames(2, 20, side), frames(3, 4, side)
    return {
        "words": [("user", ["Hi"])],
        "an image": [("user", [image(1), "What?"])],
        "a video": [("user", [one, "What happens?"])],
        "a short video": [("user", [short, "What happens?"])],
        "two videos": [("user", [one, two, "Which?"])],
        "an image and a video": [("user", [image(2), two, "Is it in there?"])],
        "two turns": [
            ("user", [one, "What?"]),
            ("assistant", ["A."]),
            ("user", ["And then?"]),
        ],
        "a video in each turn": [
            ("user", [one, "What?"]),
            ("assistant", ["A."]),
            ("user", [two, "And here?"]),
        ],
    }


def messages(said: Sequence[Said]) -> list[Message]:
    def part(one: Part) -> Text | Image | Video:
        if isinstance(one, str):
            return Text(one)
        return Image(one) if isinstance(one, PILImage.Image) else Video(lossless(one))

    return [Message(role, [part(one) for one in parts]) for role, parts in said]


def lossless(pixels: Pixels) -> bytes:
    return encoded(pixels, "matroska")


def sampled(pixels: Pixels) -> Pixels:
    """The frames that transformers' sampling takes."""
    metadata = VideoMetadata(total_num_frames=len(pixels), fps=10.0)
    return pixels[default_sample_indices_fn(metadata, num_frames=min(FRAMES, len(pixels)))]


def expected(family: TinyFamily, key: str, said: Sequence[Said], max_tokens: int) -> list[int]:
    """Greedy tokens of ``transformers.generate``, its video inputs made here, in plain numpy."""
    kinds = {str: "text", np.ndarray: "video", PILImage.Image: "image"}
    content = [
        {"role": role, "content": [{"type": kinds[type(one)], "text": one} for one in parts]}
        for role, parts in said
    ]
    flat = [one for _, parts in said for one in parts]
    pictures = [one for one in flat if isinstance(one, PILImage.Image)]
    videos = [sampled(one) for one in flat if isinstance(one, np.ndarray)]
    text = family.processor.apply_chat_template(content, tokenize=False, add_generation_prompt=True)
    text = text.replace("<video>", MARK)  # the processor would count them
    inputs = family.processor(
        images=family.images(pictures) if pictures else None, text=text, return_tensors="pt"
    )
    mark = family.processor.tokenizer.encode(MARK, add_special_tokens=False)[-1]
    inputs = {name: value for name, value in inputs.items() if name != "attention_mask"}
    config = family.model.config
    patches = int(config.vision_config.image_size) // int(config.vision_config.patch_size)
    each = patches**2 // 4 if key == "next-video" else ((patches + 1) // 2) ** 2
    lengths = iter([len(one) * each + (key == "onevision") for one in videos])
    ids: list[int] = []
    for token in inputs["input_ids"][0].tolist():
        ids += [config.video_token_id] * next(lengths) if token == mark else [token]
    inputs["input_ids"] = torch.tensor([ids])
    if videos:
        mean, std = MEANS[key]
        made = [(one / 255.0 - np.array(mean)) / np.array(std) for one in videos]
        values = torch.tensor(np.stack(made), dtype=torch.float32).permute(0, 1, 4, 2, 3)
        inputs["pixel_values_videos"] = values
    with torch.inference_mode():
        out = family.model.generate(
            **inputs,
            max_new_tokens=max_tokens,
            do_sample=False,
            suppress_tokens=family.forbidden,
            pad_token_id=0,
        )
    tokens: list[int] = out[0, len(ids) :].tolist()
    return tokens


def test_all_conversations_at_once_are_answered_as_by_transformers(
    family: TinyFamily, key: str, backend: llavakit.Backend
):
    every = conversations(SIDE[key])
    running = [(said, *submitted(backend, messages(said), 16)) for said in every.values()]
    answers = set()
    for said, stream, sequence in running:
        list(stream)
        answer = sequence.tokens[sequence.prompt_length :]
        assert answer == expected(family, key, said, 16)
        answers.add(tuple(answer))
    assert len(answers) >= len(running) - 2, "the videos matter"
    assert backend.stats()["halved_steps"] == 0


def test_tokens_are_counted_as_they_are_computed(key: str, backend: llavakit.Backend):
    for said in conversations(SIDE[key]).values():
        answer = backend.generate(messages(said), SamplingParams(max_tokens=1, temperature=0))
        assert backend.count_tokens(messages(said)) == answer.usage.prompt_tokens


def test_a_video_that_is_asked_about_again_is_neither_decoded_nor_encoded(
    key: str, backend: llavakit.Backend
):
    said = messages([("user", [frames(9, 20, SIDE[key]), "What?"])])
    params = SamplingParams(max_tokens=4, temperature=0)
    first = backend.generate(said, params)
    encoded_before = backend.stats()["images_encoded"]
    assert backend.generate(said, params).text == first.text
    assert backend.stats()["images_encoded"] == encoded_before


def test_a_stream_says_what_generate_says(key: str, backend: llavakit.Backend):
    said = messages(conversations(SIDE[key])["two videos"])
    params = SamplingParams(max_tokens=16, temperature=0, logprobs=2)
    whole = backend.generate(said, params)
    chunks = list(backend.stream(said, params))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    streamed = [one.logprob for chunk in chunks for one in chunk.logprobs]
    assert streamed == pytest.approx([one.logprob for one in whole.logprobs], abs=1e-4)


def test_a_caller_may_say_how_many_frames_are_looked_at(key: str, backend: llavakit.Backend):
    data = lossless(frames(1, 20, SIDE[key]))

    def count(**sampling: Any) -> int:
        return backend.count_tokens([Message("user", [Video(data, **sampling), Text("?")])])

    assert count(num_frames=10) - count() == 10 - FRAMES
    assert count(fps=5) == count(num_frames=10)  # two seconds at 10 frames each
    assert count(num_frames=1000) == count(num_frames=20)


def test_the_same_video_in_flight_twice_is_decoded_once(family: TinyFamily, key: str):
    from llavakit.videos import open_clip

    preprocess = load_reader(family.path).videos
    assert preprocess is not None
    data = lossless(frames(1, 20, SIDE[key]))
    first, count = preprocess(Video(data), open_clip(data))
    assert preprocess(Video(data), open_clip(data))[0] is first
    assert preprocess(Video(data, num_frames=2), open_clip(data))[0] is not first
    assert len(first.inputs()["pixel_values_videos"]) == FRAMES == count - (key == "onevision")


def test_videos_between_words_stay_there(family: TinyFamily):
    prompts = load_reader(family.path).tokenizer
    turn = Message("user", [Text("One:"), Video("1.mp4"), Text("Two:"), Image("2.png"), Text("?")])
    rendered = prompts.render([Turn("user", turn.content)])
    places = [rendered.index(part) for part in ("One:", "<video>", "Two:", "<image>", "?")]
    assert places == sorted(places)
    assert prompts.encode([Turn("user", turn.content)]).count(prompts.video_id) == 1


def test_the_mark_of_a_video_that_a_user_types_is_text(family: TinyFamily):
    prompts = load_reader(family.path).tokenizer
    assert prompts.encode([Turn("user", (Text("<video> <image>"),))]).count(prompts.video_id) == 0


@pytest.mark.parametrize("name", ["llava_v1", "qwen_1_5"])
def test_a_named_template_writes_videos_too(family: TinyFamily, name: str):
    prompts = load_reader(family.path, conv_mode=name).tokenizer
    turn = Turn("user", (Video("1.mp4"), Image("1.png"), Text("?")))
    assert "<video>\n<image>\n?" in prompts.render([turn])


def test_without_a_number_in_its_files_a_checkpoint_looks_at_as_many_as_in_training(
    tmp_path: Path,
):
    made = tiny_family(tmp_path, "onevision")
    videos = load_reader(made.path).videos
    assert videos is not None
    assert len(videos._indices(Video("x"), Length(1000, 10.0))) == 32


def test_a_short_context_takes_fewer_frames_than_training(tmp_path: Path):
    made = tiny_family(tmp_path, "onevision")
    config = json.loads((made.path / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 40
    (made.path / "config.json").write_text(json.dumps(config))
    videos = load_reader(made.path).videos
    assert videos is not None
    assert videos.tokens(Video("x"), Length(1000, 10.0)) == 20


def test_settings_are_found_where_transformers_finds_them(tmp_path: Path):
    made = tiny_family(tmp_path, "next-video")
    (made.path / "preprocessor_config.json").write_text(
        json.dumps({**json.loads((made.path / "preprocessor_config.json").read_text()), "fps": 2})
    )

    def looked_at() -> int:
        videos = load_reader(made.path).videos
        assert videos is not None
        return len(videos._indices(Video("x"), Length(100, 10.0)))

    assert looked_at() == 20
    write_settings(made.path, "next-video", num_frames=3)
    assert looked_at() == 3
    nested = {"video_processor": {"num_frames": 5}}
    (made.path / "processor_config.json").write_text(json.dumps(nested))
    assert looked_at() == 5
    (made.path / "processor_config.json").write_text("[")
    with pytest.raises(CheckpointError, match="processor_config"):
        load_reader(made.path)


def test_frames_that_the_tower_was_not_made_for_are_refused(tmp_path: Path):
    made = tiny_family(tmp_path, "next-video")
    write_settings(made.path, "next-video", size={"height": 64, "width": 64})
    backend = llavakit.load(made.path)
    try:
        with pytest.raises(CheckpointError, match="64x64"):
            backend.ask(Video(lossless(frames(1, 4, 16))), "What?")
        assert backend.ask(image(1), "What?", max_tokens=2) is not None
    finally:
        backend.close()


@pytest.mark.parametrize("ask", ["generate", "count_tokens"])
def test_a_model_that_takes_no_videos_says_which_do(ask: str):
    said = [Message("user", [Video(lossless(frames(1, 4, 16))), Text("What?")])]
    backend = llavakit.load("demo")
    with pytest.raises(UnsupportedContentError, match="no videos; use one that does"):
        getattr(backend, ask)(said)


def test_a_video_beyond_the_context_is_refused_with_its_numbers(family: TinyFamily, key: str):
    backend = llavakit.load(family.path, context_length=20)
    try:
        with pytest.raises(ContextLengthError, match="holds 20"):
            backend.ask(Video(lossless(frames(1, 20, SIDE[key])), num_frames=20), "What?")
    finally:
        backend.close()


def test_a_resized_frame_is_that_of_the_checkpoints_own_processor_for_images(
    family: TinyFamily, key: str
):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    reader = load_reader(family.path)
    assert reader.videos is not None
    frame = PILImage.fromarray(noise(4, 1, 64, 48)[0])
    mean, std = MEANS[key]
    plain = CLIPImageProcessorPil(
        size={"height": SIDE[key], "width": SIDE[key]},
        do_center_crop=False,
        image_mean=mean,
        image_std=std,
    )(images=[frame], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(reader.videos.processor.frame(frame), plain)
