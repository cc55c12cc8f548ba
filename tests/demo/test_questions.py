import json
import random

import pytest

from examples.demo_model.world.asked import SHORT_HINT, caption
from examples.demo_model.world.pages import Page
from examples.demo_model.world.questions import PAGE_TASKS, SCENE_TASKS, ask
from examples.demo_model.world.scenes import Scene, Shape

RED = (255, 0, 0)
BLUE = (0, 0, 255)
SCENE = Scene(
    200,
    200,
    "white",
    (255, 255, 255),
    (
        Shape("circle", "red", RED, 0.17, 0.17, 0.25),
        Shape("square", "blue", BLUE, 0.83, 0.17, 0.25),
        Shape("star", "red", RED, 0.5, 0.83, 0.25),
    ),
)
PAGE = Page("INVOICE", 4711, 372, name="ANNA", page=2)


def answers(picture, task, count=60):
    rng = random.Random(7)
    return [ask(picture, rng, task) for _ in range(count)]


@pytest.mark.parametrize("task", [task for task, _ in SCENE_TASKS if task != "absent"])
def test_every_question_about_shapes_can_be_asked(task):
    assert all(asked.task == task and asked.answer for asked in answers(SCENE, task, 5))


@pytest.mark.parametrize("task", [task for task, _ in PAGE_TASKS])
def test_every_question_about_pages_can_be_asked(task):
    assert all(asked.answer for asked in answers(PAGE, task, 5))


def test_colour_is_asked_in_both_spellings():
    asked = " ".join(asked.question for asked in answers(SCENE, "colour"))
    assert "color" in asked and "colour" in asked


def test_colours_counts_and_places_are_right():
    for asked in answers(SCENE, "colour"):
        right = {"circle": "red", "square": "blue", "star": "red"}
        assert asked.answer == next(c for kind, c in right.items() if kind in asked.question)
    assert {asked.answer for asked in answers(SCENE, "count all")} == {"3"}
    for asked in answers(SCENE, "where"):
        right = {"circle": "top left", "square": "top right", "star": "bottom"}
        assert asked.answer == next(p for kind, p in right.items() if kind in asked.question)


def test_yes_and_no_are_asked_evenly():
    found = [asked.answer for asked in answers(SCENE, "exists", 400)]
    assert set(found) == {"yes", "no"} and 0.35 < found.count("yes") / 400 < 0.7


def test_a_shape_that_is_not_there_is_said_to_be_missing():
    for asked in answers(SCENE, "absent"):
        assert asked.answer.startswith("there is no ")
        assert not any(shape.kind in asked.answer for shape in SCENE.shapes)


def test_captions_name_all_shapes_in_reading_order():
    assert caption(SCENE) == "a red circle, a blue square and a red star"


def test_json_answers_are_compact_json():
    for asked in answers(SCENE, "json") + answers(PAGE, "page json"):
        assert json.loads(asked.answer) and ": " not in asked.answer


def test_short_answers_have_no_full_stop():
    tasks = ("colour", "shape", "exists", "where", "relation", "count all")
    assert not any(a.answer.endswith(".") for task in tasks for a in answers(SCENE, task, 20))


def test_some_questions_carry_the_hint_for_short_answers():
    hinted = [SHORT_HINT in asked.question for asked in answers(SCENE, "colour", 300)]
    assert 10 < sum(hinted) < 90


def test_page_fields_are_read_from_the_page():
    assert {asked.answer for asked in answers(PAGE, "number")} == {"4711"}
    assert {asked.answer for asked in answers(PAGE, "total")} == {"372"}
    assert {asked.answer for asked in answers(PAGE, "title")} == {"INVOICE"}
    assert {asked.answer for asked in answers(PAGE, "read all")} == {PAGE.text()}
