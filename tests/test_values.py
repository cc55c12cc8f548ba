from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image as PILImage

from llavakit import Image, Message, SamplingParams, Text, Tool, ToolCall
from llavakit.errors import MessageError, ParameterError, SchemaError, UnsupportedContentError


def test_string_content_is_one_text_part():
    assert Message("user", "hi").content == (Text("hi"),)


def test_order_of_parts_is_kept():
    message = Message("user", ["a", Image(b"1"), Text("b"), Image(b"2")])
    assert [type(part).__name__ for part in message.content] == ["Text", "Image", "Text", "Image"]
    assert message.text == "ab"
    assert [image.source for image in message.images] == [b"1", b"2"]


def test_equal_content_is_an_equal_message():
    red = PILImage.new("RGB", (4, 4), "red")
    again = PILImage.new("RGBA", (4, 4), (255, 0, 0, 255))
    assert Message("user", ["x", Image(red)]) == Message("user", ["x", Image(again)])


def test_picture_changed_later_does_not_change_the_message():
    picture = PILImage.new("RGB", (4, 4), "red")
    before = Image(picture)
    picture.putpixel((0, 0), (0, 0, 255))
    assert before == Image(PILImage.new("RGB", (4, 4), "red"))


def test_unknown_role_is_refused_with_the_known_ones():
    with pytest.raises(MessageError, match="system, user, assistant, tool"):
        Message("human", "hi")


def test_picture_that_is_not_wrapped_is_refused():
    with pytest.raises(UnsupportedContentError, match=r"llavakit\.Image"):
        Message("user", [b"not wrapped"])  # type: ignore[list-item]


@pytest.mark.parametrize("content", [5, None, b"hi", {"type": "text", "text": "hi"}, [None]])
def test_content_that_is_no_text_and_no_picture_is_refused_and_never_dropped(content):
    with pytest.raises(UnsupportedContentError, match="holds Text, Image and Video parts"):
        Message("user", content)


@pytest.mark.parametrize("text", [None, 5, b"hi", ["hi"]])
def test_text_is_a_string(text):
    with pytest.raises(UnsupportedContentError, match="A text is a string, not"):
        Text(text)


def test_half_a_character_is_told_with_its_place():
    with pytest.raises(MessageError, match=r"half a character \(\\ud83d at 3\)"):
        Message("user", "ab \ud83d")


@pytest.mark.parametrize(
    "given", [{"name": ""}, {"name": 5}, {"description": None}, {"parameters": None}], ids=str
)
def test_tool_that_no_model_could_call_is_refused(given):
    with pytest.raises(ParameterError, match=f"^A tool's {next(iter(given))} is "):
        Tool(**{"name": "add", **given})


def test_tool_whose_arguments_are_no_object_is_refused():
    with pytest.raises(SchemaError, match="'add' are of type 'array'"):
        Tool("add", parameters={"type": "array"})
    assert Tool("add", parameters={"type": ["object", "null"]}).parameters


def test_arguments_of_a_call_are_a_dict_and_not_its_text():
    with pytest.raises(MessageError, match="not 'add' and str"):
        ToolCall("1", "add", '{"a": 1}')  # type: ignore[arg-type]
    with pytest.raises(MessageError, match="ToolCall objects"):
        Message("assistant", tool_calls=[{"name": "add"}])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "setting",
    [
        {"max_tokens": 0},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 1},
        {"repetition_penalty": 0},
        {"logprobs": 21},
        {"stop": ("",)},
        {"json_schema": {}, "grammar": "a"},
    ],
    ids=lambda setting: " ".join(map(str, setting)),
)
def test_sampling_parameter_out_of_range_is_refused_by_name(setting):
    with pytest.raises(ParameterError, match="|".join(setting)):
        SamplingParams(**setting)


NO_NUMBERS = ["1", True, None, [1], math.nan, math.inf, 1j, -(10**400)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_tokens", value) for value in [*NO_NUMBERS, 1.5]),
        *(("top_k", value) for value in [*NO_NUMBERS, 1.5]),
        *(("temperature", value) for value in NO_NUMBERS),
        *(("top_p", value) for value in NO_NUMBERS),
        *(("min_p", value) for value in NO_NUMBERS),
        *(("repetition_penalty", value) for value in NO_NUMBERS),
        *(("seed", value) for value in ("1", True, 1.5, [1])),
        *(("logprobs", value) for value in ("1", True, 1.5, -1)),
        *(("stop", value) for value in (5, b"x", [b"x"], [None], {"a": 1}, ["a", ""])),
        *(("json_schema", value) for value in (5, "{}", [], False)),
        *(("grammar", value) for value in (5, b"x", "")),
    ],
)
def test_sampling_parameter_of_a_wrong_type_is_refused_by_name(name, value):
    # The engine's thread would find it in the middle of a step of everybody's.
    with pytest.raises(ParameterError, match=f"^{name} is .*must be"):
        SamplingParams(**{name: value})


def test_numbers_of_numpy_are_numbers():
    params = SamplingParams(max_tokens=np.int64(5), temperature=np.float32(0.5), seed=np.uint8(3))
    assert params == SamplingParams(max_tokens=5, temperature=0.5, seed=3)
    assert type(params.max_tokens) is int and type(params.temperature) is float


def test_one_stop_string_may_be_given_alone():
    assert SamplingParams(stop="END").stop == ("END",)  # type: ignore[arg-type]
