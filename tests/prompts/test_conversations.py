"""How conversations end: whoever spoke last, an answer can follow, by one rule for all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llavakit.backend import to_request
from llavakit.errors import MessageError, ParameterError
from llavakit.prompts.conversation import to_turns
from llavakit.prompts.templates import TEMPLATES
from llavakit.values import Image, Message, ToolCall

GOLDEN: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parents[1] / "data" / "conversations.json").read_text(encoding="utf-8")
)
"""The prompt of each conversation for each template; ``{system}`` is the template's own text."""

PICTURE = Image("picture.png")
CALL = Message("assistant", tool_calls=[ToolCall("c1", "add", {"a": 1})])
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}


def user(*parts: str | Image) -> Message:
    return Message("user", parts)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def system(*parts: str | Image) -> Message:
    return Message("system", parts)


ENDING = {
    "an answer": [user(PICTURE, "Colour?"), assistant("Red.")],
    "two answers": [user("Hi"), assistant("One."), assistant("Two.")],
    "an answer alone": [assistant("Hello.")],
    "a greeting first": [assistant("Hello."), user("Hi")],
    "a system text alone": [system("Name a colour.")],
    "a system picture alone": [system(PICTURE, "Look.")],
    "two questions": [user("Hi"), user(PICTURE, "Colour?")],
    "a tool's result": [user("Add."), CALL, Message("tool", "3", tool_call_id="c1")],
}
BEGUN = {
    "a begun answer": [user(PICTURE, "Colour?"), assistant("It is")],
    "a begun answer alone": [assistant("It is")],
    "a begun answer behind another": [user("Hi"), assistant("One."), assistant("It is")],
    "an answer that begins now": [user("Hi"), assistant("")],
}


def prompt(template: str, conversation: str) -> str:
    begun = conversation in BEGUN
    messages = BEGUN[conversation] if begun else ENDING[conversation]
    turns = to_turns(to_request(messages, **(CONTINUE if begun else {})))
    own = TEMPLATES[template]
    written = own.render(turns)
    for role, text in own.examples:
        written = written.replace(text, f"{{{role}}}")
    return written.replace(own.system, "{system}") if own.system else written


def written_anew() -> str:
    """The golden file, for a person who has read the difference."""
    cases = {name: {case: prompt(name, case) for case in [*ENDING, *BEGUN]} for name in TEMPLATES}
    return json.dumps(cases, indent=1, ensure_ascii=False) + "\n"


def test_every_template_and_every_conversation_is_tried():
    assert set(GOLDEN) == set(TEMPLATES)
    assert all(set(cases) == {*ENDING, *BEGUN} for cases in GOLDEN.values())


@pytest.mark.parametrize("conversation", [*ENDING, *BEGUN])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_prompt_of_a_conversation(template: str, conversation: str):
    assert prompt(template, conversation) == GOLDEN[template][conversation]


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_goes_on_where_the_text_ends(template: str):
    assert prompt(template, "a begun answer").endswith("It is")
    closed = TEMPLATES[template].render(to_turns(to_request(BEGUN["a begun answer"])))
    assert not closed.endswith("It is")


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_of_which_nothing_is_there_begins_as_every_other(template: str):
    asked = TEMPLATES[template].render(to_turns(to_request("Hi")))
    nothing = to_request([user("Hi"), assistant("")], **CONTINUE)
    assert TEMPLATES[template].render(to_turns(nothing)) == asked


@pytest.mark.parametrize("messages", [[], [system("")], [system(""), system("")]])
def test_a_conversation_in_which_nobody_speaks_is_refused(messages):
    with pytest.raises(MessageError, match="conversation is empty"):
        to_turns(to_request(messages))


def test_a_call_without_its_result_is_refused_at_the_end_and_counted():
    request = to_request([user("Add."), CALL])
    with pytest.raises(MessageError, match="the tool 'add' that has no result"):
        to_turns(request)
    assert to_turns(request, answerable=False)[-1].role == "assistant"


@pytest.mark.parametrize("messages", [[user("Hi")], [assistant("It is"), user("Hi")]])
def test_only_an_answer_can_be_continued(messages):
    with pytest.raises(MessageError, match="end with an assistant message"):
        to_turns(to_request(messages, continue_final_message=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"continue_final_message": True, "add_generation_prompt": True}, "contradict"),
        ({"add_generation_prompt": False}, "without a turn"),
        ({"continue_final_message": "yes"}, "continue_final_message"),
        ({"add_generation_prompt": 1}, "add_generation_prompt"),
    ],
)
def test_an_answer_begins_a_turn_or_goes_on_with_one(options, words):
    with pytest.raises(ParameterError, match=words):
        to_request([user("Hi"), assistant("It is")], **options)


def test_to_continue_is_asked_by_one_name_or_by_both():
    messages = [user("Hi"), assistant("It is")]
    one = to_request(messages, continue_final_message=True)
    assert one == to_request(messages, **CONTINUE)
    assert not one.add_generation_prompt and to_request(messages).add_generation_prompt
