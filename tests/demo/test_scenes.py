import random

from examples.demo_model.world.scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    Shape,
    distance,
    draw_scene,
    random_scene,
    third,
)


def scenes(count=40):
    rng = random.Random(1)
    return [random_scene(rng) for _ in range(count)]


def test_equal_generators_give_equal_pictures():
    one, other = random_scene(random.Random(5)), random_scene(random.Random(5))
    assert one == other
    assert draw_scene(one).tobytes() == draw_scene(other).tobytes()


def test_a_picture_has_the_size_that_its_scene_says():
    for scene in scenes(10):
        assert draw_scene(scene).size == (scene.width, scene.height)


def test_every_colour_can_be_told_from_the_background():
    assert all(
        distance(shape.tone, scene.tone) > 80 for scene in scenes() for shape in scene.shapes
    )


def test_a_shape_is_drawn_in_its_colour_at_its_centre():
    for scene in scenes():
        if scene.codec or not scene.shapes:
            continue
        shape = scene.shapes[0]
        at = (round(shape.x * scene.width), round(shape.y * scene.height))
        assert draw_scene(scene).getpixel(at) == shape.tone


def test_shapes_stand_in_reading_order():
    for scene in scenes():
        places = [shape.place for shape in scene.shapes if shape.place]
        order = [place for row in PLACES for place in row]
        if len(places) == len(scene.shapes):
            assert places == sorted(places, key=order.index)


def test_a_place_near_a_line_is_nobodys():
    assert third(0.1) == 0 and third(0.5) == 1 and third(0.9) == 2
    assert third(0.33) is None and third(0.69) is None
    assert Shape("circle", "red", (255, 0, 0), 0.5, 0.34, 0.2).place is None


def test_all_colours_and_shapes_are_drawn():
    seen = {shape.colour for scene in scenes(300) for shape in scene.shapes}
    assert seen == set(COLOURS)
    assert {shape.kind for scene in scenes(300) for shape in scene.shapes} == set(SHAPES)
