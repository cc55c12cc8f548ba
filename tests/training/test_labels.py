"""Which tokens are learnt, held against the masks of the original implementation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from llavakit.errors import CheckpointError, MessageError, ParameterError
from llavakit.model.chat_template import prompt_tokenizer
from llavakit.model.loader import load_reader
from llavakit.model.original.tokenizer import ChunkedPrompts, read_tokenizer
from llavakit.prompts.conversation import Turn
from llavakit.prompts.templates import TEMPLATES, template
from llavakit.training.data import conversation_of
from llavakit.training.labels import IGNORED, LabelledTokens, label
from llavakit.values import Image, Text
from tests.original import FIXTURES, PARITY
from tests.tiny import TinyModel

GOLDEN = json.loads((PARITY / "labels.json").read_text())


@dataclass(frozen=True)
class Case:
    """One golden case: a conversation, how it is written, and the original's mask."""

    number: int
    said: dict[str, Any]

    @property
    def silently_masked(self) -> bool:
        """Whether the original threw the whole sample away with nothing but a printed line."""
        return bool(self.said.get("warn"))

    def __str__(self) -> str:
        said = self.said
        return f"{self.number}-{said['version']}-sample{said['sample']}-legacy{said['legacy']}"

    def prompts(self) -> ChunkedPrompts:
        marks = "<im_start><image><im_end>" if self.said["im_start_end"] else "<image>"
        return ChunkedPrompts(
            _tokenizer(self.said["legacy"]), template(self.said["version"]), marks
        )

    def labelled(self, prompts: ChunkedPrompts) -> LabelledTokens:
        sample = GOLDEN["data"][self.said["sample"]]
        pictures = sum("<image>" in turn["value"] for turn in sample)
        record = {"conversations": sample, "image": ["picture.png"] * pictures}
        return label(prompts, conversation_of(record, assistant_first=True).turns)


@cache
def _tokenizer(legacy: bool) -> Any:
    return read_tokenizer(FIXTURES / f"tok-legacy-{legacy}", [], fast=False)


CASES = [Case(number, said) for number, said in enumerate(GOLDEN["cases"])]
RIGHT = [case for case in CASES if "error" not in case.said]


def _with_pictures(ids: tuple[int, ...], prompts: ChunkedPrompts) -> list[int]:
    return [-200 if one == prompts.image_id else one for one in ids]


@pytest.mark.parametrize("case", RIGHT, ids=str)
def test_tokens_are_those_that_the_original_trained_on(case: Case):
    prompts = case.prompts()
    assert _with_pictures(case.labelled(prompts).ids, prompts) == case.said["input_ids"]


@pytest.mark.parametrize("case", [c for c in RIGHT if not c.silently_masked], ids=str)
def test_masks_are_those_of_the_original(case: Case):
    assert list(case.labelled(case.prompts()).labels) == case.said["labels"]


@pytest.mark.parametrize("case", [c for c in RIGHT if c.silently_masked], ids=str)
def test_what_the_original_masked_silently_is_learnt(case: Case):
    """The golden mask is all -100 there; the answers, and only they, are learnt here."""
    assert set(case.said["labels"]) == {IGNORED}
    prompts = case.prompts()
    made = case.labelled(prompts)
    end = template(case.said["version"]).stops[0]
    expected = [
        turn["value"] + end
        for turn in GOLDEN["data"][case.said["sample"]]
        if turn["from"] == "gpt" and turn["value"] != "skipped first"
    ]
    assert [one.strip() for one in _learnt_texts(made, prompts)] == expected


def _learnt_texts(made: LabelledTokens, prompts: Any) -> Iterator[str]:
    stretch: list[int] = []
    for one in (*made.labels, IGNORED):
        if one != IGNORED:
            stretch.append(one)
        elif stretch:
            yield prompts.tokenizer.decode(stretch, skip_special_tokens=False)
            stretch = []


@pytest.mark.parametrize("case", [c for c in CASES if "error" in c.said], ids=str)
def test_a_caption_needs_one_picture_and_one_answer(case: Case):
    with pytest.raises(MessageError, match="one question with one image"):
        case.labelled(case.prompts())


TALK = (
    Turn("system", (Text("Be brief."),)),
    Turn("user", (Image("a.png"), Text("What is it?"))),
    Turn("assistant", (Text("A cat."),)),
    Turn("user", (Text("Colour?"),)),
    Turn("assistant", (Text("Black and white."),)),
)


# The original's masks of its first templates (###) lie behind the turns by some tokens.
EXACT = [n for n, t in TEMPLATES.items() if not t.tagged and t.stops[0] not in ("###", "\n")]


@pytest.mark.parametrize("name", EXACT)
def test_every_template_learns_each_answer_with_its_end_mark(tiny: TinyModel, name: str):
    prompts = load_reader(tiny.path, conv_mode=name).tokenizer
    made = label(prompts, TALK)
    end = TEMPLATES[name].stops[0]
    learnt = ["".join(one.split(" ")) for one in _learnt_texts(made, prompts)]
    assert learnt == [f"Acat.{end}", f"Blackandwhite.{end}"]


def test_the_demo_models_own_template_learns_each_answer(demo_dir):
    prompts = load_reader(demo_dir).tokenizer
    made = label(prompts, TALK)
    assert list(_learnt_texts(made, prompts)) == [" A cat.</s>", " Black and white.</s>"]
    asked = prompts.encode(TALK[:2])
    assert list(made.ids[: len(asked)]) == asked


def test_words_that_look_like_special_tokens_are_learnt_as_words(tiny: TinyModel):
    prompts = load_reader(tiny.path, conv_mode="v1").tokenizer
    turns = (Turn("user", (Text("Say it"),)), Turn("assistant", (Text("a</s>b<image>"),)))
    made = label(prompts, turns)
    assert made.ids.count(prompts.tokenizer.eos_token_id) == 1
    assert prompts.image_id not in made.ids


def test_a_chat_template_without_end_marks_is_refused(tiny: TinyModel):
    tokenizer = load_reader(tiny.path).tokenizer.tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' }}{{ m['content'][0]['text'] }} {% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    prompts = prompt_tokenizer(tokenizer, 3, path=tiny.path, conv_mode=None, name="x")
    turns = (Turn("user", (Text("Hi"),)), Turn("assistant", (Text("Hello"),)))
    with pytest.raises(CheckpointError, match="no end mark"):
        label(prompts, turns)


def test_a_chat_template_that_hides_where_answers_begin_is_refused(tiny: TinyModel):
    prompts = load_reader(tiny.path).tokenizer  # writes ASSISTANT: behind every conversation
    with pytest.raises(CheckpointError, match="conv_mode"):
        label(prompts, TALK[1:3])


def test_tagged_templates_are_for_answering_only(tiny: TinyModel):
    with pytest.raises(ParameterError, match="conv_mode=v1"):
        label(load_reader(tiny.path, conv_mode="v1_mmtag").tokenizer, TALK)
