import json
import random
import re

from examples.demo_model.world import copying, smalltalk, tools, words
from examples.demo_model.world.dialogue import Dialogue
from llavakit.prompts.tools import CALL_END, CALL_START, RESULT_START

CALLS = re.compile(f"{CALL_START}(.*?){CALL_END}", re.S)


def made(task, count=80):
    rng = random.Random(11)
    return [task(rng) for _ in range(count)]


def leaves(value):
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def test_calls_are_json_with_a_tool_that_was_offered():
    for dialogue in made(copying.tool_call):
        for call in CALLS.findall(dialogue.turns[0][1]):
            assert f'"name":"{json.loads(call)["name"]}"' in (dialogue.system or "")


def test_every_value_of_a_call_stands_in_the_question():
    for dialogue in made(copying.tool_call):
        if "joke" in dialogue.turns[0][0].lower():
            continue
        for call in CALLS.findall(dialogue.turns[0][1]):
            question = dialogue.turns[0][0].lower()
            for value in leaves(json.loads(call)["arguments"]):
                assert tools.spoken(value).lower() in question


def test_after_a_result_the_answer_is_in_words():
    for dialogue in made(copying.tool_result):
        question, answer = dialogue.turns[-1]
        assert question.startswith(RESULT_START) and CALL_START not in answer


def test_a_plain_question_is_answered_in_words_although_tools_are_offered():
    for dialogue in made(copying.no_tool_needed):
        assert "You can call these tools" in (dialogue.system or "")
        assert CALL_START not in dialogue.answer


def test_json_has_the_keys_of_its_schema_in_order():
    for dialogue in made(copying.fill_schema):
        schema = json.loads((dialogue.system or "").split("of this schema: ")[1])
        assert list(json.loads(dialogue.answer)) == list(schema["properties"])


def test_a_repeat_is_the_words_themselves():
    assert all(d.answer in d.turns[0][0] for d in made(copying.repeat_after_me))


def test_values_of_other_scripts_occur():
    rng = random.Random(3)
    values = "".join(words.text_value(rng) for _ in range(300))
    assert any("\u4e00" <= character <= "\u9fff" for character in values)


def test_a_picture_question_without_a_picture_is_declined():
    declined = [d for d in made(smalltalk.random_talk, 300) if d.task == "no picture"]
    assert declined and all(d.answer == smalltalk.NO_PICTURE for d in declined)


def test_a_prompt_is_written_turn_by_turn():
    dialogue = Dialogue("", (("a", "b"), ("c", "d")), system="S")
    assert dialogue.prompt() == "S USER: a ASSISTANT: b</s>USER: c ASSISTANT:"
