"""The original's templates: recorded prompts byte for byte, and laws that hold for all of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llavakit.errors import ParameterError
from llavakit.prompts.conversation import Turn, to_turns
from llavakit.prompts.templates import TEMPLATES, auto_template, named_template, template
from llavakit.values import Image, Message, Request, SamplingParams, Text, Tool

DATA = Path(__file__).parents[1] / "data" / "parity"
GOLDEN = json.loads((DATA / "prompts.json").read_text(encoding="utf-8"))
TYPED = [case for case in GOLDEN if "question" in case]
SENT = [case for case in GOLDEN if "gradio_tuple" in case]
LED = [
    case
    for case in TYPED
    if case["question"].startswith("<image>\n") and not TEMPLATES[case["template"]].tagged
]
PICTURE = Image("picture.png")
ADD = Tool("add", "Adds.", {"type": "object"})

names = pytest.mark.parametrize("name", TEMPLATES)


def label(case: dict) -> str:
    return f"{case['template']}: {case.get('question', 'picture')!r}"


def user(*parts: str | Image) -> Turn:
    return Turn("user", tuple(Text(part) if isinstance(part, str) else part for part in parts))


def assistant(text: str) -> Turn:
    return Turn("assistant", (Text(text),))


def system(text: str, *, adds: bool = False) -> Turn:
    return Turn("system", (Text(text),) if text else (), adds)


SUCCESSORS = {
    "llava_llama_3": (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nA?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nB.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nC?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "qwen_1_5": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nA?<|im_end|>\n"
        "<|im_start|>assistant\nB.<|im_end|>\n<|im_start|>user\nC?<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
}
SUCCESSORS["qwen_2"] = SUCCESSORS["qwen_1_5"]
"""Templates of LLaVA-NeXT and FastVLM, which the recorded cases do not have."""


@pytest.mark.parametrize("name", list(SUCCESSORS))
def test_the_templates_of_its_successors(name: str):
    turns = [system("Be brief."), user(PICTURE, "A?"), assistant("B."), user("C?")]
    assert template(name).render(turns) == SUCCESSORS[name]


def test_every_recorded_prompt_is_tried():
    assert len(TYPED) + len(SENT) == len(GOLDEN) == 48
    assert {case["template"] for case in GOLDEN} == set(TEMPLATES) - set(SUCCESSORS)


@pytest.mark.parametrize("case", TYPED, ids=label)
def test_a_prompt_whose_image_token_was_typed(case: dict):
    assert template(case["template"]).render([user(case["question"])]) == case["prompt"]


@pytest.mark.parametrize("case", SENT, ids=label)
def test_a_prompt_with_a_picture(case: dict):
    # These were recorded without the examples that v0 begins with.
    without = replace(template(case["template"]), examples=())
    assert without.render([user(PICTURE, "Describe it.")]) == case["prompt"]


@pytest.mark.parametrize("case", LED, ids=label)
def test_a_picture_is_written_as_its_token_was_typed(case: dict):
    turn = user(PICTURE, case["question"].removeprefix("<image>\n"))
    assert template(case["template"]).render([turn]) == case["prompt"]


@pytest.mark.parametrize("case", TYPED, ids=label)
def test_stop_strings(case: dict):
    stops = {case["stop_cli"], case["stop_web"]} - {None, ""}
    assert set(template(case["template"]).stops) == stops


@pytest.mark.parametrize(
    ("name", "expected"), json.loads((DATA / "autoconv.json").read_text("utf-8")).items()
)
def test_the_rule_by_name(name: str, expected: str):
    assert auto_template(name) == expected
    assert named_template(name) in (expected, None)


def test_a_name_that_tells_nothing():
    assert named_template("my-finetune") is None
    assert named_template("LLaVA-7b-v0") == "llava_v0"


def test_an_unknown_name():
    with pytest.raises(ParameterError, match=r"'vicuna-v1'; did you mean 'vicuna_v1'\?") as error:
        template("vicuna-v1")
    assert all(name in str(error.value) for name in TEMPLATES)
    with pytest.raises(ParameterError, match="the names are default"):
        template("?")


TURNS = [user(PICTURE, "A?"), assistant("B."), user("C?")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llava_v1", "USER: <image>\nA? ASSISTANT: B.</s>USER: C? ASSISTANT:"),
        ("llava_v0", "###Human: <image>\nA?###Assistant: B.###Human: C?###Assistant:"),
        ("mistral_instruct", "[INST] <image>\nA? [/INST] B. </s>[INST] C? [/INST]"),
        ("llava_llama_2", "\n\n<image>\nA? [/INST] B. </s><s>[INST] C? [/INST]"),
        (
            "chatml_direct",
            "<|im_end|><|im_start|>user\n<image>\nA?<|im_end|><|im_start|>assistant\nB.<|im_end|>"
            "<|im_start|>user\nC?<|im_end|><|im_start|>assistant\n",
        ),
        ("plain", "<image>\nA?\nB.\nC?\n"),
        (
            "v1_mmtag",
            "USER: <Image><image></Image> ASSISTANT: Received.</s>"
            "USER: A? ASSISTANT: B.</s>USER: C? ASSISTANT:",
        ),
    ],
)
def test_several_turns(name: str, expected: str):
    assert template(name).render(TURNS).endswith(expected)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((PICTURE,), "<image>\n"),
        ((PICTURE, PICTURE, "A?"), "<image>\n<image>\nA?"),
        ((PICTURE, "\nA?"), "<image>\nA?"),
        (("A?", PICTURE), "A?\n<image>"),
        ((PICTURE, "first ", PICTURE, "second. A?"), "<image>\nfirst <image>\nsecond. A?"),
        (("One:", PICTURE, "A?"), "One:\n<image>\nA?"),
    ],
)
def test_where_pictures_stand(parts: tuple, expected: str):
    assert template("llava_v1").render([user(*parts)]).endswith(f"USER: {expected} ASSISTANT:")


def test_tagged_pictures_without_words_or_later_on():
    rendered = template("v0_mmtag").render([user(PICTURE), assistant("A."), user("B?", PICTURE)])
    assert rendered.endswith(
        "###Human: <Image><image></Image>###Assistant: A."
        "###Human: B?\n<Image><image></Image>###Assistant:"
    )


def test_another_image_token():
    assert "USER: <|image|>\nA?" in template("v1").render([user(PICTURE, "A?")], "<|image|>")


@names
def test_a_system_message_replaces_the_template_s_own(name: str):
    own = template(name).system
    rendered = template(name).render([system("Be brief."), user("A?")])
    assert rendered.count("Be brief.") == 1
    assert not own or own not in rendered


@names
def test_instructions_are_added_to_the_template_s_own(name: str):
    own = template(name).system
    told = f"{own}\nUse JSON." if own else "Use JSON."
    assert told in template(name).render([system("Use JSON.", adds=True), user("A?")])


@names
def test_an_empty_system_message_leaves_no_trace(name: str):
    bare = replace(template(name), system="")
    assert template(name).render([system(""), user("A?")]) == bare.render([user("A?")])
    assert not bare.render([user("A?")]).startswith((" ", "#"))


def test_turns_say_whether_the_system_text_adds():
    asks = (Message("user", "A?"),)
    schema = SamplingParams(json_schema={"type": "object"})
    assert to_turns(Request(asks, schema))[0].adds
    assert to_turns(Request(asks, tools=(ADD,)))[0].adds
    told = to_turns(Request((Message("system", "Be brief."), *asks), tools=(ADD,)))
    assert not told[0].adds
    assert told[0].text.startswith("Be brief.\n")
    assert to_turns(Request((Message("system", [PICTURE]), *asks)))[0].adds
    assert not to_turns(Request((Message("system", ""), *asks)))[0].adds


words = st.text(alphabet="ab c\n<>#[]", max_size=6)
parts = st.lists(st.builds(Text, words) | st.just(PICTURE), max_size=5)
messages = st.lists(
    st.builds(Message, st.sampled_from(["user", "user", "assistant", "system", "tool"]), parts),
    max_size=6,
)


def test_an_assistant_that_begins_stands_behind_the_system_text():
    turns = [system("Be brief."), assistant("Hello."), user("A?")]
    assert template("llama_2").render(turns) == (
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n [/INST] Hello. </s><s>[INST] A? [/INST]"
    )


@given(name=st.sampled_from(sorted(TEMPLATES)), before=messages, last=parts)
@example(
    name="llama_2",
    before=[Message("system", ""), Message("system", ""), Message("assistant", [PICTURE])],
    last=[],
)
def test_no_text_and_no_picture_is_lost(name: str, before: list[Message], last: list):
    """Also with neighbours of one role, an assistant that begins, and empty messages."""
    turns = to_turns(Request((*before, Message("user", last))))
    rendered = template(name).render(turns, image="\0")
    sent = sum(isinstance(part, Image) for m in before for part in m.content)
    assert rendered.count("\0") == sent + sum(isinstance(part, Image) for part in last)
    place = 0
    for turn in turns:
        for part in turn.parts:
            wanted = part.text if isinstance(part, Text) else "\0"
            place = rendered.index(wanted, place) + len(wanted)
