import random

import numpy as np
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from examples.demo_model.world.pages import Page, draw_page
from examples.demo_model.world.scenes import Scene, Shape, draw_scene, random_scene
from examples.demo_model.world.seen import LABELS, fit_square, patch_labels


def test_a_fitted_picture_is_what_the_image_processor_makes():
    size = {"height": 128, "width": 128}
    process = LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 128}, crop_size=size)
    rng = random.Random(6)
    for _ in range(4):
        image = draw_scene(random_scene(rng))
        expected = process(image, return_tensors="np")["pixel_values"][0]
        ours = np.asarray(fit_square(image), dtype=np.float32) / 255
        ours = (ours - np.array(process.image_mean)) / np.array(process.image_std)
        assert np.abs(ours.transpose(2, 0, 1) - expected).max() < 1e-5


def test_a_shape_is_marked_where_it_stands():
    scene = Scene(
        128, 64, "white", (255, 255, 255), (Shape("star", "red", (255, 0, 0), 0.25, 0.5, 0.5),)
    )
    labels = patch_labels(scene)
    # Padded to a square, the picture is the middle half: row 4, a quarter from the left.
    assert labels["centre"].index(1) == 4 * 8 + 2
    assert labels["shape"][4 * 8 + 2] == 5 and labels["colour"][4 * 8 + 2] == 1
    assert labels["shape"][0] == 0


def test_characters_are_marked_in_halves_of_patches():
    page = Page("MENU", 123, 45)
    labels = patch_labels(page)
    assert sum(label > 0 for label in labels["left"] + labels["right"]) == len("MENUNo.123Total45")
    assert draw_page(page).size == (512, 512)


def test_every_class_is_in_range():
    rng = random.Random(8)
    for _ in range(20):
        for kind, values in patch_labels(random_scene(rng)).items():
            assert len(values) == 64 and max(values) < LABELS[kind]
