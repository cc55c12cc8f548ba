import json
import random

from examples.demo_model.world.dialogue import IMAGE
from examples.demo_model.world.pages import Page
from examples.demo_model.world.scenes import Scene, Shape
from examples.demo_model.world.several import ask_several, interleaved, schema_about
from llavakit.prompts.tools import CALL_START


def shown(colour, kind):
    return Scene(99, 99, "white", (255, 255, 255), (Shape(kind, colour, (0, 0, 0), 0.5, 0.5, 0.5),))


PICTURES = [shown("red", "circle"), shown("blue", "star"), Page("MENU", 123, 45)]


def questions(count=400):
    rng = random.Random(2)
    return [ask_several(PICTURES, rng) for _ in range(count)]


def test_which_names_the_only_picture_that_shows_it():
    for asked in questions():
        if asked.task == "several which":
            right = 2 if "MENU" in asked.question or "menu" in asked.question else None
            right = 0 if "circle" in asked.question else right
            right = 1 if "star" in asked.question else right
            if right is not None:
                assert asked.answer == f"the {('first', 'second', 'third')[right]} image"


def test_a_description_is_of_the_picture_that_is_asked_for():
    for asked in questions():
        if asked.task == "several describe" and "second" in asked.question:
            assert asked.answer == "a blue star"


def test_pictures_are_counted():
    assert {a.answer for a in questions() if a.task == "several count"} == {"3"}


def test_an_interleaved_dialogue_has_every_picture_once():
    rng = random.Random(4)
    for _ in range(50):
        dialogue = interleaved(PICTURES, rng)
        assert sum(question.count(IMAGE) for question, _ in dialogue.turns) == 3


def test_fields_read_from_a_picture_obey_their_schema():
    rng = random.Random(5)
    for _ in range(50):
        dialogue = schema_about(PICTURES[2], rng)
        if CALL_START in dialogue.answer:
            continue
        schema = json.loads((dialogue.system or "").split("of this schema: ")[1])
        values = json.loads(dialogue.answer)
        assert list(values) == list(schema["properties"])
        kinds = {"string": str, "integer": int, "boolean": bool}
        assert all(isinstance(values[k], kinds[s["type"]]) for k, s in schema["properties"].items())
